//! Configuration files as people publish them, and whether they are read or refused.

use serde_json::Value;

/// A folder that holds this file.
pub fn folder(file: &str, content: &Value) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join(file), content.to_string()).expect("written");
    folder
}

/// `base` with other or further fields.
pub fn with(base: Value, more: Value) -> Value {
    let (Value::Object(mut base), Value::Object(more)) = (base, more) else { panic!("objects") };
    base.extend(more);
    Value::Object(base)
}

/// The expected outcome: the file is read, or the error contains all of these.
pub type Verdict<'a> = Result<(), &'a [&'a str]>;

/// Compares a reader's result with its verdict.
///
/// # Panics
/// They differ, or the error lacks a word.
pub fn assert_verdict<T: std::fmt::Debug>(name: &str, found: base::Result<T>, expected: Verdict) {
    match (found, expected) {
        (Ok(_), Ok(())) => println!("{name}: read"),
        (Err(error), Err(words)) => {
            let error = error.to_string();
            println!("{name}: {error}");
            assert!(words.iter().all(|word| error.contains(word)), "{name}: {words:?} not in: {error}");
        }
        (found, expected) => panic!("{name}: found {found:?}, expected {expected:?}"),
    }
}
