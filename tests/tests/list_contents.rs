//! Contents as lists of parts, as transformers' processors take them: an assembled model's chat template writes the texts and ids
//! that rows and answers have here.

use super::chat_templates::{CONVERSATIONS, Outcome, PUBLISHED, published_directory};
use chat::{ChatProcessor, ChatTemplate, Message, Role, TokenizerConfig, with_list_contents};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;
use tests::chat_models::write;
use tests::conversations::{as_json, ids, messages, transformers};
use tests::{program, python, python_script, reference, references};

/// Gives a directory the template that `preprocess model` writes.
fn take_lists(dir: &Path) -> ChatProcessor {
    let config = TokenizerConfig::from_dir(dir).expect("readable");
    let template = ChatTemplate::from_dir(dir, &config).expect("readable");
    write(dir, "chat_template.jinja", &with_list_contents(&template).expect("it renders"));
    ChatProcessor::from_dir(dir).expect("the template serves")
}

#[test]
fn every_published_template_takes_lists() {
    let (mut cases, mut found, mut folders) = (Vec::new(), Vec::new(), Vec::new());
    for published in PUBLISHED.iter().filter(|published| !matches!(published.3, Outcome::Refused(_))) {
        let folder = published_directory(published);
        let before = ChatProcessor::from_dir(folder.path()).expect("the template serves");
        let after = take_lists(folder.path());
        assert_eq!(before.takes_system(), after.takes_system(), "{}", published.0);
        for (system, turns) in
            CONVERSATIONS.into_iter().filter(|(system, _)| before.takes_system() || system.is_empty())
        {
            let what = format!("{}, {} turns, system {system:?}", published.0, turns.len());
            let mut messages = messages(system, turns);
            let everything = as_json(&messages, after.has_default_system());
            messages.pop();
            let prompt = after.encode_prompt(&messages).expect(&what);
            assert_eq!(prompt, before.encode_prompt(&messages).expect(&what), "{what}");
            cases.push(json!({"dir": folder.path(), "messages": everything, "as_list": true}));
            found.push((what, prompt));
        }
        folders.push(folder);
    }
    let Some(expected) = transformers(&cases) else { return };
    for (expected, (what, prompt)) in expected.iter().zip(&found) {
        assert_eq!(*prompt, ids(&expected["prompt"]), "{what}");
    }
    println!("{} prompts of lists have the ids of texts", found.len());
}

/// transformers' processor of an assembled model, from lists with a picture to the model's inputs: every pair of families.
#[test]
fn the_processor_of_an_assembled_model_takes_lists() {
    let folder = tempfile::tempdir().expect("a folder");
    let families: Vec<_> = references::all().map(|family| (family, folder.path().join(family.name))).collect();
    for (family, dir) in &families {
        let assembled = Command::new(program("preprocess"))
            .args(["model", "--vision-tower"])
            .arg(family.vision_tower())
            .arg("--language-model")
            .arg(family.language_model())
            .args(["--vision-feature-select-strategy", family.spec()["select"].as_str().expect("a strategy")])
            .arg("--output")
            .arg(dir)
            .output()
            .expect("preprocess starts");
        assert!(assembled.status.success(), "{}", String::from_utf8_lossy(&assembled.stderr));
    }
    let Some(mut python) = python() else { return };
    python.arg(python_script("list_contents.py")).arg(reference("pictures/images/100000000.jpg"));
    let ran = python.args(families.iter().map(|(_, dir)| dir)).output().expect("it starts");
    let text = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{text}{}", String::from_utf8_lossy(&ran.stderr));
    let found: Vec<Value> = serde_json::from_str(text.lines().last().expect("a line")).expect("JSON");
    let message = |role, content: &str| Message { role, content: content.into() };
    let turns = [
        message(Role::System, "Be brief."),
        message(Role::User, "<image>\nWhat is it?"),
        message(Role::Assistant, "A cat."),
        message(Role::User, "Sure?"),
    ];
    assert_eq!(found.len(), families.len());
    for ((family, dir), found) in families.iter().zip(&found) {
        let chat = ChatProcessor::from_dir(dir).expect("reads");
        assert_eq!(found["text"], chat.render(&turns, true).expect("it renders"), "{}", family.name);
        let image = chat.image_token_id;
        let features = family.config().image_seq_length();
        let expand = |id: u32| std::iter::repeat_n(id, if id == image { features } else { 1 });
        let expected: Vec<u32> = chat.encode_prompt(&turns).expect("ids").into_iter().flat_map(expand).collect();
        assert_eq!(ids(&found["input_ids"]), expected, "{}", family.name);
        println!("{}: {} ids of a conversation with a picture are transformers'", family.name, expected.len());
    }
}
