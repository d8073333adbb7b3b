//! chat.json: the list, and each row of it.
#![no_main]

use chat::dataset::{Questions, Record, RowNames, Survey, for_each_row};
use std::ops::ControlFlow;
use std::path::Path;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut rows = 0;
    let mut survey = Survey::default();
    let _ = for_each_row(Path::new("chat.json"), bytes, |row| {
        assert_eq!(row.number, rows);
        rows += 1;
        let _ = RowNames::of(&row);
        let names = survey.add(&row);
        if let Ok(record) = Record::read(&row, &Questions::default()) {
            assert_eq!(record.images, names);
            assert!(!record.id.is_empty() && !record.turns.is_empty());
            let _ = record.first_question();
            if let Ok(read) = record.conversation() {
                assert!(!read.turns.is_empty() && read.turns.iter().all(|(_, answer)| !answer.trim().is_empty()));
                let markers: usize = read.turns.iter().map(|(question, _)| question.matches("<image>").count()).sum();
                assert_eq!(markers, read.images.len());
            }
        }
        ControlFlow::Continue(())
    });
    let _ = survey.warnings();
});
