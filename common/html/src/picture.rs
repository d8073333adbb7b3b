//! Small square pictures: in a page as a data URI, in a terminal as blocks of colour.

use base64::Engine;
use image::codecs::jpeg::JpegEncoder;
use image::{ExtendedColorType, ImageError};

/// JPEG's quality: pictures are looked at, not measured.
const QUALITY: u8 = 88;

/// A square RGB picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// Side, pixels.
    pub side: usize,
    /// `[side, side, 3]`.
    pub rgb: Vec<u8>,
}

impl Picture {
    /// Undoes the normalisation of one image.
    ///
    /// # Shapes  (S side)
    /// - `pixel_values`: f32 `[3, S, S]`
    pub fn of(pixel_values: &[f32], side: usize, mean: &[f64; 3], std: &[f64; 3]) -> Self {
        let plane = side * side;
        let rgb = (0..plane).flat_map(|pixel| {
            [0, 1, 2].map(|channel| {
                let value = f64::from(pixel_values[channel * plane + pixel]) * std[channel] + mean[channel];
                (value * 255.0).round().clamp(0.0, 255.0) as u8
            })
        });
        Self { side, rgb: rgb.collect() }
    }

    /// Of `codes` `[3, side, side]`, the planes of red, green and blue.
    pub fn of_planes(codes: &[u8], side: usize) -> Self {
        let plane = side * side;
        Self {
            side,
            rgb: (0..plane).flat_map(|pixel| [0, 1, 2].map(|channel| codes[channel * plane + pixel])).collect(),
        }
    }

    /// At most `side` pixels wide, by averaging whole blocks of pixels.
    pub fn shrunk(&self, side: usize) -> Self {
        let block = self.side.div_ceil(side.max(1)).max(1);
        let small = self.side / block;
        let mut rgb = Vec::with_capacity(3 * small * small);
        for row in 0..small {
            for column in 0..small {
                for channel in 0..3 {
                    let sum: usize = (0..block * block)
                        .map(|i| {
                            let (y, x) = (row * block + i / block, column * block + i % block);
                            usize::from(self.rgb[3 * (y * self.side + x) + channel])
                        })
                        .sum();
                    rgb.push((sum / (block * block)) as u8);
                }
            }
        }
        Self { side: small, rgb }
    }

    /// A JPEG as a data URI.
    ///
    /// # Errors
    /// A side that JPEG cannot have.
    pub fn data_uri(&self) -> Result<String, ImageError> {
        let mut file = Vec::new();
        let side = self.side as u32;
        JpegEncoder::new_with_quality(&mut file, QUALITY).encode(&self.rgb, side, side, ExtendedColorType::Rgb8)?;
        Ok(format!("data:image/jpeg;base64,{}", base64::engine::general_purpose::STANDARD.encode(file)))
    }

    /// The picture in half blocks of 24-bit colour, two rows of pixels a line.
    pub fn in_terminal(&self) -> String {
        let pixel = |row: usize, column: usize| {
            let rgb = &self.rgb[3 * (row * self.side + column)..][..3];
            format!("{};{};{}", rgb[0], rgb[1], rgb[2])
        };
        let mut text = String::new();
        for row in (0..self.side / 2 * 2).step_by(2) {
            for column in 0..self.side {
                text += &format!("\x1b[38;2;{}m\x1b[48;2;{}m▀", pixel(row, column), pixel(row + 1, column));
            }
            text += "\x1b[0m\n";
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_come_back_and_blocks_are_averaged() {
        let (mean, std) = ([0.5; 3], [0.25; 3]);
        let values: Vec<f32> = (0..48).map(|v| ((v as f32 * 5.0 / 255.0) - 0.5) / 0.25).collect();
        let picture = Picture::of(&values, 4, &mean, &std);
        assert_eq!(picture.rgb[..3], [0, 80, 160]);
        let small = picture.shrunk(2);
        assert_eq!((small.side, small.rgb[0]), (2, ((5 + 20 + 25) / 4) as u8));
        assert!(small.data_uri().expect("a JPEG").starts_with("data:image/jpeg;base64,/9j/"));
        let planes: Vec<u8> = (0..12).collect();
        assert_eq!(Picture::of_planes(&planes, 2).rgb, [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]);
    }
}
