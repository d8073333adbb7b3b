//! The dataset card: it makes Hugging Face's `datasets` read the Parquet files and ignore the other files of the folder.

use super::{ShardIndex, Split};
use base::{Result, files};
use std::path::Path;

/// Name of the card in a folder of shards, as Hugging Face expects it.
pub const CARD_FILE: &str = "README.md";

impl ShardIndex {
    /// Writes `dir/README.md`, unless there is one: its owner may have added to it. It depends on the splits alone.
    pub fn write_card(&self, dir: &Path) -> Result<()> {
        let path = dir.join(CARD_FILE);
        if path.exists() { Ok(()) } else { files::write_atomically(&path, self.card().as_bytes()) }
    }

    /// The card's text: `datasets` reads the front matter.
    fn card(&self) -> String {
        // A pattern without files is an error there, so a split without rows is left out.
        let splits = Split::ALL.into_iter().filter(|&split| self.shards.iter().any(|shard| shard.split == split));
        let data_files: String = splits
            .map(|split| format!("  - split: {}\n    path: {}-*.parquet\n", split.as_str(), split.file_stem()))
            .collect();
        format!(
            "---\n\
             configs:\n\
             - config_name: default\n\
             \x20 data_files:\n\
             {data_files}\
             ---\n\n\
             # LLaVA shards\n\n\
             Tokenized, normalised samples, made by `preprocess shards`; `datasets.load_dataset(FOLDER)` opens the splits. A row has\n\
             `id`, `image` (file name), `image_sha256`, `input_ids` (each image as one `<image>` token), `labels` (-100 where nothing\n\
             is supervised), `pixel_values` (coded: the Parquet files' metadata say how), `width`, `height`, `more_images`, `crc32` (of the row).\n\
             `index.json` lists the files and counts the rows, `rejected.jsonl` has the rows that did not become samples.\n"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CodeTable, Counts, FORMAT_VERSION, PixelFormat, ShardFile, ShardMetadata};

    fn index(splits: &[Split]) -> ShardIndex {
        let metadata = ShardMetadata {
            format_version: FORMAT_VERSION,
            tokenizer_sha256: String::new(),
            chat_template_sha256: String::new(),
            image_processor_sha256: String::new(),
            pixels: PixelFormat::Predicted,
            image_decoder: String::new(),
            shortest_edge: Some(14),
            resample: Default::default(),
            crop_size: 14,
            image_mean: [0.5; 3],
            image_std: [0.5; 3],
            code_to_f32: CodeTable::new([[0.0; 256]; 3]),
        };
        let file =
            |&split: &Split| ShardFile { file: split.file_name(0), split, rows: 1, bytes: 1, sha256: String::new() };
        ShardIndex::new(metadata, Counts::default(), splits.iter().map(file).collect())
    }

    #[test]
    fn the_card_names_the_splits_that_have_rows_and_stays_as_its_owner_left_it() {
        let both = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: shard-*.parquet\n  \
                    - split: validation\n    path: validation-*.parquet\n---\n";
        assert!(index(&Split::ALL).card().starts_with(both), "{}", index(&Split::ALL).card());
        assert!(!index(&[Split::Train]).card().contains("split: validation"));
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join(CARD_FILE);
        index(&[Split::Train]).write_card(dir.path()).expect("written");
        assert_eq!(std::fs::read_to_string(&path).expect("read"), index(&[Split::Train]).card());
        std::fs::write(&path, "mine").expect("written");
        index(&[Split::Train]).write_card(dir.path()).expect("kept");
        assert_eq!(std::fs::read_to_string(&path).expect("read"), "mine");
    }
}
