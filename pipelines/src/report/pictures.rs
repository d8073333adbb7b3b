//! Pictures beside captions: from `--pictures`, from the data that a file of captions names, or from the run's shards.

use super::runs::{Caption, Run};
use anyhow::{Context, Result};
use html::picture::Picture;
use images::image_files::ImageSources;
use images::image_processor::{ImageProcessor, Resample};
use serde_json::Value;
use shards::{ShardSet, Split};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Side of a picture on the page, pixels.
const SIDE: usize = 144;

/// The pictures of a run's captions, by `id` of the caption.
pub struct Pictures(HashMap<String, String>);

impl Pictures {
    /// No pictures.
    #[cfg(test)]
    pub fn none() -> Self {
        Self(HashMap::new())
    }

    /// The pictures of the first `most` captions. `given` is a dataset's folder or a folder of pictures; without it a place that
    /// cannot be read is passed over, as a report is often made on another machine.
    ///
    /// # Errors
    /// `given` is not a folder.
    pub fn find(run: &Run, given: Option<&Path>, most: usize) -> Result<Self> {
        if let Some(folder) = given {
            ImageSources::find(folder).context("--pictures")?;
        }
        let mut found = HashMap::new();
        for sets in run.captions_of_same_pictures() {
            let newest = sets.last().map(|set| set.captions.as_slice()).unwrap_or_default();
            found.extend(Self::of(run, given, &newest.iter().take(most).collect::<Vec<_>>())?.0);
        }
        Ok(Self(found))
    }

    fn of(run: &Run, given: Option<&Path>, wanted: &[&Caption]) -> Result<Self> {
        if let Some(folder) = given {
            return Ok(Self::in_folder(&ImageSources::find(folder).context("--pictures")?, wanted));
        }
        let folders = run.picture_folders.iter().filter_map(|folder| ImageSources::find(folder).ok());
        let from_folders = folders.map(|sources| Self::in_folder(&sources, wanted)).find(|found| !found.0.is_empty());
        Ok(from_folders.unwrap_or_else(|| {
            let shards = run.shards.iter().filter_map(|dir| Self::in_shards(dir, wanted).ok());
            shards.into_iter().find(|found| !found.0.is_empty()).unwrap_or_else(|| Self(HashMap::new()))
        }))
    }

    fn in_folder(sources: &ImageSources, wanted: &[&Caption]) -> Self {
        // The middle of the picture, as most towers see it.
        let processor = ImageProcessor::new(Some(SIDE), SIDE, Resample::Bicubic, [0.0; 3], [1.0; 3]);
        let read = |caption: &&Caption| {
            let image = processor.process(&sources.read(&caption.image).ok()?).ok()?;
            Some((caption.id.clone(), Picture::of_planes(&image.codes, SIDE).data_uri().ok()?))
        };
        Self(wanted.iter().filter_map(read).collect())
    }

    /// The rows of a split that evaluations caption are its first ones.
    fn in_shards(dir: &Path, wanted: &[&Caption]) -> Result<Self> {
        let set = ShardSet::open(dir, Split::Validation)?;
        let (about, mut found) = (set.metadata().clone(), HashMap::new());
        for index in 0..wanted.len().min(set.len()) {
            let row = set.read_row(index)?;
            let values = 3 * about.crop_size * about.crop_size;
            let is_wanted = wanted.iter().any(|caption| caption.id == row.id);
            if let Some(values) = row.pixel_values.get(..values).filter(|_| is_wanted) {
                let picture = Picture::of(values, about.crop_size, &about.image_mean, &about.image_std);
                found.insert(row.id, picture.shrunk(SIDE).data_uri()?);
            }
        }
        Ok(Self(found))
    }

    /// The picture of a caption.
    pub fn data_uri(&self, caption: &Caption) -> Option<&str> {
        self.0.get(&caption.id).map(String::as_str)
    }
}

/// The folders that the settings beside a file of captions name.
pub fn folders_of(settings: &Value) -> impl Iterator<Item = PathBuf> {
    let path = |value: &Value| value.as_str().or_else(|| value["path"].as_str()).map(PathBuf::from);
    [path(&settings["images"]), path(&settings["data"])].into_iter().flatten()
}
