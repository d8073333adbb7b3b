//! Why a record cannot be used.

/// What to do about a row whose text is empty.
pub(super) const EMPTY_TEXT_REMEDY: &str = "write its text, or take the row out";

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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordError {
    /// Which kind.
    pub fault: Fault,
    /// Where its JSON is at fault (`chat.json line 2, column 12`); `None` for a fault of the row as a whole.
    pub place: Option<String>,
    /// What exactly.
    pub detail: String,
}

impl std::fmt::Display for RecordError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        f.write_str(&self.detail)
    }
}

impl std::error::Error for RecordError {}

impl RecordError {
    pub(super) fn new(fault: Fault, detail: impl Into<String>) -> Self {
        Self { fault, place: None, detail: detail.into() }
    }
}
