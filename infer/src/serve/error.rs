//! Refusals as OpenAI's error objects.

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// Why a request gets no answer.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    /// For people.
    pub message: String,
    /// The offending field, if one is.
    pub param: Option<String>,
    /// For programs.
    pub code: &'static str,
    /// Seconds after which to try again.
    pub retry_after: Option<u64>,
    /// False where asking again would do the same work to the same end. OpenAI's clients repeat a request twice after any
    /// 408, 409, 429 and 5xx, unless `x-should-retry: false` says not to.
    pub should_retry: bool,
}

impl ApiError {
    fn new(status: StatusCode, code: &'static str, message: impl ToString) -> Self {
        Self { status, message: message.to_string(), param: None, code, retry_after: None, should_retry: true }
    }

    /// 400: the field `param` is wrong.
    pub fn invalid(param: &str, message: impl ToString) -> Self {
        let param = (!param.is_empty()).then(|| param.to_string());
        Self { param, ..Self::new(StatusCode::BAD_REQUEST, "invalid_value", message) }
    }

    /// The same, about the field `param`.
    pub fn about(self, param: &str) -> Self {
        Self { param: Some(param.to_string()), ..self }
    }

    /// Another refusal.
    pub fn refused(status: StatusCode, code: &'static str, message: impl ToString) -> Self {
        Self::new(status, code, message)
    }

    /// 429: all places and the queue are taken.
    pub fn busy() -> Self {
        let message = "too many requests are waiting; try again shortly";
        Self { retry_after: Some(2), ..Self::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", message) }
    }

    /// 504: did not finish in time. Not 503, which invites to ask again: the same request would take the same time.
    pub fn timed_out() -> Self {
        let message = "the request did not finish in the time allowed; ask for fewer tokens or try again later";
        Self { should_retry: false, ..Self::new(StatusCode::GATEWAY_TIMEOUT, "timeout", message) }
    }

    /// 500: this request makes the model fail, and would again.
    pub fn broken() -> Self {
        let message = "the model failed on this request; the server's log says where";
        Self { should_retry: false, ..Self::new(StatusCode::INTERNAL_SERVER_ERROR, "model_failed", message) }
    }

    /// 503: the server takes no more requests.
    pub fn stopping() -> Self {
        Self { code: "stopping", ..Self::unavailable("the server is stopping; ask another one or try again later") }
    }

    /// 503: the server stopped before the answer was whole.
    pub fn broken_off() -> Self {
        Self { code: "stopping", ..Self::unavailable("the server stopped before the answer was whole") }
    }

    /// 503: more connections than `--max-connections`.
    pub fn too_many_connections() -> Self {
        let message = "too many connections have a request in progress; try again shortly";
        Self { code: "too_many_connections", retry_after: Some(2), ..Self::unavailable(message) }
    }

    /// 503: more bytes than `--max-request-memory`.
    pub fn memory_full() -> Self {
        let message = "the requests in progress take all memory that is set aside for them; try again shortly";
        Self { code: "memory_full", retry_after: Some(2), ..Self::unavailable(message) }
    }

    /// 503: the model cannot answer any more.
    pub fn unavailable(message: impl ToString) -> Self {
        Self { retry_after: Some(10), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message) }
    }

    /// `{"error": {…}}`
    pub fn body(&self) -> Value {
        let kind = match self.status.as_u16() {
            401 => "authentication_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        };
        json!({"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, axum::Json(self.body())).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if !self.should_retry {
            response.headers_mut().insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        response
    }
}
