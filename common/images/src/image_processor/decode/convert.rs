//! Pillow's arithmetic for turning other pixel layouts into RGB, in place where the layout allows.

/// `(a · b) / 255`, rounded as Pillow's `MULDIV255`.
fn mul_div_255(a: u8, b: u8) -> u8 {
    let product = u32::from(a) * u32::from(b) + 128;
    (((product >> 8) + product) >> 8) as u8
}

/// Inverted CMYK as JPEG files hold it (Adobe's convention, which Pillow assumes of all) to RGB.
///
/// # Source
/// Pillow `Unpack.c` (`CMYK;I`) and `Convert.c`, `cmyk2rgb`.
pub fn inverted_cmyk_to_rgb(samples: &mut Vec<u8>) {
    compact(samples, |[cyan, magenta, yellow, light]| {
        [cyan, magenta, yellow].map(|color| light - mul_div_255(255 - color, light))
    });
}

/// Alpha over white, as transformers composites transparency.
///
/// # Source
/// Pillow `AlphaComposite.c` with an opaque white destination; transformers `image_transforms.py`, `convert_to_rgb`.
pub fn over_white(color: [u8; 3], alpha: u8) -> [u8; 3] {
    const PRECISION_BITS: u32 = 7;
    let above = u32::from(alpha) << PRECISION_BITS;
    let below = (255 << PRECISION_BITS) - above;
    color.map(|channel| {
        let sum = u32::from(channel) * above + 255 * below + (0x80 << PRECISION_BITS);
        ((((sum >> 8) + sum) >> 8) >> PRECISION_BITS) as u8
    })
}

/// RGBA to RGB over white.
pub fn rgba_to_rgb(samples: &mut Vec<u8>) {
    compact(samples, |[red, green, blue, alpha]| over_white([red, green, blue], alpha));
}

/// Gray with alpha to RGB over white.
pub fn gray_alpha_to_rgb(samples: &[u8]) -> Vec<u8> {
    samples.chunks_exact(2).flat_map(|pixel| over_white([pixel[0]; 3], pixel[1])).collect()
}

/// Rewrites four-byte pixels as three-byte ones, front to back in the same buffer.
fn compact(samples: &mut Vec<u8>, convert: impl Fn([u8; 4]) -> [u8; 3]) {
    let pixels = samples.len() / 4;
    for pixel in 0..pixels {
        let [a, b, c, d] = [0, 1, 2, 3].map(|channel| samples[4 * pixel + channel]);
        samples[3 * pixel..3 * pixel + 3].copy_from_slice(&convert([a, b, c, d]));
    }
    samples.truncate(3 * pixels);
}

/// Big-endian 16-bit samples to 8 bits by their high byte, as Pillow reduces colours.
pub fn high_bytes(samples: &mut Vec<u8>) {
    every_second(samples, 0);
}

/// The same for samples in the machine's byte order.
pub fn native_high_bytes(samples: &mut Vec<u8>) {
    every_second(samples, usize::from(cfg!(target_endian = "little")));
}

fn every_second(samples: &mut Vec<u8>, start: usize) {
    let count = samples.len() / 2;
    for index in 0..count {
        samples[index] = samples[2 * index + start];
    }
    samples.truncate(count);
}

/// Table from samples of 0 to `largest` that were rounded to 8 bits to the same truncated, as Pillow's `Unpack.c` does.
pub fn truncating_table(largest: usize) -> [u8; 256] {
    std::array::from_fn(|rounded| ((rounded * largest + 127) / 255 * 255 / largest) as u8)
}

/// CMYK as TIFF files hold it to RGB.
///
/// # Source
/// Pillow `Convert.c`, `cmyk2rgb`.
pub fn cmyk_to_rgb(samples: &mut Vec<u8>) {
    compact(samples, |[cyan, magenta, yellow, black]| {
        let light = 255 - black;
        [cyan, magenta, yellow].map(|color| light - mul_div_255(color, light))
    });
}

/// Divides colours that were multiplied by their alpha.
///
/// # Source
/// Pillow `Unpack.c`, `unpackRGBa`.
pub fn divide_by_alpha(samples: &mut [u8]) {
    for pixel in samples.chunks_exact_mut(4) {
        let alpha = u32::from(pixel[3]);
        for color in &mut pixel[..3] {
            *color = (u32::from(*color) * 255).checked_div(alpha).unwrap_or(0).min(255) as u8;
        }
    }
}

/// A 16-bit gray value as Pillow's `convert("RGB")` gives it: clipped, not scaled.
pub fn clip_gray16(value: u16) -> u8 {
    value.min(255) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opaque_keeps_and_transparent_whitens() {
        for value in 0..=255 {
            assert_eq!(over_white([value, 0, 255], 255), [value, 0, 255]);
            assert_eq!(over_white([value; 3], 0), [255; 3]);
        }
        assert_eq!(over_white([0; 3], 128), [127; 3]);
    }

    #[test]
    fn cmyk_without_ink_is_white_and_black_is_black() {
        let mut samples = vec![255, 255, 255, 255, 9, 200, 31, 0, 0, 255, 255, 255];
        inverted_cmyk_to_rgb(&mut samples);
        assert_eq!(samples, [255, 255, 255, 0, 0, 0, 0, 255, 255]);
    }
}
