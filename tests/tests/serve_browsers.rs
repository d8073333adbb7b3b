//! `infer serve` under other names and for web pages of other origins.

use tests::connections::short;
use tests::server::{CHAT, JSON, Server, split};

/// Status of a GET with these headers, HTTP/1.0 without `Host` where none is given.
fn status(server: &Server, path: &str, host: Option<&str>, headers: &str) -> u16 {
    let request = match host {
        Some(host) => format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{headers}\r\n"),
        None => format!("GET {path} HTTP/1.0\r\n{headers}\r\n"),
    };
    split(&server.raw(request.as_bytes())).0
}

/// What proxies, containers and probes send as Host, and what a page with a name of its own sends.
#[test]
fn names_of_proxies_are_answered_to_and_foreign_ones_are_not() {
    let plain = Server::start(&[]);
    let named = Server::start(&["--allowed-host", "llava.example.org", "--allowed_host", ".apps.example.com"]);
    let keyed = Server::start(&["--api-key", "secret"]);
    let key = "Authorization: Bearer secret\r\n";
    for (host, without, with_names) in [
        (Some("localhost:8000"), 200, 200),
        (Some("127.0.0.1"), 200, 200),
        (Some("10.1.2.3:8000"), 200, 200),
        (Some("my_upstream"), 200, 200),
        (Some("infer:8000"), 200, 200),
        (Some("host.docker.internal:18101"), 200, 200),
        (Some(""), 200, 200),
        (None, 200, 200),
        (Some("llava.example.org"), 421, 200),
        (Some("LLAVA.example.org:443"), 421, 200),
        (Some("a.apps.example.com"), 421, 200),
        (Some("evil.example"), 421, 421),
        (Some("localhost.evil.example"), 421, 421),
    ] {
        assert_eq!(status(&plain, "/v1/models", host, ""), without, "{host:?}");
        assert_eq!(status(&named, "/v1/models", host, ""), with_names, "{host:?} with names");
        assert_eq!(status(&keyed, "/v1/models", host, key), 200, "{host:?} with the key");
        assert_eq!(status(&keyed, "/v1/models", host, ""), 401, "{host:?} without the key");
        for server in [&plain, &named, &keyed] {
            assert_eq!(status(server, "/health", host, ""), 200, "{host:?}: health");
        }
    }
    // A name in the request's target counts as one in Host.
    let absolute =
        plain.raw(b"GET http://evil.example/v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    assert_eq!(split(&absolute).0, 421);
    // HAProxy's default check.
    for path in ["/", "/health"] {
        let answer = plain.raw(format!("OPTIONS {path} HTTP/1.0\r\n\r\n").as_bytes());
        assert_eq!(split(&answer).0, 204, "{answer}");
    }
}

/// Header of an answer, by its lower-case name.
fn header(head: &str, name: &str) -> Option<String> {
    let line = head.lines().find(|line| line.to_lowercase().starts_with(&format!("{name}: ")))?;
    line.split_once(": ").map(|(_, value)| value.to_string())
}

fn request(server: &Server, method: &str, path: &str, headers: &str, body: &str) -> (u16, String) {
    let (status, head, _) = server.send(method, path, headers, body.as_bytes());
    (status, head)
}

#[test]
fn pages_of_allowed_origins_may_read_answers() {
    const ORIGIN: &str = "access-control-allow-origin";
    let app = "Origin: http://localhost:3000\r\n";
    let foreign = "Origin: https://evil.example\r\n";
    let asked = "Access-Control-Request-Method: POST\r\n\
                 Access-Control-Request-Headers: authorization,content-type,x-stainless-os\r\n";
    let body = short().to_string();

    let closed = Server::start(&[]);
    let (status, head) = request(&closed, "OPTIONS", CHAT, &format!("{app}{asked}"), "");
    assert_eq!((status, header(&head, ORIGIN), header(&head, "access-control-allow-headers")), (204, None, None));
    assert_eq!(header(&request(&closed, "GET", "/v1/models", app, "").1, ORIGIN), None);

    let open = Server::start(&["--allow-origin", "http://localhost:3000", "--api-key", "secret"]);
    // A preflight carries no key.
    let (status, head) = request(&open, "OPTIONS", CHAT, &format!("{app}{asked}"), "");
    assert_eq!(status, 204);
    for (name, value) in [
        (ORIGIN, "http://localhost:3000"),
        ("access-control-allow-headers", "authorization,content-type,x-stainless-os"),
        ("access-control-allow-methods", "GET, HEAD, POST, OPTIONS"),
        ("vary", "origin"),
    ] {
        assert_eq!(header(&head, name).as_deref(), Some(value), "{name}: {head}");
    }
    let key = "Authorization: Bearer secret\r\n";
    for (headers, body, expected) in [
        (format!("{app}{key}{JSON}"), body.as_str(), 200),
        (format!("{app}{JSON}"), body.as_str(), 401),
        (format!("{app}{key}{JSON}"), "{", 400),
    ] {
        let (status, head) = request(&open, "POST", CHAT, &headers, body);
        assert_eq!((status, header(&head, ORIGIN).as_deref()), (expected, Some("http://localhost:3000")), "{head}");
    }
    let (_, head) = request(&open, "OPTIONS", CHAT, &format!("{foreign}{asked}"), "");
    assert_eq!((header(&head, ORIGIN), header(&head, "access-control-allow-headers")), (None, None));
    let (_, head) = request(&open, "GET", "/v1/models", &format!("{foreign}{key}"), "");
    assert_eq!((header(&head, ORIGIN), header(&head, "vary").as_deref()), (None, Some("origin")));

    let everyone = Server::start(&["--allow-origin", "*"]);
    let (_, head) = request(&everyone, "GET", "/v1/models", foreign, "");
    assert_eq!(header(&head, ORIGIN).as_deref(), Some("https://evil.example"));
}

#[test]
fn streams_are_not_to_be_buffered() {
    let server = Server::start(&[]);
    let mut body = short();
    body["stream"] = true.into();
    let (status, head) = request(&server, "POST", CHAT, JSON, &body.to_string());
    assert_eq!(status, 200);
    assert_eq!(header(&head, "x-accel-buffering").as_deref(), Some("no"), "{head}");
    assert_eq!(header(&head, "cache-control").as_deref(), Some("no-cache"), "{head}");
}
