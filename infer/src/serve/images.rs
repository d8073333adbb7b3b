//! Pictures of a request: data URIs, and remote ones where allowed.

use super::args::Limits;
use super::chat_request::ImageUrl;
use super::error::ApiError;
use super::remote;
use axum::http::StatusCode;
use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use common::image_processor::{ImageError, ImageProcessor, ProcessedImage, declared_size};

/// Standard alphabet, padding as it comes.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The bytes of one picture file. Blocks while a remote one is fetched.
///
/// # Errors
/// 400 for a data URI or an address without a picture, 403 for a remote one where none is allowed.
pub fn read(url: &ImageUrl, limits: &Limits) -> Result<Vec<u8>, ApiError> {
    match url {
        ImageUrl::Data(uri) => decode_data_uri(uri),
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

/// `data:image/png;base64,…` → bytes. The media type is not believed: the content says what it is.
fn decode_data_uri(uri: &str) -> Result<Vec<u8>, ApiError> {
    let bad = |message: &str| ApiError { code: "invalid_image", ..ApiError::invalid("messages", message) };
    let (head, data) = uri.split_once(',').ok_or_else(|| bad("data URI: no comma before the data"))?;
    if !head.to_ascii_lowercase().ends_with(";base64") {
        return Err(bad("data URI: expected data:image/…;base64,…"));
    }
    BASE64.decode(data.trim()).map_err(|error| bad(&format!("data URI: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_uris() {
        assert_eq!(decode_data_uri("data:image/png;base64,aGk=").unwrap(), b"hi");
        assert_eq!(decode_data_uri("DATA:;BASE64,aGk").unwrap(), b"hi");
        for bad in
            ["data:image/png;base64", "data:image/png,hi", "data:image/png;base64,a", "data:image/png;base64,$$$$"]
        {
            assert_eq!(decode_data_uri(bad).unwrap_err().status.as_u16(), 400, "{bad}");
        }
    }
}
