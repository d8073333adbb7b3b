//! A JSON list of rows, under any name.

use super::sniff::{Json, sniff};
use super::{Findings, Form, Found, Kind, Listing};
use crate::dataset::layouts;
use crate::dataset::rows::for_each_row;
use base::Error;
use std::fs::File;

pub(super) const KIND: Kind = Kind {
    form: Form::Files,
    pictures_beside: false,
    find,
    rows: |source, _, take| {
        source.paths().try_for_each(|path| {
            let file = File::open(&path).map_err(Error::io(&path))?;
            for_each_row(&path, file, &mut *take)
        })
    },
};

fn find(listing: &Listing, found: &mut Findings) -> base::Result<()> {
    for file in listing.with_ending(&["json"]) {
        // A file that is named is read as rows, so that its errors say where they are.
        let is_named = listing.is_file || listing.is_chat_json();
        let layout = match sniff(&listing.path(file)) {
            Json::List(keys) => match layouts::name_of(keys.iter().map(String::as_str)) {
                Some(layout) => layout,
                None if is_named => "rows",
                None => {
                    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
                    found.note_columns(file, "a list of rows with the keys", &keys);
                    continue;
                }
            },
            Json::Other if is_named => "rows",
            _ => continue,
        };
        found.datasets.push(Found { kind: &KIND, layout: layout.into(), files: vec![file.clone()], pictures: None });
    }
    Ok(())
}
