//! Refusals as OpenAI's error objects.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

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
}

impl ApiError {
    fn new(status: StatusCode, code: &'static str, message: impl ToString) -> Self {
        Self { status, message: message.to_string(), param: None, code, retry_after: None }
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

    /// 503: did not finish in time.
    pub fn timed_out() -> Self {
        let message = "the request did not finish in the time allowed; ask for fewer tokens or try again later";
        Self { retry_after: Some(10), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "timeout", message) }
    }

    /// 503: the model cannot answer any more, or the server is stopping.
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
        response
    }
}
