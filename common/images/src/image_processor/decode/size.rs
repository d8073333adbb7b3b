//! The declared size of an image file, from its first bytes.

use std::io::Cursor;

/// Width and height in pixels as the file's header declares them; `None` where there is no readable header.
pub fn declared_size(bytes: &[u8]) -> Option<(u32, u32)> {
    image::ImageReader::new(Cursor::new(bytes)).with_guessed_format().ok()?.into_dimensions().ok()
}

#[cfg(test)]
mod tests {
    use super::declared_size;

    #[test]
    fn sizes_are_read_without_pixels() {
        let gif = b"GIF89a\x03\x00\x02\x00\x00\x00\x00,\x00\x00\x00\x00\x03\x00\x02\x00\x00";
        assert_eq!(declared_size(gif), Some((3, 2)));
        assert_eq!(declared_size(b"no picture"), None);
        assert_eq!(declared_size(b""), None);
    }
}
