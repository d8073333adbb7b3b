//! chat.json: the list, and each row of it.
#![no_main]

use fuzz::shards::chat_json::for_each_row;
use fuzz::shards::conversation::{self, RowNames};
use std::ops::ControlFlow;
use std::path::Path;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut rows = 0;
    let _ = for_each_row(Path::new("chat.json"), bytes, |row| {
        assert_eq!(row.number, rows);
        rows += 1;
        let _ = RowNames::of(row.json.get());
        let names = conversation::image_names(row.json.get());
        if let Ok(read) = conversation::read(row.json.get(), (row.line, row.column)) {
            assert_eq!(read.images, names);
            assert!(!read.turns.is_empty() && read.turns.iter().all(|(_, answer)| !answer.trim().is_empty()));
            let markers: usize = read.turns.iter().map(|(question, _)| question.matches("<image>").count()).sum();
            assert_eq!(markers, read.images.len());
        }
        ControlFlow::Continue(())
    });
});
