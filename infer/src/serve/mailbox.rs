//! Output of the model thread that a client has not read yet.
//!
//! The model thread never waits: it appends and continues. A slow client finds more text at once; what can gather is bounded
//! by the request's token limit. A client that is gone drops its end, which the model thread sees.

use super::error::ApiError;
use model::generate::FinishReason;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::Notify;

/// How an answer ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Whole.
    Finished {
        /// Why it ended.
        reason: FinishReason,
        /// Tokens of the answer, end included.
        completion_tokens: usize,
    },
    /// Broken off.
    Failed(ApiError),
}

/// What a client takes at once.
#[derive(Debug, Default)]
pub struct Delivery {
    /// New text; can be empty.
    pub text: String,
    /// Set with the last delivery.
    pub outcome: Option<Outcome>,
}

#[derive(Default)]
struct Shared {
    waiting: Mutex<Delivery>,
    changed: Notify,
}

/// The model thread's end.
pub struct Sender(Arc<Shared>);

/// The client's end.
pub struct Receiver(Arc<Shared>);

/// A new, empty mailbox.
pub fn mailbox() -> (Sender, Receiver) {
    let shared = Arc::new(Shared::default());
    (Sender(shared.clone()), Receiver(shared))
}

impl Shared {
    /// A panic elsewhere does not spoil a text: its lock is taken as it is.
    fn lock(&self) -> MutexGuard<'_, Delivery> {
        self.waiting.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Sender {
    /// Adds text.
    pub fn write(&self, text: &str) {
        if !text.is_empty() {
            self.0.lock().text.push_str(text);
            self.0.changed.notify_one();
        }
    }

    /// Ends the answer.
    pub fn finish(self, outcome: Outcome) {
        self.0.lock().outcome = Some(outcome);
        self.0.changed.notify_one();
    }

    /// True when nobody will take anything any more.
    pub fn abandoned(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }
}

impl Drop for Sender {
    /// A model thread that ends without a word still ends its answers.
    fn drop(&mut self) {
        let mut waiting = self.0.lock();
        if waiting.outcome.is_none() {
            waiting.outcome =
                Some(Outcome::Failed(ApiError::unavailable("the model stopped before the answer was whole")));
            drop(waiting);
            self.0.changed.notify_one();
        }
    }
}

impl Receiver {
    /// Waits until there is something, and takes all of it.
    pub async fn take(&mut self) -> Delivery {
        loop {
            {
                let mut waiting = self.0.lock();
                if !waiting.text.is_empty() || waiting.outcome.is_some() {
                    return Delivery { text: std::mem::take(&mut waiting.text), outcome: waiting.outcome.clone() };
                }
            }
            self.0.changed.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn text_gathers_and_the_end_comes_once() {
        let (sender, mut receiver) = mailbox();
        sender.write("a");
        sender.write("b");
        assert_eq!(receiver.take().await.text, "ab");
        assert!(!sender.abandoned());
        sender.finish(Outcome::Finished { reason: FinishReason::Stop, completion_tokens: 2 });
        assert!(matches!(receiver.take().await.outcome, Some(Outcome::Finished { completion_tokens: 2, .. })));
    }

    #[tokio::test]
    async fn both_ends_notice_that_the_other_is_gone() {
        let (sender, receiver) = mailbox();
        drop(receiver);
        assert!(sender.abandoned());
        let (sender, mut receiver) = mailbox();
        drop(sender);
        assert!(matches!(receiver.take().await.outcome, Some(Outcome::Failed(_))));
    }
}
