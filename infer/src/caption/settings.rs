//! Settings of a file of captions, stored beside it: its lines do not name model, adapter or data.

use super::source::FOLDER;
use crate::answers::journal::Compared;
use crate::answers::settings;
use crate::args::CaptionArgs;
use anyhow::Result;
use base::files;
use chat::dataset::Source;
use serde_json::json;
use shards::{INDEX_FILE, ShardIndex};
use std::path::Path;

fn index_sha256(shards: &Path) -> base::Result<String> {
    ShardIndex::read(shards)?;
    files::sha256_of_file(&shards.join(INDEX_FILE))
}

fn rows_sha256(data: &Path) -> base::Result<String> {
    Source::find(data, None)?.sha256()
}

/// All settings that change a caption. Models and data are compared by content, not by path.
pub(super) fn settings(args: &CaptionArgs) -> Result<Vec<Compared>> {
    let mut settings = settings::of_model(&args.model)?;
    for (name, source, sha256) in [
        ("images", &args.source.images, None),
        ("data", &args.source.data, Some(rows_sha256 as fn(&Path) -> base::Result<String>)),
        ("shards", &args.source.shards, Some(index_sha256)),
    ] {
        settings.push(match (source, sha256) {
            (None, _) => Compared::value(name, json!(null)),
            // Pictures may be added after the captioned ones: lines are compared by name.
            (Some(folder), None) => {
                std::fs::metadata(folder).map_err(cli::inputs::unread(folder, FOLDER))?;
                Compared::value(name, json!(folder))
            }
            (Some(folder), Some(sha256)) => Compared::contents(name, folder, sha256(folder)?),
        });
    }
    if let Some(references) = args.references_file() {
        settings.push(Compared::contents("references", &references, files::sha256_of_file(&references)?));
    }
    settings.extend(
        [
            ("split", json!(format!("{:?}", args.split))),
            ("prompt", json!(args.question())),
            ("system_prompt", json!(args.system_prompt)),
        ]
        .map(|(name, value)| Compared::value(name, value)),
    );
    settings.extend(settings::of_sampling(&args.sampling));
    Ok(settings)
}
