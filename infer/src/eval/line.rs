//! Lines of the files that `infer eval` writes.

use crate::answers::journal;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One question's answer. `question_id`, `prompt` and `text` are where LLaVA's files of answers have them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Line {
    /// Position in the file of questions, from 0.
    pub index: usize,
    /// As the file of questions has it.
    pub question_id: Value,
    /// File name; several joined by `, `.
    pub image: String,
    /// The question, with the text after it.
    pub prompt: String,
    /// The answer, trimmed; empty where there is none.
    pub text: String,
    /// `stop` or `length`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub finish_reason: Option<String>,
    /// Tokens of the answer, end included.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub new_tokens: Option<usize>,
    /// Why there is no answer.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<String>,
}

impl journal::Line for Line {
    const PROGRAM: &str = "infer eval";

    fn index(&self) -> usize {
        self.index
    }
}

/// One answer beside what is expected.
#[derive(Debug, Serialize)]
pub(super) struct Scored<'a> {
    pub question_id: &'a Value,
    pub image: &'a str,
    pub text: &'a str,
    /// 0 to 1; absent for a metric of the whole set, and where there is no answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
    pub expected: &'a [String],
}
