//! Normalised f32.

use super::{Spec, each_value, zstd};

pub(super) const SPEC: Spec = Spec {
    name: "f32",
    about: "466 KB",
    bytes_at_336: 466_000,
    rounding: 0.0,
    stores_source: false,
    compression: zstd,
    encode: |codes, side, table, stored| {
        each_value(codes, side, table, |value| stored.extend_from_slice(&value.to_le_bytes()));
    },
    decode: |stored, images, side, _, pixel_values| {
        let (values, rest) = stored.as_chunks::<4>();
        let is_whole = rest.is_empty() && values.len() == images * 3 * side * side;
        is_whole.then(|| pixel_values.extend(values.iter().map(|bytes| f32::from_le_bytes(*bytes))))
    },
};
