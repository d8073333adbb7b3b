//! The properties of a chat template, found by rendering conversations with known texts.
//!
//! Training and generation rely on it: every text is written once, an answer begins where the generation prompt ends, and a
//! turn ends in a token that generation stops at. A template that does otherwise is refused before the first row.

use super::contents::Contents;
use super::jinja::Clock;
use super::{ChatTemplate, IMAGE_TOKEN, Message, Role, TextTokenizer};
use base::{Error, Result};

/// Texts of the probes: words that no template writes.
const SYSTEM: &str = "qzsystemzq";
const QUESTIONS: [&str; 2] = ["qzquestionzq", "qzfurtherzq"];
const ANSWERS: [&str; 2] = ["qzanswerzq", "qzreplyzq"];

/// The properties found.
pub struct Contract {
    /// The form in which contents are handed over.
    pub contents: Contents,
    /// Why no system message can be given, if none can.
    pub system_refusal: Option<String>,
    /// Whether the template writes a system prompt of its own where none is given.
    pub has_default_system: bool,
    /// The text between the generation prompt and an answer; often empty, or a space.
    pub gap: String,
    /// The text between an answer and the end of the turn, with the end token.
    pub end: String,
    /// Whether the template writes the end. Where it writes white space alone behind answers (LLaVA-1.5's), an end that it does not
    /// write is supervised after the last answer, so that generation stops there.
    pub writes_end: bool,
    /// The token that ends a turn.
    pub end_token: String,
    /// Its id.
    pub end_token_id: u32,
    /// Whether the time is written.
    pub is_dated: bool,
}

impl Contract {
    /// Renders probes. `stop_ids` are the tokens that generation stops at.
    ///
    /// # Errors
    /// A template that cannot be used, with the reason.
    pub fn find(template: &ChatTemplate, tokenizer: &TextTokenizer, stop_ids: &[u32]) -> Result<Self> {
        let with_system = Prober { template, system: Some(SYSTEM) };
        let (contents, system_refusal) = match with_system.first_form() {
            Ok(contents) => (contents, None),
            Err(_) => {
                let without = Prober { template, system: None }.first_form();
                let contents = without.map_err(|reason| unserviceable(&reason))?;
                (contents, with_system.check(contents).err())
            }
        };
        let prober = Prober { template, system: system_refusal.is_none().then_some(SYSTEM) };
        let turn = prober.turn(contents).map_err(|reason| unserviceable(&reason))?;
        let End { text: end, id: end_token_id, is_written } = end_of_turn(&turn, tokenizer, stop_ids)?;
        let has_default_system = system_refusal.is_none() && prober.has_default_system(contents)?;
        Ok(Self {
            contents,
            system_refusal,
            has_default_system,
            gap: gap(&turn)?,
            end_token: end.trim_start().to_string(),
            end,
            writes_end: is_written,
            end_token_id,
            is_dated: prober.is_dated(contents)?,
        })
    }

    /// Refuses a system message that the template would drop.
    pub fn check_system(&self) -> Result<()> {
        match &self.system_refusal {
            None => Ok(()),
            Some(refusal) => Err(Error::invalid(
                "the chat template",
                format!("no place for a system prompt ({refusal})"),
                "a template that writes it",
                "give --system-prompt \"\" and no system messages, or use another template",
            )),
        }
    }
}

fn unserviceable(reason: &str) -> Error {
    Error::invalid(
        "the chat template",
        reason,
        "a template that writes every question and answer once, with contents as texts or as lists of parts",
        "correct the template, or use that of a chat model with this tokenizer",
    )
}

/// The form in which a template reads contents; `None` for one that cannot be used.
pub fn first_form(template: &ChatTemplate) -> Option<Contents> {
    [Some(SYSTEM), None].into_iter().find_map(|system| Prober { template, system }.first_form().ok())
}

/// Renders the probes of one template.
struct Prober<'a> {
    template: &'a ChatTemplate,
    system: Option<&'static str>,
}

/// The template's text around an answer.
struct Turn {
    /// From the question to the end of the generation prompt.
    prompt: String,
    /// From the question to its answer, in a finished conversation.
    before_answer: String,
    /// The same where a further question follows.
    before_earlier_answer: Option<String>,
    /// From the answer to the end.
    after_answer: String,
    /// From an earlier answer to the next question.
    after_earlier_answer: Option<String>,
}

impl Prober<'_> {
    /// Whether more is written without a system message than with an empty one.
    fn has_default_system(&self, contents: Contents) -> Result<bool> {
        let question = [QUESTIONS[0]];
        let given = self.render(contents, &question, true).map_err(|reason| unserviceable(&reason))?;
        let none = Prober { template: self.template, system: None }.render(contents, &question, true);
        // A template that demands a system message gets one.
        Ok(none.map_or(true, |none| none.len() > given.len() - SYSTEM.len()))
    }

    /// The first form of contents in which every text is written.
    fn first_form(&self) -> Result<Contents, String> {
        let mut first_reason = None;
        for contents in Contents::all() {
            match self.check(contents) {
                Ok(()) => return Ok(contents),
                Err(reason) => {
                    first_reason.get_or_insert(reason);
                }
            }
        }
        Err(first_reason.unwrap_or_default())
    }

    fn check(&self, contents: Contents) -> Result<(), String> {
        let marked = format!("{IMAGE_TOKEN}\n{}", QUESTIONS[0]);
        for question in [QUESTIONS[0], &marked] {
            let text = self.render(contents, &[question], true)?;
            let image = question.contains(IMAGE_TOKEN).then_some(IMAGE_TOKEN);
            for expected in self.system.into_iter().chain(image).chain([QUESTIONS[0]]) {
                written_once(&text, expected)?;
            }
            let prints_the_list = ["'type'", "\"type\"", "'text'"].iter().any(|word| text.contains(word));
            if prints_the_list {
                return Err(format!("contents that are printed as a list: {:?}", ellipsis(&text)));
            }
        }
        let finished = self.render(contents, &[QUESTIONS[0], ANSWERS[0]], false)?;
        written_once(&finished, QUESTIONS[0])?;
        written_once(&finished, ANSWERS[0])
    }

    fn turn(&self, contents: Contents) -> Result<Turn, String> {
        let [question, further] = QUESTIONS;
        let [answer, _] = ANSWERS;
        let prompt = self.render(contents, &[question], true)?;
        let finished = self.render(contents, &[question, answer], false)?;
        // A template may refuse a second turn; rows of one turn can be made with it all the same.
        let longer = self.render(contents, &[question, answer, further], true).ok();
        let missing = |text: &str| format!("a conversation that is not written in its order: {:?}", ellipsis(text));
        let longer = match longer {
            None => None,
            Some(text) => {
                let before = between(&text, question, answer).ok_or_else(|| missing(&text))?;
                let after = between(&text, answer, further).ok_or_else(|| missing(&text))?;
                Some((before, after))
            }
        };
        let (before_earlier_answer, after_earlier_answer) = longer.unzip();
        Ok(Turn {
            prompt: after(&prompt, question).ok_or_else(|| missing(&prompt))?,
            before_answer: between(&finished, question, answer).ok_or_else(|| missing(&finished))?,
            after_answer: after(&finished, answer).ok_or_else(|| missing(&finished))?,
            before_earlier_answer,
            after_earlier_answer,
        })
    }

    /// Whether the same conversation is written otherwise at another time.
    fn is_dated(&self, contents: Contents) -> Result<bool> {
        let at = |seconds: i64| -> Result<Option<String>> {
            let Some(clock) = Clock::at(seconds) else { return Ok(None) };
            let template = self.template.with_clock(clock)?;
            Ok(Prober { template: &template, system: self.system }.render(contents, &[QUESTIONS[0]], true).ok())
        };
        // Another second, minute, hour, day, month and year.
        Ok(at(0)? != at(1_722_000_000)?)
    }

    fn render(&self, contents: Contents, turns: &[&str], add_generation_prompt: bool) -> Result<String, String> {
        let system = self.system.map(|text| Message { role: Role::System, content: text.into() });
        let turns = turns.iter().enumerate().map(|(index, &text)| Message {
            role: if index % 2 == 0 { Role::User } else { Role::Assistant },
            content: text.into(),
        });
        let messages: Vec<Message> = system.into_iter().chain(turns).collect();
        self.template.render(contents, &messages, add_generation_prompt).map_err(|error| match error {
            Error::Invalid(mismatch) => mismatch.found,
            error => error.to_string(),
        })
    }
}

fn written_once(text: &str, expected: &str) -> Result<(), String> {
    let what = match expected {
        SYSTEM => "a system prompt",
        IMAGE_TOKEN => "an image",
        _ if ANSWERS.contains(&expected) => "an answer",
        _ => "a question",
    };
    match text.matches(expected).count() {
        1 => Ok(()),
        0 => Err(format!("{what} that is not written: {:?}", ellipsis(text))),
        count => Err(format!("{what} that is written {count} times: {:?}", ellipsis(text))),
    }
}

fn after(text: &str, word: &str) -> Option<String> {
    text.split_once(word).map(|(_, after)| after.to_string())
}

fn between(text: &str, first: &str, second: &str) -> Option<String> {
    text.split_once(first)?.1.split_once(second).map(|(between, _)| between.to_string())
}

/// A text's end, where the conversation is.
fn ellipsis(text: &str) -> String {
    const SHOWN: usize = 160;
    let count = text.chars().count();
    if count <= SHOWN {
        text.to_string()
    } else {
        format!("…{}", text.chars().skip(count - SHOWN).collect::<String>())
    }
}

/// The text between the generation prompt and an answer. Qwen3 writes an empty `<think>` block before the last answer
/// only: this block is not part of it.
fn gap(turn: &Turn) -> Result<String> {
    let places = turn.before_earlier_answer.iter().chain([&turn.before_answer]);
    for before in places.clone() {
        if let Some(gap) = before.strip_prefix(&turn.prompt) {
            return Ok(gap.to_string());
        }
    }
    let visible = |text: &str| text.split_whitespace().collect::<String>();
    // llava-interleave-qwen writes `assistant ` in turns and `assistant\n` as prompt: answers follow the prompt.
    if places.clone().any(|before| visible(before) == visible(&turn.prompt)) {
        return Ok(String::new());
    }
    Err(Error::invalid(
        "the chat template",
        format!(
            "a generation prompt that ends in {:?}, and answers behind {:?}",
            ellipsis(&turn.prompt),
            ellipsis(&turn.before_answer)
        ),
        "answers that follow the generation prompt",
        "correct the template: what the prompt opens (such as <think>) has to stand before answers, too, or not at all",
    ))
}

/// The end of a turn.
struct End {
    /// The text up to the token that ends it.
    text: String,
    /// The token's id.
    id: u32,
    /// Whether the template writes it.
    is_written: bool,
}

fn end_of_turn(turn: &Turn, tokenizer: &TextTokenizer, stop_ids: &[u32]) -> Result<End> {
    let mut stops = Vec::new();
    for &id in stop_ids {
        stops.push((id, tokenizer.decode(&[id], false)?));
    }
    let end_of = |after: &str| {
        let text = after.trim_start();
        let found = stops.iter().filter(|(_, stop)| !stop.is_empty() && text.starts_with(stop.as_str()));
        let (id, stop) = found.max_by_key(|(_, stop)| stop.len())?;
        Some((format!("{}{stop}", &after[..after.len() - text.len()]), *id))
    };
    let earlier = turn.after_earlier_answer.as_deref();
    let listed = || stops.iter().map(|(id, stop)| format!("{stop:?} ({id})")).collect::<Vec<_>>().join(", ");
    let Some((end, id)) = end_of(&turn.after_answer).or_else(|| end_of(earlier?)) else {
        let first = stops.iter().find(|(_, stop)| !stop.is_empty());
        if let Some((id, stop)) = first.filter(|_| is_a_space(&turn.after_answer)) {
            return Ok(End { text: stop.clone(), id: *id, is_written: false });
        }
        return Err(Error::invalid(
            "the chat template",
            format!("turns that end in {}", described_end(&turn.after_answer, tokenizer)),
            format!("one of the tokens that generation stops at: {}", listed()),
            "list that token as eos_token_id in generation_config.json (or as eos_token in tokenizer_config.json), or \
             correct the template",
        ));
    };
    match earlier {
        Some(earlier) if !earlier.starts_with(&end) => Err(Error::invalid(
            "the chat template",
            format!("earlier turns that end in {}", described_end(earlier, tokenizer)),
            format!("{end:?}, as the last turn does"),
            "correct the template",
        )),
        _ => Ok(End { text: end, id, is_written: true }),
    }
}

/// Whether a template writes white space behind an answer, and no line's end: it separates turns, and ends none.
fn is_a_space(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|letter| letter == ' ')
}

/// The text behind an answer, with the id of its first token where that is one of the vocabulary's special tokens.
fn described_end(after: &str, tokenizer: &TextTokenizer) -> String {
    let first = tokenizer.encode(after.trim_start()).ok().and_then(|ids| ids.first().copied());
    match first.filter(|&id| tokenizer.is_added(id)) {
        Some(id) => format!("{:?} (token {id})", tokenizer.decode(&[id], false).unwrap_or_default()),
        None if after.is_empty() => "nothing".to_string(),
        None => format!("the text {:?}", ellipsis(after)),
    }
}
