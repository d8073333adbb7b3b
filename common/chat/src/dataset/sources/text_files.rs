//! A `.txt` beside each picture, in the folder and in folders within it.

use super::folder::{PICTURES, entries, has_ending};
use super::{Findings, Form, Found, Kind, Listing, Source, Take, raw};
use crate::dataset::rows::{RowPlace, SourceRow};
use base::{Error, Result};
use serde_json::json;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

pub(super) const KIND: Kind = Kind { form: Form::TextFiles, pictures_beside: true, find, rows };

fn find(listing: &Listing, found: &mut Findings) -> Result<()> {
    if listing.is_file {
        return Ok(());
    }
    let mut pictures = Vec::new();
    let captions = walk(&listing.folder, Path::new(""), &mut Vec::new(), &mut pictures)?;
    if captions > 0 {
        let layout = format!("a .txt beside each picture, {} pictures", pictures.len());
        found.datasets.push(Found { kind: &KIND, layout, files: pictures, pictures: None });
    }
    Ok(())
}

/// Collects the pictures of a folder in the order of their names; the number of those with a text. A link to one of the folders that
/// it is in is left out: it would be followed for ever.
fn walk(folder: &Path, below: &Path, above: &mut Vec<PathBuf>, pictures: &mut Vec<PathBuf>) -> Result<usize> {
    let here = folder.join(below);
    let real = here.canonicalize().map_err(Error::io(&here))?;
    if above.contains(&real) {
        return Ok(0);
    }
    above.push(real);
    let (files, folders) = entries(&here)?;
    let mut captions = 0;
    for file in &files {
        let file = below.join(file);
        if has_ending(&file, &PICTURES) {
            let text = file.with_extension("txt");
            captions += usize::from(files.binary_search(&name(&text)).is_ok());
            pictures.push(file);
        }
    }
    for name in folders {
        captions += walk(folder, &below.join(name), above, pictures)?;
    }
    above.pop();
    Ok(captions)
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// A row is a picture. One without a text is a row with a fault.
fn rows(source: &Source, _: super::Pass, take: Take<'_>) -> Result<()> {
    for picture in &source.files {
        let text = picture.with_extension("txt");
        let place = text.display().to_string();
        let (caption, fault) = match std::fs::read(source.folder.join(&text)).map(String::from_utf8) {
            Ok(Ok(caption)) => (Some(caption.trim_start_matches('\u{feff}').trim().to_owned()), None),
            Ok(Err(_)) => (None, Some("text that is not UTF-8".to_owned())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                (None, Some(format!("no such file, expected the caption of {}", picture.display())))
            }
            Err(error) => (None, Some(error.to_string())),
        };
        let json = raw(&json!({"image": picture, "caption": caption}), &place)?;
        let place = RowPlace::Named(place);
        let row = SourceRow { number: 0, place, constants: 0, json, attachments: Vec::new(), fault };
        if take(row) == ControlFlow::Break(()) {
            break;
        }
    }
    Ok(())
}
