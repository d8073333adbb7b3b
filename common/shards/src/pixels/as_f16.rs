//! Normalised f16.

use super::{Spec, each_value, zstd};
use half::f16;

pub(super) const SPEC: Spec = Spec {
    name: "f16",
    about: "rounded, 400 KB",
    bytes_at_336: 400_000,
    // f16 has 11 bits: half a unit in the last place of values below 4.
    rounding: 1.0 / 1024.0,
    stores_source: false,
    compression: zstd,
    encode: |codes, side, table, stored| {
        each_value(codes, side, table, |value| stored.extend_from_slice(&f16::from_f32(value).to_le_bytes()));
    },
    decode: |stored, images, side, _, pixel_values| {
        let (values, rest) = stored.as_chunks::<2>();
        let is_whole = rest.is_empty() && values.len() == images * 3 * side * side;
        is_whole.then(|| pixel_values.extend(values.iter().map(|bytes| f16::from_le_bytes(*bytes).to_f32())))
    },
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pixels::tests::table;

    #[test]
    fn f16_is_the_rounded_value() {
        let codes: Vec<u8> = (0..12).collect();
        let (mut stored, mut found) = (Vec::new(), Vec::new());
        (SPEC.encode)(&codes, 2, &table(), &mut stored);
        (SPEC.decode)(&stored, 1, 2, &table(), &mut found).expect("decoded");
        let expected: Vec<f32> = codes
            .iter()
            .enumerate()
            .map(|(index, &code)| f16::from_f32(table().channels()[index / 4][usize::from(code)]).to_f32())
            .collect();
        assert_eq!(found, expected);
    }
}
