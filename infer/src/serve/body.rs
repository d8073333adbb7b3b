//! A request's body, received within limits of size, time and memory.

use super::error::ApiError;
use axum::body::Body;
use axum::http::{HeaderMap, StatusCode, header};
use futures_util::StreamExt;
use std::time::{Duration, Instant};
use tokio::time::timeout_at;

/// Longest pause between two pieces of a body.
const STALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for any body, and for this many bytes of a long one: 20 MB may take 3.5 minutes.
const BODY_TIMEOUT: Duration = Duration::from_secs(20);
const BYTES_PER_SECOND: usize = 100_000;
/// Most JSON values and keys in a body: a value of two bytes (`0,`) takes dozens in memory.
const MAX_VALUES: usize = 100_000;

/// Checks the headers and returns the length that they declare.
///
/// Browsers let foreign pages post text without asking, but not JSON: so JSON is required.
///
/// # Errors
/// 415 for another type than JSON, 413 for too many bytes.
pub fn declared_length(headers: &HeaderMap, max_bytes: usize) -> Result<Option<usize>, ApiError> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !content_type.trim_start().to_ascii_lowercase().starts_with("application/json") {
        let message = "expected Content-Type: application/json";
        return Err(ApiError::refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message));
    }
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if declared.is_some_and(|bytes| bytes > max_bytes) {
        return Err(too_large(max_bytes));
    }
    Ok(declared)
}

/// Receives a body.
///
/// # Errors
/// 413 for too many bytes, 408 for a client that sends too slowly, 400 for one that breaks off or sends too many values.
pub async fn receive(
    body: Body,
    declared: Option<usize>,
    max_bytes: usize,
    deadline: Instant,
) -> Result<Vec<u8>, ApiError> {
    let begin = Instant::now();
    let mut pieces = body.into_data_stream();
    let mut received = Vec::with_capacity(declared.unwrap_or(0));
    loop {
        let allowed = BODY_TIMEOUT + Duration::from_secs((received.len() / BYTES_PER_SECOND) as u64);
        let until = (begin + allowed).min(Instant::now() + STALL_TIMEOUT).min(deadline);
        match timeout_at(until.into(), pieces.next()).await.map_err(|_| too_slow())? {
            Some(Ok(bytes)) if received.len() + bytes.len() > max_bytes => return Err(too_large(max_bytes)),
            Some(Ok(bytes)) => received.extend_from_slice(&bytes),
            Some(Err(_)) => return Err(ApiError::invalid("", "the body broke off")),
            None => break,
        }
    }
    if has_more_values_than(&received, MAX_VALUES) {
        return Err(ApiError::invalid("", format!("the body has more than {MAX_VALUES} JSON values")));
    }
    Ok(received)
}

fn too_large(max_bytes: usize) -> ApiError {
    let message = format!("the body has more than {max_bytes} bytes");
    ApiError::refused(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
}

fn too_slow() -> ApiError {
    ApiError::refused(StatusCode::REQUEST_TIMEOUT, "body_timeout", "the body did not arrive in time")
}

/// Counts what separates values, outside of strings.
fn has_more_values_than(json: &[u8], most: usize) -> bool {
    let (mut values, mut in_string, mut escaped) = (0, false, false);
    for &byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b',' | b':' | b'[' | b'{' if !in_string => values += 1,
            _ => (),
        }
    }
    values > most
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_counted_outside_of_strings() {
        for (json, values) in [
            (r#"{"a": [1, 2, {"b": "c"}]}"#, 7),
            (r#""a, b: [c] {d}""#, 0),
            (r#"["\",,,\\", 1]"#, 2),
            (r#"["\\\\", ","]"#, 2),
            ("[0,0,0", 3),
            ("", 0),
        ] {
            assert!(!has_more_values_than(json.as_bytes(), values), "{json}");
            assert!(values == 0 || has_more_values_than(json.as_bytes(), values - 1), "{json}");
        }
    }

    #[tokio::test]
    async fn bodies_end_at_their_limit() {
        let receive = |text: &str, declared| {
            let until = Instant::now() + Duration::from_secs(60);
            receive(Body::from(text.to_string()), declared, 1 << 20, until)
        };
        assert_eq!(receive("[1]", None).await.expect("in time"), b"[1]");
        let long = "1".repeat((1 << 20) + 1);
        assert_eq!(receive(&long, Some(4)).await.unwrap_err().status, StatusCode::PAYLOAD_TOO_LARGE);
        let many = format!("[{}0]", "0,".repeat(MAX_VALUES));
        assert_eq!(receive(&many, None).await.unwrap_err().status, StatusCode::BAD_REQUEST);
    }
}
