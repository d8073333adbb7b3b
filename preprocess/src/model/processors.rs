//! Tokenizer, chat template and image processor of the assembled model.

use anyhow::{Context, Result, ensure};
use base::{Error, files, json, names};
use chat::{
    ChatProcessor, ChatTemplate, TextTokenizer, TokenizerConfig, WithImageToken, add_image_token, with_list_contents,
};
use images::image_processor::ImageProcessor;
use model::config::LlavaConfig;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// What the two source directories say, `<image>` added.
pub struct Processors {
    /// The image processor's settings, as the vision tower's directory has them.
    image_processor: Map<String, Value>,
    language_model: PathBuf,
    tokens: WithImageToken,
    pad_token_id: Option<u32>,
    /// The template, which takes contents as texts and as lists of parts.
    template: String,
}

impl Processors {
    /// Reads the tokenizer and template of the language model (or the template of a file), and sees that the tower has an image
    /// processor.
    pub fn read(vision_tower: &Path, language_model: &Path, chat_template: Option<&Path>) -> Result<Self> {
        let image_processor = ImageProcessor::settings_of_dir(vision_tower).context("--vision-tower")?;
        let tokenizer = TextTokenizer::from_dir(language_model)?;
        let path = language_model.join(names::TOKENIZER_FILE);
        let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
        let config = TokenizerConfig::from_dir(language_model)?;
        let template = match chat_template {
            None => ChatTemplate::from_dir(language_model, &config)?,
            Some(path) => {
                let source = std::fs::read_to_string(path).map_err(Error::io(path)).context("--chat-template")?;
                ChatTemplate::new(&source, config.special_tokens())
                    .with_context(|| format!("--chat-template {}", path.display()))?
            }
        };
        let config_json: Option<Value> = json::read_if_there(&language_model.join(names::TOKENIZER_CONFIG_FILE))?;
        let mut config_json = config_json.unwrap_or_else(|| json!({}));
        for (role, token) in config.special_tokens() {
            // Older directories have some in files of their own, which the assembled one does without.
            if config_json[&role].is_null() {
                config_json[&role] = json!(token);
            }
        }
        let tokens = add_image_token(&tokenizer, json::parse(&bytes, &path)?, config_json);
        Ok(Self {
            image_processor,
            language_model: language_model.to_path_buf(),
            pad_token_id: config.pad_token().and_then(|text| tokenizer.token_id(&text)),
            tokens,
            template: with_list_contents(&template)?,
        })
    }

    /// Id of `<image>`.
    pub fn image_token_id(&self) -> u32 {
        self.tokens.id
    }

    /// Id of the padding token, if there is one.
    pub fn pad_token_id(&self) -> Option<u32> {
        self.pad_token_id
    }

    /// Writes every file but configuration and weights.
    ///
    /// The template goes into its own file, where transformers 5 looks first, and into `tokenizer_config.json`, where 4.41 does.
    pub fn write(&self, dir: &Path, config: &LlavaConfig) -> Result<()> {
        for name in names::VOCABULARY_FILES {
            copy_if_there(&self.language_model.join(name), &dir.join(name))?;
        }
        if let Some(tokenizer) = &self.tokens.tokenizer {
            json::write(&dir.join(names::TOKENIZER_FILE), tokenizer)?;
        }
        let mut tokenizer_config = self.tokens.config.clone();
        tokenizer_config[names::CHAT_TEMPLATE] = json!(self.template);
        json::write(&dir.join(names::TOKENIZER_CONFIG_FILE), &tokenizer_config)?;
        files::write_atomically(&dir.join(names::CHAT_TEMPLATE_FILE), self.template.as_bytes())?;
        // Where transformers 4.41 looks; 5.x does, too, because processor_config.json holds no image processor.
        json::write(&dir.join(names::PREPROCESSOR_CONFIG_FILE), &self.image_processor)?;
        json::write(&dir.join(names::PROCESSOR_CONFIG_FILE), &processor_config(config))?;
        self.write_generation_config(dir, config)
    }

    fn write_generation_config(&self, dir: &Path, config: &LlavaConfig) -> Result<()> {
        let path = dir.join(names::GENERATION_CONFIG_FILE);
        copy_if_there(&self.language_model.join(names::GENERATION_CONFIG_FILE), &path)?;
        if path.exists() {
            return Ok(());
        }
        let text = &config.text;
        let ids = json!({
            "bos_token_id": text.bos_token_id,
            "eos_token_id": match text.eos_token_id[..] {
                [] => Value::Null,
                [id] => json!(id),
                ref ids => json!(ids),
            },
            "pad_token_id": config.pad_token_id,
        });
        Ok(json::write(&path, &ids)?)
    }
}

/// What transformers' LlavaProcessor asks for.
fn processor_config(config: &LlavaConfig) -> Value {
    json!({
        "image_token": chat::IMAGE_TOKEN,
        // CLIP's class token, which the `default` strategy drops again; SigLIP has none.
        "num_additional_image_tokens": config.vision.tokens() - config.vision.patches(),
        "patch_size": config.vision.patch_size,
        "processor_class": "LlavaProcessor",
        "vision_feature_select_strategy": config.vision_feature_select_strategy.name(),
    })
}

fn copy_if_there(from: &Path, to: &Path) -> Result<()> {
    if from.exists() {
        let bytes = std::fs::read(from).map_err(Error::io(from))?;
        files::write_atomically(to, &bytes)?;
    }
    Ok(())
}

/// Reads the finished directory the way the other programs will.
pub fn check(dir: &Path, config: &LlavaConfig) -> Result<()> {
    let chat = ChatProcessor::from_dir(dir).context("the assembled tokenizer")?;
    ensure!(
        chat.image_token_id == config.image_token_index,
        "the assembled tokenizer gives <image> the id {}, config.json {}; report this: it is a mistake of the program",
        chat.image_token_id,
        config.image_token_index
    );
    let images = ImageProcessor::from_dir(dir).context("the vision tower's image processor")?;
    ensure!(
        images.crop_size == config.vision.image_size,
        "{}: pictures of {} pixels, but the vision tower takes {}; copy the right file from the tower's repository",
        names::PREPROCESSOR_CONFIG_FILE,
        images.crop_size,
        config.vision.image_size
    );
    Ok(())
}
