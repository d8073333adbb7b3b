//! Model, tokenizer and image processor of shards, in `index.json` and in every file's key-value metadata.

use super::PixelFormat;
use base::{Error, Result, files};
use chat::ChatProcessor;
use images::image_processor::{ImageProcessor, Resample, decoder_build};
use parquet::file::metadata::KeyValue;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt::Display;

/// Version of the columns and of this metadata.
pub const FORMAT_VERSION: u32 = 1;

/// The normalised f32 of every code, per channel; exact bits (little-endian hex in files).
#[derive(Clone, Debug, PartialEq)]
pub struct CodeTable(Box<[[f32; 256]; 3]>);

impl CodeTable {
    /// `channels[channel][code]`.
    pub fn new(channels: [[f32; 256]; 3]) -> Self {
        Self(Box::new(channels))
    }

    /// `[channel][code]`.
    pub fn channels(&self) -> &[[f32; 256]; 3] {
        &self.0
    }

    fn to_hex(&self) -> String {
        let bytes: Vec<u8> = self.0.iter().flatten().flat_map(|value| value.to_le_bytes()).collect();
        files::hex(&bytes)
    }

    fn from_hex(text: &str) -> Option<Self> {
        let bytes = files::from_hex(text).filter(|bytes| bytes.len() == 3 * 256 * 4)?;
        let mut values = bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
        Some(Self::new(std::array::from_fn(|_| std::array::from_fn(|_| values.next().unwrap_or_default()))))
    }
}

impl Serialize for CodeTable {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_hex())
    }
}

impl<'de> Deserialize<'de> for CodeTable {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::from_hex(&text).ok_or_else(|| serde::de::Error::custom("expected 3 × 256 f32 in hex"))
    }
}

/// What the shards were made with; a consumer refuses another tokenizer or processor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShardMetadata {
    /// [`FORMAT_VERSION`] of the program that wrote them.
    pub format_version: u32,
    /// SHA-256 of tokenizer.json.
    pub tokenizer_sha256: String,
    /// SHA-256 of the chat template.
    pub chat_template_sha256: String,
    /// SHA-256 of the image processor's settings.
    pub image_processor_sha256: String,
    /// Form of `pixel_values`.
    pub pixels: PixelFormat,
    /// The JPEG decoder and its build: damaged JPEG data decodes otherwise in another one. Empty in shards of older programs.
    #[serde(default)]
    pub image_decoder: String,
    /// Shortest edge after resizing, pixels; absent where height and width both became [`Self::crop_size`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shortest_edge: Option<usize>,
    /// Filter of the resizing; absent where it is bicubic.
    #[serde(default, skip_serializing_if = "is_bicubic")]
    pub resample: Resample,
    /// Side of an image (S), pixels.
    pub crop_size: usize,
    /// Per-channel mean.
    pub image_mean: [f64; 3],
    /// Per-channel standard deviation.
    pub image_std: [f64; 3],
    /// Code → normalised f32.
    pub code_to_f32: CodeTable,
}

fn is_bicubic(resample: &Resample) -> bool {
    *resample == Resample::Bicubic
}

impl ShardMetadata {
    /// Metadata of shards made with these processors.
    pub fn new(chat: &ChatProcessor, image_processor: &ImageProcessor, pixels: PixelFormat) -> Self {
        Self {
            format_version: FORMAT_VERSION,
            tokenizer_sha256: chat.tokenizer_sha256.clone(),
            chat_template_sha256: chat.chat_template_sha256.clone(),
            image_processor_sha256: image_processor.sha256.clone(),
            pixels,
            image_decoder: decoder_build(),
            shortest_edge: image_processor.shortest_edge,
            resample: image_processor.resample,
            crop_size: image_processor.crop_size,
            image_mean: image_processor.image_mean,
            image_std: image_processor.image_std,
            code_to_f32: CodeTable::new(image_processor.table()),
        }
    }

    /// Refuses shards made for another tokenizer, chat template or image processor.
    ///
    /// # Errors
    /// Names the part that differs, with both hashes.
    pub fn check(&self, chat: &ChatProcessor, image_processor: &ImageProcessor) -> Result<()> {
        let of_model = [&chat.tokenizer_sha256, &chat.chat_template_sha256, &image_processor.sha256];
        let remedy = "run preprocess shards with this model, or use the model that the shards were made for";
        self.require_processors(of_model, "the model's", "the shards", remedy)
    }

    /// Refuses shards that were made with another tokenizer, chat template or image processor than these ones of `other_place`;
    /// `place` is where they are.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub fn check_same(&self, place: impl ToString, other: &Self, other_place: impl Display) -> Result<()> {
        let of_other = [&other.tokenizer_sha256, &other.chat_template_sha256, &other.image_processor_sha256];
        let remedy = "run preprocess shards with one model for all folders";
        self.require_processors(of_other, &format!("that of {other_place}"), place, remedy)
    }

    fn require_processors(&self, others: [&String; 3], whose: &str, place: impl ToString, remedy: &str) -> Result<()> {
        let own = [&self.tokenizer_sha256, &self.chat_template_sha256, &self.image_processor_sha256];
        let parts = ["tokenizer", "chat template", "image processor"];
        let mut compared = parts.into_iter().zip(own.into_iter().zip(others));
        match compared.find(|(_, (own, other))| own != other) {
            None => Ok(()),
            Some((part, (own, other))) => Err(Error::invalid(
                place,
                format!("another {part} (SHA-256 {own})"),
                format!("{whose} ({other})"),
                remedy,
            )),
        }
    }

    /// The image processor that the settings describe.
    pub fn image_processor(&self) -> ImageProcessor {
        ImageProcessor {
            shortest_edge: self.shortest_edge,
            resample: self.resample,
            crop_size: self.crop_size,
            image_mean: self.image_mean,
            image_std: self.image_std,
            sha256: self.image_processor_sha256.clone(),
        }
    }

    /// One key-value pair a field: strings as they are, everything else as JSON.
    pub(super) fn key_values(&self) -> Vec<KeyValue> {
        let value = serde_json::to_value(self).unwrap_or_default();
        let fields = value.as_object().into_iter().flatten();
        fields
            .map(|(key, value)| {
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                KeyValue::new(key.clone(), text)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_table_keeps_its_bits_in_json() {
        let table = CodeTable::new(std::array::from_fn(|channel| {
            std::array::from_fn(|code| (code as f32 - 127.3) / (channel as f32 + 0.7))
        }));
        let text = serde_json::to_string(&table).expect("written");
        let read: CodeTable = serde_json::from_str(&text).expect("read");
        let bits = |table: &CodeTable| table.channels().iter().flatten().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&read), bits(&table));
        assert!(serde_json::from_str::<CodeTable>("\"00\"").is_err());
    }
}
