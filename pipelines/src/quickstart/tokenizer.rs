//! A tokenizer trained on the dataset's own texts, saved as Qwen's are: byte-level BPE, ChatML tokens, chat template.

use anyhow::{Result, anyhow};
use base::{files, json, names};
use std::collections::BTreeSet;
use std::path::Path;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer};

/// Padding, and what ends an answer; with the start of a message they are the last three ids.
pub const PAD: &str = "<|endoftext|>";
/// Ends a message.
pub const EOS: &str = "<|im_end|>";
/// Begins a message.
const START: &str = "<|im_start|>";
/// Most tokens before the special ones. The texts need fewer.
const MAX_VOCABULARY: usize = 1000;
/// How Qwen splits text into words before BPE.
const WORDS: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// ChatML, as Qwen1.5's template writes it.
const CHAT_TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] \
                             + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ \
                             '<|im_start|>assistant\n' }}{% endif %}";

/// Ids that the language model's configuration repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vocabulary {
    /// Number of tokens, special ones included.
    pub size: usize,
    /// Id of [`PAD`].
    pub pad: u32,
    /// Id of [`EOS`].
    pub eos: u32,
}

/// Trains the tokenizer and writes `tokenizer.json`, `tokenizer_config.json` and the chat template into a folder.
///
/// # Errors
/// Files that cannot be written.
pub fn write(texts: &BTreeSet<String>, folder: &Path) -> Result<Vocabulary> {
    let tokenizer = train(texts).map_err(|error| anyhow!("training the tokenizer: {error}"))?;
    let text = tokenizer.to_string(true).map_err(|error| anyhow!("writing the tokenizer: {error}"))?;
    files::write_atomically(&folder.join(names::TOKENIZER_FILE), text.as_bytes())?;
    files::write_atomically(&folder.join(names::CHAT_TEMPLATE_FILE), CHAT_TEMPLATE.as_bytes())?;
    let config = serde_json::json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": null,
        "eos_token": EOS,
        "pad_token": PAD,
        "unk_token": null,
        "additional_special_tokens": [START, EOS],
        "clean_up_tokenization_spaces": false,
        "model_max_length": super::backbones::MAX_POSITIONS,
        "chat_template": CHAT_TEMPLATE,
    });
    json::write(&folder.join(names::TOKENIZER_CONFIG_FILE), &config)?;
    let id = |token: &str| tokenizer.token_to_id(token).ok_or_else(|| anyhow!("the tokenizer has no {token}"));
    Ok(Vocabulary { size: tokenizer.get_vocab_size(true), pad: id(PAD)?, eos: id(EOS)? })
}

fn train(texts: &BTreeSet<String>) -> tokenizers::Result<Tokenizer> {
    let mut tokenizer = Tokenizer::new(BPE::default());
    let bytes = ByteLevel::new(false, false, false);
    let words = Split::new(SplitPattern::Regex(WORDS.to_string()), SplitDelimiterBehavior::Isolated, false)?;
    let steps = vec![PreTokenizerWrapper::Split(words), PreTokenizerWrapper::ByteLevel(bytes)];
    tokenizer.with_normalizer(Some(NFC))?;
    tokenizer.with_pre_tokenizer(Some(Sequence::new(steps)));
    tokenizer.with_decoder(Some(bytes));
    let trainer = BpeTrainer::builder()
        .vocab_size(MAX_VOCABULARY)
        .min_frequency(1)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    // The template's own words are in no text.
    let template_words = ["system\n", "user\n", "assistant\n"].map(String::from);
    let all = texts.iter().cloned().chain(template_words);
    tokenizer.train(&mut TrainerWrapper::BpeTrainer(trainer), all)?;
    tokenizer.add_special_tokens([PAD, START, EOS].map(|text| AddedToken::from(text, true)))?;
    Ok(tokenizer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_of_a_caption_is_one_token() {
        let texts = super::super::dataset::texts();
        let folder = tempfile::tempdir().expect("a folder");
        let vocabulary = write(&texts, folder.path()).expect("written");
        let tokenizer = Tokenizer::from_file(folder.path().join(names::TOKENIZER_FILE)).expect("readable");
        let caption = "a small red circle left of a large blue square";
        let ids = tokenizer.encode(caption, false).expect("encoded").get_ids().to_vec();
        assert_eq!(ids.len(), caption.split(' ').count(), "{:?}", ids);
        assert_eq!(tokenizer.decode(&ids, true).expect("decoded"), caption);
        let length = |text: &&str| tokenizer.encode(*text, false).expect("encoded").len();
        let lengths: Vec<usize> = super::super::dataset::QUESTIONS.iter().map(length).collect();
        assert_eq!(lengths, [7; 4], "six words and a full stop");
        assert_eq!(vocabulary.eos as usize, vocabulary.size - 1);
        assert!(vocabulary.size < MAX_VOCABULARY);
        let again = tempfile::tempdir().expect("a folder");
        write(&texts, again.path()).expect("written");
        let read = |folder: &Path| std::fs::read(folder.join(names::TOKENIZER_FILE)).expect("readable");
        assert_eq!(read(folder.path()), read(again.path()), "the same texts give the same tokenizer");
    }
}
