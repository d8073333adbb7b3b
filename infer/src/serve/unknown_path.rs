//! 404 and 405: messages for clients that use addresses of OpenAI, Ollama or Anthropic that are not served.

use super::error::ApiError;
use axum::http::{Method, StatusCode, Uri};

/// The addresses served, in a message.
const SERVED: &str = "POST /v1/chat/completions, GET /v1/models, GET /health, GET /metrics and the page at GET /";

/// The same, as paths.
const ADDRESSES: [&str; 4] = [super::CHAT, "/v1/models", super::guard::HEALTH, "/metrics"];

/// 404.
pub async fn not_found(method: Method, uri: Uri) -> ApiError {
    ApiError::refused(StatusCode::NOT_FOUND, "unknown_url", message(&method, uri.path()))
}

/// 405.
pub async fn method_not_allowed(method: Method, uri: Uri) -> ApiError {
    let message =
        format!("{method} {}: this address takes another method; this server has {SERVED}", short(uri.path()));
    ApiError::refused(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
}

fn message(method: &Method, path: &str) -> String {
    let parts = || path.split('/').filter(|part| !part.is_empty());
    let without_slashes = format!("/{}", parts().collect::<Vec<_>>().join("/"));
    if without_slashes != path && ADDRESSES.contains(&without_slashes.as_str()) {
        return format!("{method} {} does not exist; write {without_slashes}, without further slashes", short(path));
    }
    let is_chat = without_slashes.ends_with("chat/completions");
    let remedy = match parts().next_back() {
        _ if is_chat => "end the client's base URL with /v1",
        Some("models") => "end the client's base URL with /v1",
        Some("responses") => {
            "choose the client's chat completions API instead of its Responses API: POST /v1/chat/completions"
        }
        Some("completions" | "complete" | "generate") => {
            "send the prompt as a user message to POST /v1/chat/completions"
        }
        Some("chat" | "messages") => "choose an OpenAI-compatible client: POST /v1/chat/completions",
        Some("embeddings" | "moderations" | "generations" | "speech" | "transcriptions") => {
            "this model answers POST /v1/chat/completions only"
        }
        _ => "check the address",
    };
    format!("{method} {} does not exist; this server has {SERVED}; {remedy}", short(path))
}

/// A path in a message.
fn short(path: &str) -> String {
    path.chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_names_what_is_served_and_what_to_do() {
        for (path, remedy) in [
            ("/v1/responses", "instead of its Responses API"),
            ("/v1/completions", "as a user message"),
            ("/v1/embeddings", "POST /v1/chat/completions only"),
            ("/v1/moderations", "POST /v1/chat/completions only"),
            ("/v1/messages", "OpenAI-compatible client"),
            ("/api/chat", "OpenAI-compatible client"),
            ("/chat/completions", "base URL with /v1"),
            ("/v1/v1/chat/completions/", "base URL with /v1"),
            ("/models", "base URL with /v1"),
            ("/v1/nothing", "check the address"),
        ] {
            let message = message(&Method::POST, path);
            assert!(message.contains("this server has POST /v1/chat/completions"), "{message}");
            assert!(message.contains(remedy) && message.starts_with(&format!("POST {path} ")), "{message}");
        }
        for (path, address) in [
            ("/v1/chat/completions/", "/v1/chat/completions"),
            ("//v1/chat/completions", "/v1/chat/completions"),
            ("/v1//models", "/v1/models"),
            ("/health/", "/health"),
            ("/metrics//", "/metrics"),
        ] {
            let message = message(&Method::POST, path);
            assert!(message.ends_with(&format!("write {address}, without further slashes")), "{message}");
        }
        assert!(message(&Method::GET, &"/x".repeat(100_000)).len() < 500);
    }
}
