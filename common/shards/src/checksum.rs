//! CRC-32 of a row: Parquet's writer has no checksums of pages, and a changed bit in a page that still decodes would be trained on.

use crc32fast::Hasher;

/// Over id, names of images, tokens, labels and stored pixels, each with its length before it.
pub(super) fn of_row<'t>(
    id: &str,
    images: impl IntoIterator<Item = &'t str>,
    input_ids: &[i32],
    labels: &[i32],
    stored_pixels: &[u8],
) -> u32 {
    let mut hasher = Hasher::new();
    let mut add = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    add(id.as_bytes());
    images.into_iter().for_each(|name| add(name.as_bytes()));
    for values in [input_ids, labels] {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        add(&bytes);
    }
    add(stored_pixels);
    hasher.finalize()
}
