//! The type of a file, from its first bytes and not from its name.

use crate::image_processor::ImageError;
use base::names;

/// The formats that are decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// JPEG.
    Jpeg,
    /// PNG and APNG.
    Png,
    /// GIF 87a and 89a.
    Gif,
    /// WebP.
    WebP,
    /// Windows bitmap.
    Bmp,
    /// TIFF, either byte order.
    Tiff,
}

/// Identifies the format.
///
/// # Errors
/// `Unidentified`, with the kind of file it seems to be: a dead link's HTML page, for example.
pub fn format(bytes: &[u8]) -> Result<Format, ImageError> {
    match bytes {
        [0xFF, 0xD8, 0xFF, ..] => Ok(Format::Jpeg),
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1A, b'\n', ..] => Ok(Format::Png),
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Ok(Format::Gif),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Ok(Format::WebP),
        [b'B', b'M', ..] => Ok(Format::Bmp),
        [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..] => Ok(Format::Tiff),
        _ => Err(ImageError::Unidentified(guess(bytes))),
    }
}

fn guess(bytes: &[u8]) -> String {
    let start = &bytes[..bytes.len().min(512)];
    let text = start.trim_ascii_start();

    match start {
        [] => "an empty file".into(),
        [_, _, _, _, b'f', b't', b'y', b'p', ..] => "an AVIF, HEIC or MP4 file".into(),
        [0, 0, 0, 12, b'j', b'P', ..] => "a JPEG 2000 file".into(),
        [0, 0, 1, 0, ..] => "an icon".into(),
        [b'%', b'P', b'D', b'F', ..] => "a PDF file".into(),
        [b'P', b'K', 3, 4, ..] => "a zip archive".into(),
        _ if text.starts_with(b"<svg") || text.starts_with(b"<?xml") => "SVG or XML".into(),
        _ if start.starts_with(names::LFS_POINTER) => "a pointer of Git LFS (git lfs pull fetches the file)".into(),
        _ if text.starts_with(b"<") => "an HTML page, as dead links leave".into(),
        _ if text.starts_with(b"{") || text.starts_with(b"[") => "JSON text".into(),
        _ if start.iter().all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace()) => "plain text".into(),
        _ => {
            let hex: Vec<String> = start.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
            format!("first bytes {}", hex.join(" "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_decides_and_the_rest_is_named() {
        assert_eq!(format(b"\xFF\xD8\xFF\xE0"), Ok(Format::Jpeg));
        assert_eq!(format(b"RIFF\0\0\0\0WEBPVP8 "), Ok(Format::WebP));
        let cases: [(&[u8], &str); 5] = [
            (b"", "empty"),
            (b"  <html>", "HTML"),
            (b"{\"a\":1}", "JSON"),
            (b"\0\x01\x02\x03", "00 01 02 03"),
            (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ];
        for (bytes, word) in cases {
            let error = format(bytes).expect_err("not an image").to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
