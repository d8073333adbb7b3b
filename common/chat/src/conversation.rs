//! Conversation → ids: the template's text, cut where answers begin and end.

use super::{ChatProcessor, Message, Role, TokenizedSample};
use base::{Error, IGNORE_INDEX, Result};
use std::sync::Arc;

/// Ids of a part of a conversation.
pub struct Segment {
    pub ids: Vec<u32>,
    /// Whether the assistant writes it: an answer and the end of its turn.
    pub supervised: bool,
}

/// The template's text before an answer, encoded.
pub struct Beginning {
    segments: Vec<Segment>,
    /// The text of the last segment, for tokenizers whose tokens depend on the text before them.
    last_text: String,
    /// Of a beginning that an answer follows.
    answer: Option<AroundAnswer>,
}

/// The text of a finished conversation around its last answer.
struct AroundAnswer {
    before: String,
    after: String,
    /// The end of `before` that belongs to the answer ([`ChatProcessor::gap`]).
    gap: String,
}

/// A conversation's text, in pieces: `texts[0] answers[0] texts[1] …`.
struct Pieces {
    texts: Vec<String>,
    answers: Vec<String>,
}

impl Beginning {
    /// Ids of the whole beginning.
    pub fn ids(self) -> Vec<u32> {
        self.segments.into_iter().flat_map(|segment| segment.ids).collect()
    }
}

impl ChatProcessor {
    /// The beginning of `messages`, which end with a question.
    pub(super) fn beginning(&self, messages: &[Message]) -> Result<Beginning> {
        let pieces = self.pieces(messages, true)?;
        let places = places_of_answers(messages);
        let Pieces { texts, answers } = &pieces;
        let mut segments = Vec::with_capacity(2 * texts.len());
        let mut context = String::new();
        for (index, text) in texts.iter().enumerate() {
            let gap = match places.get(index) {
                Some(&place) => self.gap(&pieces.text_before_answer(index), &messages[..place])?.unwrap_or_default(),
                None => String::new(),
            };
            let text = &text[..text.len() - gap.len()];
            let ids;
            (ids, context) = match index {
                0 => (self.encode_start(text)?, text.to_string()),
                _ if self.contract.writes_end => self.encode_behind_end(self.behind_end(text)?)?,
                _ => (self.encode_behind(&context, text)?, context + text),
            };
            segments.push(Segment { ids, supervised: false });
            match answers.get(index) {
                None => {}
                Some(answer) if self.contract.writes_end => segments.push(self.answer(&context, &gap, answer)?),
                Some(answer) => {
                    let text = format!("{gap}{answer}");
                    segments.push(Segment { ids: self.encode_behind(&context, &text)?, supervised: true });
                    context.push_str(&text);
                }
            }
        }
        Ok(Beginning { segments, last_text: context, answer: None })
    }

    /// A beginning that an answer follows.
    pub(super) fn beginning_of_answer(&self, messages: &[Message]) -> Result<Beginning> {
        let beginning = self.beginning(messages)?;
        let (marked, marker) = with_answer(messages, unused_marker(messages));
        let finished = self.render(&marked, false)?;
        let (before, after) = finished.split_once(&marker).ok_or_else(|| rewritten("the answer"))?;
        let gap = self.gap(before, messages)?.ok_or_else(|| rewritten("the answer"))?;
        Ok(Beginning { answer: Some(AroundAnswer { before: before.into(), after: after.into(), gap }), ..beginning })
    }

    /// Ids and labels of a beginning and its answer.
    pub(super) fn finish(
        &self,
        beginning: &Arc<Beginning>,
        messages: &[Message],
        answer: &str,
    ) -> Result<TokenizedSample> {
        // As the template writes it: many trim.
        let (conversation, answer) = with_answer(messages, answer.to_string());
        let text = self.render(&conversation, false)?;
        let (gap, written) = beginning
            .answer
            .as_ref()
            .and_then(|AroundAnswer { before, after, gap }| {
                Some((gap, text.strip_prefix(before.as_str())?.strip_suffix(after.as_str())?))
            })
            .ok_or_else(|| rewritten(&answer))?;
        let answer = self.answer(&beginning.last_text, gap, written)?;
        let mut sample = TokenizedSample { input_ids: Vec::new(), labels: Vec::new() };
        for Segment { ids, supervised } in beginning.segments.iter().chain([&answer]) {
            let ids = ids.iter().map(|&id| id as i32);
            sample.labels.extend(ids.clone().map(|id| if *supervised { id } else { IGNORE_INDEX }));
            sample.input_ids.extend(ids);
        }
        Ok(sample)
    }

    /// The template's text between its generation prompt and the answer after `messages`; `before` is all text before this answer.
    /// It is that of the probes, unless the template numbers its turns. `None`: the text does not begin with the prompt.
    fn gap(&self, before: &str, messages: &[Message]) -> Result<Option<String>> {
        if before.ends_with(&self.contract.gap) {
            return Ok(Some(self.contract.gap.clone()));
        }
        let prompt = self.render(messages, true)?;
        Ok(before.strip_prefix(&prompt).map(String::from))
    }

    /// An answer, the template's text around it, and the end of the turn.
    fn answer(&self, context: &str, gap: &str, answer: &str) -> Result<Segment> {
        let ids = self.encode_behind(context, &format!("{gap}{answer}{}", self.contract.end))?;
        if ids.last() != Some(&self.contract.end_token_id) {
            return Err(rewritten("the end of a turn"));
        }
        Ok(Segment { ids, supervised: true })
    }

    /// Ids of the beginning of a conversation.
    ///
    /// # Source
    /// transformers 5.24 `processing_utils.py`, `ProcessorMixin.apply_chat_template`: the tokenizer's own start (Llama 2's `<s>`)
    /// comes first, unless the template has written `bos_token`.
    fn encode_start(&self, text: &str) -> Result<Vec<u32>> {
        let ids = self.encode(text)?;
        let is_started = self.bos_token.as_ref().is_some_and(|bos| text.starts_with(bos.as_str()));
        Ok(if is_started { ids } else { [self.start_ids.as_slice(), &ids].concat() })
    }

    /// Ids of a text that stands behind another one.
    fn encode_behind(&self, context: &str, text: &str) -> Result<Vec<u32>> {
        if !self.tokens_depend_on_context {
            return self.encode(text);
        }
        let (before, whole) = (self.encode(context)?, self.encode(&format!("{context}{text}"))?);
        whole.strip_prefix(before.as_slice()).map_or_else(|| self.encode(text), |ids| Ok(ids.to_vec()))
    }

    /// The text after the end of an earlier turn.
    fn behind_end<'a>(&self, text: &'a str) -> Result<&'a str> {
        text.strip_prefix(self.contract.end.as_str()).ok_or_else(|| rewritten("the end of an earlier turn"))
    }

    /// Ids of a text behind an end token (which may take white space with it), and the text with the token.
    fn encode_behind_end(&self, text: &str) -> Result<(Vec<u32>, String)> {
        let context = format!("{}{text}", self.contract.end_token);
        let ids = self.encode(&context)?;
        match ids.split_first() {
            Some((&first, rest)) if first == self.contract.end_token_id => Ok((rest.to_vec(), context)),
            _ => Err(rewritten("the end of an earlier turn")),
        }
    }

    /// The conversation's text cut at its answers.
    fn pieces(&self, messages: &[Message], add_generation_prompt: bool) -> Result<Pieces> {
        let text = self.render(messages, add_generation_prompt)?;
        let places = places_of_answers(messages);
        if places.is_empty() {
            return Ok(Pieces { texts: vec![text], answers: Vec::new() });
        }
        let marker = unused_marker(messages);
        let marker = |place: usize| format!("{marker}{place}{marker}");
        let mut marked = messages.to_vec();
        for &place in &places {
            marked[place].content = marker(place);
        }
        let skeleton = self.render(&marked, add_generation_prompt)?;
        let mut texts = Vec::new();
        let mut rest = skeleton.as_str();
        for &place in &places {
            let (before, after) = rest.split_once(&marker(place)).ok_or_else(|| rewritten("an earlier answer"))?;
            texts.push(before.to_string());
            rest = after;
        }
        texts.push(rest.to_string());
        let unchanged = places.iter().map(|&place| messages[place].content.clone()).collect();
        let pieces = Pieces { texts, answers: unchanged };
        if pieces.text() == text {
            return Ok(pieces);
        }
        // Many templates trim.
        let mut answers = Vec::new();
        for &place in &places {
            // Alone among markers, an answer's place is known whatever it says.
            let mut one = marked.clone();
            one[place].content = messages[place].content.clone();
            let one = self.render(&one, add_generation_prompt)?;
            let (before, after) = skeleton.split_once(&marker(place)).unwrap_or_default();
            let written = one.strip_prefix(before).and_then(|rest| rest.strip_suffix(after));
            answers.push(written.ok_or_else(|| rewritten("an earlier answer"))?.to_string());
        }
        let pieces = Pieces { answers, ..pieces };
        if pieces.text() != text { Err(rewritten("earlier answers")) } else { Ok(pieces) }
    }
}

impl Pieces {
    fn text(&self) -> String {
        self.text_before_answer(self.texts.len() - 1)
    }

    /// The text up to answer `index`; to the end if there are fewer.
    fn text_before_answer(&self, index: usize) -> String {
        let before = self.texts.iter().zip(&self.answers).take(index);
        before.flat_map(|(text, answer)| [text, answer]).chain([&self.texts[index]]).map(String::as_str).collect()
    }
}

/// Indices of the assistant's messages.
fn places_of_answers(messages: &[Message]) -> Vec<usize> {
    (0..messages.len()).filter(|&index| messages[index].role == Role::Assistant).collect()
}

fn rewritten(what: &str) -> Error {
    let what: String = what.chars().take(80).collect();
    Error::invalid(
        "the chat template",
        format!("{what:?} changes the text around it"),
        "messages that the template writes in their places",
        "correct the row's text, or use a template that keeps the history",
    )
}

/// The messages and an answer; and the answer.
fn with_answer(messages: &[Message], answer: String) -> (Vec<Message>, String) {
    let mut conversation = Vec::with_capacity(messages.len() + 1);
    conversation.extend_from_slice(messages);
    conversation.push(Message { role: Role::Assistant, content: answer.clone() });
    (conversation, answer)
}

fn unused_marker(messages: &[Message]) -> String {
    let mut marker = String::from("\u{f8ff}answer\u{f8ff}");
    while messages.iter().any(|message| message.content.contains(&marker)) {
        marker.push('\u{f8ff}');
    }
    marker
}
