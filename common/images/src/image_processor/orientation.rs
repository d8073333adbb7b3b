//! The EXIF orientation of a JPEG file, for warnings: as in transformers, pixels are taken as they are stored.

/// The tag's number.
const ORIENTATION: u16 = 0x0112;

/// How a viewer turns the picture, 1 (not at all) to 8; `None` where the file does not say.
pub fn jpeg_orientation(bytes: &[u8]) -> Option<u16> {
    let mut rest = bytes.strip_prefix(&[0xFF, 0xD8])?;
    // Segments before the picture: a marker, then a length that counts itself.
    while let [0xFF, marker @ 0xC0..=0xFE, high, low, ..] = rest {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let segment = rest.get(4..2 + length)?;
        match (marker, segment.strip_prefix(b"Exif\0\0")) {
            (0xE1, Some(tiff)) => return of_tiff(tiff),
            (0xDA, _) => return None,
            _ => rest = &rest[2 + length..],
        }
    }
    None
}

/// The tag in the first directory of a TIFF header.
fn of_tiff(tiff: &[u8]) -> Option<u16> {
    let is_little = tiff.starts_with(b"II");
    let number = |at: usize| -> Option<u16> {
        let bytes = [*tiff.get(at)?, *tiff.get(at.checked_add(1)?)?];
        Some(if is_little { u16::from_le_bytes(bytes) } else { u16::from_be_bytes(bytes) })
    };
    let (first, second) = (usize::from(number(4)?), usize::from(number(6)?));
    let directory = if is_little { second << 16 | first } else { first << 16 | second };
    let mut entries = (0..usize::from(number(directory)?)).map(|index| directory + 2 + 12 * index);
    let entry = entries.find(|&entry| number(entry) == Some(ORIENTATION))?;
    number(entry + 8).filter(|orientation| (1..=8).contains(orientation))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_exif(tiff: &[u8]) -> Vec<u8> {
        let length = (2 + 6 + tiff.len()) as u16;
        let app0 = [0xFF, 0xE0, 0, 4, 0, 0];
        let head = [&[0xFF, 0xD8][..], &app0, &[0xFF, 0xE1], &length.to_be_bytes(), b"Exif\0\0"].concat();
        [&head, tiff, &[0xFF, 0xDA, 0, 2]].concat()
    }

    #[test]
    fn the_tag_is_found_in_both_byte_orders() {
        let little = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0";
        let big = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x03\0\0";
        let other = b"II*\0\x08\0\0\0\x01\0\x13\x01\x03\0\x01\0\0\0\x06\0\0\0";
        for (tiff, expected) in [(&little[..], Some(6)), (big, Some(3)), (other, None)] {
            let file = with_exif(tiff);
            assert_eq!(jpeg_orientation(&file), expected);
            // A file that ends early.
            for end in 0..file.len() {
                let _ = jpeg_orientation(&file[..end]);
            }
        }
        assert_eq!(jpeg_orientation(b"\x89PNG"), None);
        assert_eq!(jpeg_orientation(&with_exif(b"II*\0\xFF\xFF\xFF\xFF")), None);
        assert_eq!(jpeg_orientation(b"\xFF\xD8\xFF\xE1\0\0"), None);
    }
}
