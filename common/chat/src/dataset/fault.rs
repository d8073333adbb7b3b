//! Why a record cannot be used.

/// Kinds of faults that a record's JSON can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Not an object with the documented keys and the right types.
    BadRow,
    /// A key that changes the row and is not read: `videos`, `tools`, ….
    UnreadKey,
    /// No conversation.
    NoTurns,
    /// Turns that do not alternate question, answer; an unknown speaker.
    BadTurns,
    /// An answer without text.
    EmptyAnswer,
    /// `<image>` markers and images are not equally many.
    ImageMarkers,
}

/// Why one record cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct RecordError {
    /// Which kind.
    pub fault: Fault,
    /// What exactly, with line and column where they help.
    pub detail: String,
}

impl RecordError {
    pub(super) fn new(fault: Fault, detail: impl Into<String>) -> Self {
        Self { fault, detail: detail.into() }
    }
}
