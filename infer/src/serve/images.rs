//! Pictures of a request: data URIs, and remote ones where allowed.

use super::args::Limits;
use super::chat_request::ImageUrl;
use super::data_uri;
use super::error::ApiError;
use super::remote;
use axum::http::StatusCode;
use common::image_processor::{ImageError, ImageProcessor, ProcessedImage, declared_size};

/// The bytes of one picture file. Blocks while a remote one is fetched.
///
/// # Errors
/// 400 for a data URI or an address without a picture, 403 for a remote one where none is allowed.
pub fn read(url: &ImageUrl, limits: &Limits) -> Result<Vec<u8>, ApiError> {
    match url {
        ImageUrl::Data(uri) => data_uri::decode(uri)
            .map_err(|message| ApiError { code: "invalid_image", ..ApiError::invalid("messages", message) }),
        ImageUrl::Remote(url) if limits.allow_remote_images => remote::fetch(url, limits.max_body_bytes),
        ImageUrl::Remote(_) => {
            let message = "remote picture addresses are not allowed here; send the picture as a data: URI";
            Err(ApiError::refused(StatusCode::FORBIDDEN, "remote_image_refused", message))
        }
    }
}

/// Decodes and processes a picture file; its declared size is looked at before memory is taken for its pixels.
///
/// # Errors
/// 400 for what is no usable picture, 413 for too many pixels.
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
