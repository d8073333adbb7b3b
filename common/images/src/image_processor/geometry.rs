//! Sizes: how large the image gets, and which part of it the centre crop keeps.

/// The part of one axis of the resized image that ends up in the crop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AxisWindow {
    /// Length of the whole axis after resizing, pixels.
    pub resized: usize,
    /// First pixel kept.
    pub start: usize,
    /// Pixels kept.
    pub len: usize,
    /// Zeros before them in the crop (where the resized image is smaller than the crop).
    pub pad: usize,
}

/// Width and height after resizing the shortest edge to `shortest_edge`.
///
/// # Source
/// transformers `image_transforms.py`, `get_resize_output_image_size`: the long edge is truncated, not rounded.
pub fn resized_size(width: usize, height: usize, shortest_edge: usize) -> (usize, usize) {
    let (short, long) = if width <= height { (width, height) } else { (height, width) };
    let long = (shortest_edge * long) as f64 / short as f64;
    if width <= height { (shortest_edge, long as usize) } else { (long as usize, shortest_edge) }
}

/// The window of a centre crop of `crop_size` along an axis of `resized` pixels.
///
/// # Source
/// transformers `image_transforms.py`, `center_crop`: offset rounded down, padding before rounded up.
pub fn center_window(resized: usize, crop_size: usize) -> AxisWindow {
    if resized >= crop_size {
        AxisWindow { resized, start: (resized - crop_size) / 2, len: crop_size, pad: 0 }
    } else {
        AxisWindow { resized, start: 0, len: resized, pad: (crop_size - resized).div_ceil(2) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_edge_is_truncated() {
        assert_eq!(resized_size(640, 480, 336), (448, 336));
        assert_eq!(resized_size(214, 320, 336), (336, 502)); // 502.43
        assert_eq!(resized_size(1000, 1, 336), (336_000, 336));
        assert_eq!(resized_size(336, 336, 336), (336, 336));
    }

    #[test]
    fn crop_is_centred_or_padded() {
        assert_eq!(center_window(502, 336), AxisWindow { resized: 502, start: 83, len: 336, pad: 0 });
        assert_eq!(center_window(337, 336), AxisWindow { resized: 337, start: 0, len: 336, pad: 0 });
        assert_eq!(center_window(224, 337), AxisWindow { resized: 224, start: 0, len: 224, pad: 57 });
    }
}
