//! `/v1/chat/completions`: OpenAI's response and stream objects.

use model::generate::FinishReason;
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};

/// Fields that all objects of one response share.
#[derive(Clone, Debug)]
pub struct ResponseHead {
    id: String,
    created: u64,
    model: String,
}

impl ResponseHead {
    /// A head with an id of its own.
    pub fn new(model: &str) -> Self {
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Self { id: format!("chatcmpl-{:032x}", rand::random::<u128>()), created, model: model.to_string() }
    }

    /// The whole answer.
    pub fn completion(&self, text: &str, reason: FinishReason, usage: Value) -> Value {
        json!({
            "id": self.id, "object": "chat.completion", "created": self.created, "model": self.model,
            "choices": [{
                "index": 0,
                "message": {"role": "assistant", "content": text, "refusal": null},
                "logprobs": null,
                "finish_reason": reason.as_str(),
            }],
            "usage": usage,
        })
    }

    /// A piece of the answer.
    pub fn chunk(&self, delta: Value, reason: Option<FinishReason>) -> Value {
        let choice = json!({
            "index": 0, "delta": delta, "logprobs": null, "finish_reason": reason.map(FinishReason::as_str),
        });
        self.event(json!([choice]), None)
    }

    /// The event after the last piece, with the token counts.
    pub fn usage_chunk(&self, usage: Value) -> Value {
        self.event(json!([]), Some(usage))
    }

    fn event(&self, choices: Value, usage: Option<Value>) -> Value {
        let mut event = json!({
            "id": self.id, "object": "chat.completion.chunk", "created": self.created, "model": self.model,
            "choices": choices,
        });
        if let Some(usage) = usage {
            event["usage"] = usage;
        }
        event
    }
}

/// Token counts; a picture counts as many as it has features.
pub fn usage(prompt_tokens: usize, completion_tokens: usize) -> Value {
    json!({
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    })
}
