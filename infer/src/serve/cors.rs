//! Cross-origin resource sharing: pages of the origins given by `--allow-origin`.

use super::App;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base::{Error, Result};
use std::sync::Arc;

const REQUEST_PRIVATE_NETWORK: HeaderName = HeaderName::from_static("access-control-request-private-network");
const ALLOW_PRIVATE_NETWORK: HeaderName = HeaderName::from_static("access-control-allow-private-network");

/// Origins whose pages may read answers.
#[derive(Debug, Default)]
pub struct AllowedOrigins(Vec<String>);

impl AllowedOrigins {
    /// `origins` are `--allow-origin`'s.
    ///
    /// # Errors
    /// What a browser never sends as `Origin`, and so would match nothing.
    pub fn new(origins: &[String]) -> Result<Self> {
        for origin in origins {
            let is_origin = origin.split_once("://").is_some_and(|(scheme, rest)| {
                !scheme.is_empty() && !rest.is_empty() && !rest.contains(['/', '*', ' ', '@'])
            });
            if !is_origin && origin != "*" && origin != "null" {
                let expected = "scheme, host and, unless it is the default one, port, as https://app.example.org or \
                                http://localhost:3000, without a path or a final slash; * for every page";
                return Err(Error::usage("--allow-origin", format!("{origin:?}"), expected, "correct it"));
            }
        }
        Ok(Self(origins.iter().map(|origin| origin.to_ascii_lowercase()).collect()))
    }

    /// Whether any page on the web may read answers.
    pub fn is_everyone(&self) -> bool {
        self.0.iter().any(|origin| origin == "*")
    }

    fn allow(&self, origin: &HeaderValue) -> bool {
        let origin = origin.to_str().map(str::to_ascii_lowercase);
        self.is_everyone() || origin.is_ok_and(|origin| self.0.contains(&origin))
    }
}

/// Answers preflights of allowed origins, and lets their pages read answers and refusals alike.
pub async fn allow_origins(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    if app.allowed_origins.0.is_empty() {
        return next.run(request).await;
    }
    let origin = request.headers().get(header::ORIGIN).filter(|origin| app.allowed_origins.allow(origin)).cloned();
    let preflight =
        request.method() == Method::OPTIONS && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let mut response = match &origin {
        Some(_) if preflight => (StatusCode::NO_CONTENT, granted(request.headers())).into_response(),
        _ => next.run(request).await,
    };
    let headers = response.headers_mut();
    // Caches must not give one origin's answer to another.
    headers.append(header::VARY, HeaderValue::from_static("origin"));
    if let Some(origin) = origin {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("retry-after, x-should-retry"));
    }
    response
}

/// What a preflight asks for: any header (clients send their own, as x-stainless-os), and the way into a private network.
fn granted(asked: &HeaderMap) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, HEAD, POST, OPTIONS"));
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    if let Some(names) = asked.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, names.clone());
    }
    if asked.contains_key(REQUEST_PRIVATE_NETWORK) {
        headers.insert(ALLOW_PRIVATE_NETWORK, HeaderValue::from_static("true"));
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_compared_whole() {
        let given = ["https://App.example.org".to_string(), "http://localhost:3000".to_string(), "null".to_string()];
        let origins = AllowedOrigins::new(&given).expect("accepted");
        for (origin, allowed) in [
            ("https://app.example.org", true),
            ("http://localhost:3000", true),
            ("null", true),
            ("http://app.example.org", false),
            ("https://app.example.org:8443", false),
            ("https://app.example.org.evil.example", false),
            ("http://localhost:30000", false),
        ] {
            assert_eq!(origins.allow(&HeaderValue::from_static(origin)), allowed, "{origin}");
        }
        assert!(!origins.is_everyone());
        let everyone = AllowedOrigins::new(&["*".to_string()]).expect("accepted");
        assert!(everyone.allow(&HeaderValue::from_static("https://any.example")));
        for bad in ["app.example.org", "https://app.example.org/", "https://*.example.org", "", "https://"] {
            assert!(AllowedOrigins::new(&[bad.to_string()]).is_err(), "{bad}");
        }
    }
}
