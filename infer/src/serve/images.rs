//! Pictures of a request: data URIs, and remote ones where allowed.

use super::args::Limits;
use super::chat_request::{ImagePart, ImageUrl};
use super::data_uri;
use super::error::ApiError;
use super::remote;
use axum::http::StatusCode;
use images::image_processor::{ImageError, ImageProcessor, ProcessedImage, declared_size};

/// A picture file and the field that names it.
pub struct ImageFile {
    /// As it came.
    pub bytes: Vec<u8>,
    /// `messages[0].content[1].image_url.url`
    pub place: String,
}

/// The picture files of a request with the fields that name them. Blocks while remote ones are fetched, which together may
/// have as many bytes as a body.
///
/// # Errors
/// 400 for a data URI or an address without a picture, 403 for a remote one where none is allowed.
pub fn read_all(images: Vec<ImagePart>, limits: &Limits) -> Result<Vec<ImageFile>, ApiError> {
    let mut remote_bytes = limits.max_body_bytes;
    let mut files = Vec::with_capacity(images.len());
    for ImagePart { source, place } in images {
        let bytes = read(&source, limits, remote_bytes).map_err(|error| error.about(&place))?;
        if matches!(source, ImageUrl::Remote(_)) {
            remote_bytes -= bytes.len().min(remote_bytes);
        }
        files.push(ImageFile { bytes, place });
    }
    Ok(files)
}

fn read(url: &ImageUrl, limits: &Limits, remote_bytes: usize) -> Result<Vec<u8>, ApiError> {
    match url {
        ImageUrl::Data(uri) => data_uri::decode(uri)
            .map_err(|message| ApiError { code: "invalid_image", ..ApiError::invalid("messages", message) }),
        ImageUrl::Remote(url) if limits.allow_remote_images => remote::fetch(url, remote_bytes),
        ImageUrl::Remote(_) => {
            let message = "remote picture addresses are not allowed here; send the picture as a data: URI";
            Err(ApiError::refused(StatusCode::FORBIDDEN, "remote_image_refused", message))
        }
    }
}

/// What decoding takes at most for a pixel: samples (four of 16 bits) and what a decoder holds beside them, bytes.
const BYTES_PER_PIXEL: usize = 12;

/// Memory that decoding the largest of these files takes, bytes; as for the largest picture where none is declared.
pub fn scratch_bytes(files: &[ImageFile], max_pixels: u64) -> usize {
    let pixels = files.iter().map(|file| match declared_size(&file.bytes) {
        // Larger ones are refused before they are decoded.
        Some((width, height)) => {
            Some(u64::from(width) * u64::from(height)).filter(|&pixels| pixels <= max_pixels).unwrap_or(0)
        }
        None => max_pixels,
    });
    usize::try_from(pixels.max().unwrap_or(0)).unwrap_or(usize::MAX).saturating_mul(BYTES_PER_PIXEL)
}

/// Decodes and processes a picture file; its declared size is looked at before memory is taken for its pixels.
///
/// # Errors
/// 400 for unusable pictures, 413 for too many pixels.
pub fn process(bytes: &[u8], processor: &ImageProcessor, max_pixels: u64) -> Result<ProcessedImage, ApiError> {
    let check = |(width, height): (u32, u32)| {
        if u64::from(width) * u64::from(height) <= max_pixels {
            return Ok(());
        }
        let message = format!("picture of {width} × {height}: more than {max_pixels} pixels");
        Err(ApiError::refused(StatusCode::PAYLOAD_TOO_LARGE, "image_too_large", message))
    };
    declared_size(bytes).map_or(Ok(()), check)?;
    let image = processor.process(bytes).map_err(refusal)?;
    check((image.width, image.height))?;
    Ok(image)
}

fn refusal(error: ImageError) -> ApiError {
    match error {
        ImageError::TooLarge { .. } => ApiError::refused(StatusCode::PAYLOAD_TOO_LARGE, "image_too_large", error),
        ImageError::Unidentified(_) | ImageError::Damaged(_) => {
            ApiError { code: "invalid_image", ..ApiError::invalid("messages", format!("picture: {error}")) }
        }
    }
}
