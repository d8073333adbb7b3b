//! Who may ask: the key, and on a loopback address only pages of this server.

use super::App;
use super::error::ApiError;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::net::IpAddr;
use std::sync::Arc;

/// 401 unless the request carries the server's key, if it has one.
pub async fn require_key(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let Some(key) = &app.api_key else { return next.run(request).await };
    let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    // Names of schemes have no case (RFC 9110).
    let given =
        given.and_then(|value| value.split_once(' ')).filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    let given = given.map_or("", |(_, key)| key);
    if same(given.trim().as_bytes(), key.as_bytes()) {
        return next.run(request).await;
    }
    let message = "wrong or missing API key; send it as Authorization: Bearer KEY";
    ApiError::refused(StatusCode::UNAUTHORIZED, "invalid_api_key", message).into_response()
}

/// Compares in a time that depends on the lengths only.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

/// 421 for another host name on a loopback address: a foreign page that has its own name resolve to this machine
/// ("DNS rebinding") could otherwise read answers.
pub async fn require_host(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if app.host.is_loopback() && !is_loopback_name(host) {
        let message = "this server answers to localhost and loopback addresses only";
        return ApiError::refused(StatusCode::MISDIRECTED_REQUEST, "wrong_host", message).into_response();
    }
    next.run(request).await
}

fn is_loopback_name(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_names() {
        for good in ["localhost", "LOCALHOST:80", "127.0.0.1:8000", "[::1]:8000", "[::1]"] {
            assert!(is_loopback_name(good), "{good}");
        }
        for bad in ["", "evil.example", "127.0.0.1.evil.example:80", "localhost.evil.example", "8.8.8.8:80"] {
            assert!(!is_loopback_name(bad), "{bad}");
        }
    }

    #[test]
    fn keys_are_compared_whole() {
        assert!(same(b"abc", b"abc"));
        assert!(!same(b"abc", b"abd") && !same(b"ab", b"abc") && !same(b"", b"abc"));
    }
}
