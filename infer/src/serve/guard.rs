//! Admission of requests: API key, host name, free places.

use super::App;
use super::error::ApiError;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base::{Error, Result};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Probes of load balancers and supervisors ask here, without a key and under any name.
pub const HEALTH: &str = "/health";

/// Marks requests on a connection beyond the limit.
#[derive(Clone, Copy)]
pub struct BeyondLimit;

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

/// 503 on connections beyond the limit and while the server stops; /health says for itself how the server is.
pub async fn require_room(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    if app.stopping.load(Ordering::SeqCst) && path != HEALTH && path != "/metrics" {
        return ApiError::stopping().into_response();
    }
    if request.extensions().get::<BeyondLimit>().is_some() && path != HEALTH {
        return ApiError::too_many_connections().into_response();
    }
    next.run(request).await
}

/// 204 with the methods, for any OPTIONS: HAProxy's health check is one, and a browser's preflight that `cors` has not
/// answered is refused by the absence of its headers.
pub async fn answer_options(request: Request, next: Next) -> Response {
    if request.method() != Method::OPTIONS {
        return next.run(request).await;
    }
    let allow = [(header::ALLOW, HeaderValue::from_static("GET, HEAD, POST, OPTIONS"))];
    (StatusCode::NO_CONTENT, allow).into_response()
}

/// Names in `Host` under which a server answers.
///
/// A page of another site can have its own name resolve to this machine ("DNS rebinding") and would then read answers as
/// if they were its own; the browser still sends the page's name. A server without a key that listens on a loopback
/// address therefore answers only to names that nobody can register.
#[derive(Debug)]
pub struct AllowedHosts {
    checked: bool,
    names: Vec<String>,
}

impl AllowedHosts {
    /// `names` are `--allowed-host`'s. Nothing is checked where a key is required; on other than loopback addresses only
    /// if names are given.
    ///
    /// # Errors
    /// A name that is none.
    pub fn new(address: IpAddr, has_key: bool, names: &[String]) -> Result<Self> {
        for name in names {
            let is_name = |name: &str| !name.is_empty() && !name.contains(['/', ':', ' ', '*', '@']);
            if name != "*" && !is_name(name.strip_prefix('.').unwrap_or(name)) {
                let expected = "a name without scheme and port, as llava.example.org; .example.org for a domain with all \
                                names in it; * for every name";
                return Err(Error::usage("--allowed-host", format!("{name:?}"), expected, "correct it"));
            }
        }
        let checked = !has_key && (address.is_loopback() || !names.is_empty());
        Ok(Self { checked, names: names.iter().map(|name| name.to_ascii_lowercase()).collect() })
    }

    /// Whether a `Host` (with or without port) may be answered to.
    fn allow(&self, host: &str) -> bool {
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
            _ => host,
        };
        let name = name.to_ascii_lowercase();
        let name = name.strip_suffix('.').unwrap_or(&name);
        !self.checked || cannot_be_registered(name) || self.names.iter().any(|allowed| matches(allowed, name))
    }
}

fn matches(allowed: &str, name: &str) -> bool {
    match allowed.strip_prefix('.') {
        Some(domain) => name.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')),
        None => allowed == "*" || allowed == name,
    }
}

/// Addresses, which are no names; no name at all, which no browser sends; a single word, as containers and `upstream`
/// blocks of proxies have; and names below domains that are reserved for local use: host.docker.internal and its like.
fn cannot_be_registered(name: &str) -> bool {
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    address.parse::<IpAddr>().is_ok()
        || !name.contains('.')
        || name.ends_with(".localhost")
        || name.ends_with(".internal")
}

/// 421 for a name under which this server does not answer.
pub async fn require_host(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let allowed = |value: &HeaderValue| value.to_str().is_ok_and(|host| app.allowed_hosts.allow(host));
    let named = request.uri().authority().is_none_or(|authority| app.allowed_hosts.allow(authority.as_str()));
    if request.uri().path() == HEALTH || named && request.headers().get_all(header::HOST).iter().all(allowed) {
        return next.run(request).await;
    }
    let host = request.headers().get(header::HOST).map(|host| String::from_utf8_lossy(host.as_bytes()).into_owned());
    let message = format!(
        "this server does not answer under the name {:?}; start it with --allowed-host NAME or with --api-key",
        host.unwrap_or_default()
    );
    ApiError::refused(StatusCode::MISDIRECTED_REQUEST, "wrong_host", message).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(address: &str, has_key: bool, names: &[&str]) -> Result<AllowedHosts> {
        let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
        AllowedHosts::new(address.parse().expect("an address"), has_key, &names)
    }

    #[test]
    fn names_that_nobody_can_register_are_answered_to() {
        let local = hosts("127.0.0.1", false, &[]).expect("accepted");
        for good in [
            "localhost",
            "LOCALHOST:80",
            "localhost.",
            "llava.localhost:3000",
            "127.0.0.1:8000",
            "[::1]:8000",
            "[::1]",
            "172.17.0.1",
            "8.8.8.8:80",
            "infer",
            "my_upstream:80",
            "host.docker.internal:8000",
            "host.containers.internal",
            "",
        ] {
            assert!(local.allow(good), "{good}");
        }
        for bad in [
            "evil.example",
            "127.0.0.1.evil.example:80",
            "localhost.evil.example",
            "evillocalhost.example.",
            "internal.evil.example",
            "1.2.3.4.5",
            "[::1].evil.example",
        ] {
            assert!(!local.allow(bad), "{bad}");
        }
    }

    #[test]
    fn further_names_are_given() {
        let given = hosts("127.0.0.1", false, &["llava.example.org", ".Example.com"]).expect("accepted");
        for (host, allowed) in [
            ("llava.example.org", true),
            ("LLaVA.example.org:443", true),
            ("a.llava.example.org", false),
            ("example.com", true),
            ("a.b.example.com", true),
            ("badexample.com", false),
        ] {
            assert_eq!(given.allow(host), allowed, "{host}");
        }
        assert!(hosts("::1", false, &["*"]).expect("accepted").allow("any.example"));
        for bad in ["http://a.example", "a.example:80", "", ".", "*.example.org", "a b"] {
            assert!(hosts("127.0.0.1", false, &[bad]).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_key_or_a_public_address_ends_the_check() {
        assert!(hosts("127.0.0.1", true, &[]).expect("accepted").allow("any.example"));
        assert!(hosts("0.0.0.0", false, &[]).expect("accepted").allow("any.example"));
        let restricted = hosts("0.0.0.0", false, &["llava.example.org"]).expect("accepted");
        assert!(restricted.allow("llava.example.org") && !restricted.allow("any.example"));
    }

    #[test]
    fn keys_are_compared_whole() {
        assert!(same(b"abc", b"abc"));
        assert!(!same(b"abc", b"abd") && !same(b"ab", b"abc") && !same(b"", b"abc"));
    }
}
