//! The Chinese pages say what the English ones say: row by row where both have a table. The messages that both quote exist.

use std::collections::BTreeSet;
use std::path::Path;
use tests::documents::root;

/// Messages of the operating system, and names that programs read and write as data.
const FOREIGN: [&str; 4] =
    ["No such file or directory", "Address already in use", "No space left on device", "unread_key"];

fn text(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Cells of the tables' rows, without heads.
fn rows(text: &str) -> Vec<Vec<String>> {
    let lines: Vec<&str> = text.lines().collect();
    let is_rule = |line: &str| line.starts_with("|---");
    let is_row = |at: &usize| {
        lines[*at].starts_with('|') && !is_rule(lines[*at]) && !lines.get(at + 1).is_some_and(|next| is_rule(next))
    };
    let cells = |line: &str| {
        let line = line.replace("\\|", "\0");
        line.trim_matches('|').split('|').map(|cell| cell.trim().to_string()).collect()
    };
    (0..lines.len()).filter(is_row).map(|at| cells(lines[at])).collect()
}

/// What stands between backquotes, in any order: languages order words differently.
fn code(cell: &str) -> BTreeSet<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// Targets of links, without headings, as seen from the root.
fn linked(page: &str, text: &str) -> BTreeSet<String> {
    let up = page.matches('/').count();
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next());
    let local = targets.filter(|target| !target.starts_with("http") && !target.is_empty());
    local
        .map(|target| {
            let above = target.matches("../").count();
            let folders: Vec<&str> = page.split('/').take(up - above).collect();
            folders.into_iter().chain([target.trim_start_matches("../")]).collect::<Vec<_>>().join("/")
        })
        .collect()
}

#[test]
fn tables_have_the_rows_of_the_english_pages() {
    for page in ["troubleshooting.md", "coming-from.md"] {
        let [english, chinese] = ["docs", "docs/zh"].map(|folder| rows(&text(&format!("{folder}/{page}"))));
        for (index, row) in english.iter().enumerate() {
            let other = chinese.get(index).unwrap_or_else(|| panic!("docs/zh/{page}: no row {index}: {}", row[0]));
            assert_eq!(row.len(), other.len(), "{page}: row {index}: {row:?}, {other:?}");
            assert_eq!(code(&row[0]), code(&other[0]), "{page}: row {index}: {row:?}, {other:?}");
        }
        assert_eq!(english.len(), chinese.len(), "{page}");
        println!("{page}: {} rows", english.len());
        assert!(english.len() > 20, "{page}");
    }
}

#[test]
fn both_readmes_compare_the_same_and_link_the_same_documents() {
    let (english, chinese) = (text("README.md"), text("docs/zh/README.md"));
    let compared = |text: &str| rows(text).into_iter().filter(|row| row.len() == 6).collect::<Vec<_>>();
    for (row, other) in compared(&english).iter().zip(&compared(&chinese)) {
        for (cell, translated) in row.iter().zip(other) {
            assert_eq!(code(cell), code(translated), "{row:?}, {other:?}");
            assert_eq!(cell.is_empty(), translated.is_empty(), "{row:?}, {other:?}");
        }
    }
    assert_eq!(compared(&english).len(), compared(&chinese).len());
    assert!(compared(&english).len() > 10);
    let there = linked("docs/zh/README.md", &chinese);
    for target in linked("README.md", &english) {
        let translation = target.replacen("docs/", "docs/zh/", 1);
        let is_itself = target.starts_with("docs/zh/");
        assert!(is_itself || there.contains(&target) || there.contains(&translation), "{target}: {there:?}");
    }
}

/// All Rust of the programs, with the strings that are broken over lines joined.
fn sources(folder: &Path, all: &mut String) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, all);
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            let text = std::fs::read_to_string(&path).expect("readable");
            let mut parts = text.split("\\\n");
            *all += parts.next().unwrap_or_default();
            parts.for_each(|part| *all += part.trim_start());
        }
    }
}

/// The fixed parts of a message as a document quotes it.
fn fixed_parts(quoted: &str) -> Vec<&str> {
    let mut parts = vec![quoted];
    for variable in ["…", "N ", "M ", "\"", "found ", ", expected ", "another ", "no ", " is ", " was ", ": "] {
        parts = parts.into_iter().flat_map(|part| part.split(variable)).collect();
    }
    let parts = parts.into_iter().flat_map(|part| part.split(|letter: char| letter.is_ascii_digit()));
    parts
        .map(|part| part.trim_matches(|letter: char| " ,;()-.".contains(letter)))
        .filter(|part| part.len() > 3)
        .collect()
}

#[test]
fn quoted_messages_are_those_of_the_programs() {
    let mut all = String::new();
    for folder in ["common", "preprocess", "train", "infer", "pipelines"] {
        sources(&root().join(folder), &mut all);
    }
    let (mut checked, mut unknown) = (0, Vec::new());
    for row in rows(&text("docs/troubleshooting.md")) {
        for quoted in code(&row[0]) {
            for part in fixed_parts(quoted) {
                checked += 1;
                if !FOREIGN.contains(&part) && !all.contains(part) {
                    unknown.push(format!("{part:?} of {quoted:?}"));
                }
            }
        }
    }
    println!("{checked} parts of messages");
    assert!(unknown.is_empty(), "in no program: {unknown:#?}");
    assert!(checked > 40, "{checked}");
    assert_eq!(fixed_parts("lora_r is 4 there, 16 is given"), ["lora_r", "there", "given"]);
}
