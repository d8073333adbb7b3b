//! Published chat templates, and mistakes in templates: transformers' ids, or a refusal by name.

use chat::{ChatProcessor, Message, Role};
use serde_json::json;
use std::path::PathBuf;
use tempfile::TempDir;
use tests::chat_models::{directory, directory_with, prefix_space_tokenizer, write};
use tests::conversations::{CHATML, as_json, chatml_config, ids, messages, owned, supervised, template, transformers};

/// The expected outcome for a template.
pub(super) enum Outcome {
    /// Answers are supervised as (text before the answer, text up to the end of turn).
    Serves(&'static str, &'static str),
    /// The same, but only the last answer is ended, by what generation stops at: the template ends none.
    ServesWithoutEnd(&'static str, &'static str),
    /// The same as the first, without system prompts.
    ServesWithoutSystem(&'static str, &'static str),
    /// An error with these words.
    Refused(&'static [&'static str]),
}
use Outcome::{Refused, Serves, ServesWithoutEnd, ServesWithoutSystem};

/// A published template: its file, `bos_token`, the tokens that generation stops at (`eos_token` first), and the outcome.
pub(super) struct Published(pub &'static str, &'static str, &'static [&'static str], pub Outcome);

const DEEPSEEK: [&str; 2] = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"];

/// Typed from the models' repositories.
pub(super) const PUBLISHED: [Published; 30] = [
    Published("qwen1.5", "", &["<|im_end|>"], Serves("", "<|im_end|>")),
    Published("qwen2.5", "", &["<|im_end|>"], Serves("", "<|im_end|>")),
    // The empty think block that Qwen3 writes before a last answer is neither in its earlier turns nor in its prompts.
    Published("qwen3", "", &["<|im_end|>"], Serves("", "<|im_end|>")),
    Published("smollm2", "", &["<|im_end|>"], Serves("", "<|im_end|>")),
    Published("internlm2", "<s>", &["</s>", "<|im_end|>"], Serves("", "<|im_end|>")),
    Published("llama2", "<s>", &["</s>"], Serves(" ", " </s>")),
    Published("llama3", "<|begin_of_text|>", &["<|end_of_text|>", "<|eot_id|>"], Serves("", "<|eot_id|>")),
    Published("llama3.2", "<|begin_of_text|>", &["<|eot_id|>"], Serves("", "<|eot_id|>")),
    Published("vicuna", "<s>", &["</s>"], Serves(" ", "</s>")),
    Published("zephyr", "<s>", &["</s>"], Serves("", "</s>")),
    Published("alpaca", "<s>", &["</s>"], Serves("", "</s>")),
    Published("mistral-v0.1", "<s>", &["</s>"], ServesWithoutSystem("", "</s>")),
    Published("mistral-v0.3", "<s>", &["</s>"], Serves(" ", "</s>")),
    Published("gemma2", "<bos>", &["<eos>", "<end_of_turn>"], ServesWithoutSystem("", "<end_of_turn>")),
    Published("gemma3", "<bos>", &["<eos>", "<end_of_turn>"], Serves("", "<end_of_turn>")),
    Published("phi3", "<s>", &["<|endoftext|>", "<|end|>"], Serves("", "<|end|>")),
    Published("phi4-mini", "<|endoftext|>", &["<|endoftext|>", "<|end|>"], Serves("", "<|end|>")),
    Published("deepseek-v2", DEEPSEEK[0], &[DEEPSEEK[1]], Serves(" ", DEEPSEEK[1])),
    Published("deepseek-v3", DEEPSEEK[0], &[DEEPSEEK[1]], Serves("", DEEPSEEK[1])),
    Published("deepseek-r1-distill", DEEPSEEK[0], &[DEEPSEEK[1]], Refused(&["<think>", "generation prompt"])),
    Published("command-r", "<BOS_TOKEN>", &["<|END_OF_TURN_TOKEN|>"], Serves("", "<|END_OF_TURN_TOKEN|>")),
    Published("openchat", "<s>", &["<|end_of_turn|>"], Serves(" ", "<|end_of_turn|>")),
    Published("olmo2", "<|endoftext|>", &["<|endoftext|>"], Serves("", "<|endoftext|>")),
    Published("granite3", "<|end_of_text|>", &["<|end_of_text|>"], Serves("", "<|end_of_text|>")),
    Published("qwen2-vl", "", &["<|im_end|>"], Serves("", "<|im_end|>")),
    Published("smolvlm", "", &["<end_of_utterance>"], Serves(" ", "<end_of_utterance>")),
    Published("llava-interleave-qwen-hf", "", &["<|im_end|>"], Serves("", "<|im_end|>")),
    Published("llava-onevision-hf", "", &["<|im_end|>"], Serves("", "<|im_end|>")),
    Published("llava-v1.6-mistral-hf", "<s>", &["</s>"], Serves(" ", "</s>")),
    // It ends no turn: the last answer is ended with what generation stops at.
    Published("llava-1.5-hf", "<s>", &["</s>"], ServesWithoutEnd(" ", "</s>")),
];

/// Templates that read contents as lists.
const AS_LISTS: [&str; 5] =
    ["smolvlm", "llava-interleave-qwen-hf", "llava-onevision-hf", "llava-v1.6-mistral-hf", "llava-1.5-hf"];
/// Templates whose finished conversations differ from prompt + answer: an empty think block, a space for a newline, the system
/// prompt of the last question alone, an end that the template does not write.
const PROMPT_ONLY: [&str; 4] = ["qwen3", "llava-onevision-hf", "mistral-v0.3", "llava-1.5-hf"];

pub(super) fn published_directory(Published(name, bos, stops, _): &Published) -> TempDir {
    let mut tokens = vec!["<image>", "<|im_start|>", "<|user|>", "<|assistant|>", "<|start_header_id|>", "[INST]"];
    tokens.extend_from_slice(stops);
    let mut config = json!({"eos_token": stops[0], "extra_special_tokens": tokens});
    if !bos.is_empty() {
        config["bos_token"] = json!(bos);
    }
    let folder = directory(&config, &template(name));
    // Ids as they are added: bos and eos first, then the list.
    let mut order: Vec<&str> = (!bos.is_empty()).then_some(*bos).into_iter().chain([stops[0]]).collect();
    order.extend(tokens);
    let mut ids: Vec<&str> = Vec::new();
    for token in order {
        if !ids.contains(&token) {
            ids.push(token);
        }
    }
    let id = |token: &&str| 256 + ids.iter().position(|other| other == token).expect("added");
    write(
        folder.path(),
        "generation_config.json",
        &json!({"eos_token_id": stops.iter().map(id).collect::<Vec<_>>()}).to_string(),
    );
    folder
}

/// Conversations: a system prompt, and turns.
pub(super) const CONVERSATIONS: [(&str, &[(&str, &str)]); 4] = [
    ("Be  brief.", &[("<image>\nWhat is it?", "A cat.")]),
    ("Be  brief.", &[("What is it?", "A cat."), ("Sure?", "Yes\nno"), ("Why?", "I see 100% <it>")]),
    ("", &[("Hi there", "Hello")]),
    ("", &[("Hi there", "Hello"), ("<image>\nAnd?", "a  b")]),
];

#[test]
fn published_templates_give_transformers_ids_or_are_refused_by_name() {
    let mut cases = Vec::new();
    let mut found: Vec<(String, Vec<u32>, Vec<u32>)> = Vec::new();
    let mut folders = Vec::new();
    for published in &PUBLISHED {
        let Published(name, _, stops, outcome) = published;
        let folder = published_directory(published);
        let chat = ChatProcessor::from_dir(folder.path());
        let (gap, end, takes_system) = match outcome {
            Serves(gap, end) | ServesWithoutEnd(gap, end) => (gap, end, true),
            ServesWithoutSystem(gap, end) => (gap, end, false),
            Refused(words) => {
                let error = chat.err().unwrap_or_else(|| panic!("{name} is refused")).to_string();
                assert!(words.iter().all(|word| error.contains(word)), "{name}: {error}");
                println!("{name}: refused: {error}");
                continue;
            }
        };
        let chat = chat.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(chat.takes_system(), takes_system, "{name}");
        assert_eq!(chat.decode(&chat.eos_token_ids[..1], false).expect("it decodes"), end.trim(), "{name}");
        assert_eq!(chat.eos_token_ids.len(), stops.len(), "{name}");
        for (system, turns) in CONVERSATIONS {
            let what = format!("{name}, {} turns, system {system:?}", turns.len());
            if !system.is_empty() && !takes_system {
                let error = chat.encode_sample(system, &owned(turns)).expect_err(&what).to_string();
                assert!(error.contains("--system-prompt \"\""), "{what}: {error}");
                continue;
            }
            let sample = chat.encode_sample(system, &owned(turns)).unwrap_or_else(|error| panic!("{what}: {error}"));
            let mut messages = messages(system, turns);
            let is_ended = |turn| turn + 1 == turns.len() || !matches!(outcome, ServesWithoutEnd(..));
            let answers =
                turns.iter().enumerate().map(|(turn, (_, answer))| (answer, if is_ended(turn) { *end } else { "" }));
            let expected: String = answers.map(|(answer, end)| format!("{gap}{answer}{end}")).collect();
            assert_eq!(supervised(&chat, &sample.labels), expected, "{what}");
            let everything = as_json(&messages, chat.has_default_system());
            messages.pop();
            let prompt = chat.encode_prompt(&messages).expect(&what);
            let row: Vec<u32> = sample.input_ids.iter().map(|&id| id as u32).collect();
            assert!(row.starts_with(&prompt), "{what}: generation sees what training saw");
            cases.push(json!({"dir": folder.path(), "messages": everything, "as_list": AS_LISTS.contains(name)}));
            found.push((what, prompt, row));
        }
        folders.push(folder);
    }
    let Some(expected) = transformers(&cases) else { return };
    assert_eq!(expected.len(), found.len());
    for (expected, (what, prompt, row)) in expected.iter().zip(&found) {
        assert_eq!(*prompt, ids(&expected["prompt"]), "{what}: prompt");
        let by_prompt_only = PROMPT_ONLY.iter().any(|name| what.starts_with(name));
        assert!(by_prompt_only || ids(&expected["finished"]).starts_with(row), "{what}: row");
    }
    println!("{} prompts and rows have transformers' ids", found.len());
}

/// Llama 2's tokenizer writes `<s>` before a text, unless the template has written it.
#[test]
fn prompts_begin_as_transformers_processors_begin_them() {
    let mut tokenizer = prefix_space_tokenizer();
    let start = json!({"SpecialToken": {"id": "<s>", "type_id": 0}});
    let text = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
    tokenizer["post_processor"] = json!({
        "type": "TemplateProcessing", "single": [start, text("A")], "pair": [start, text("A"), text("B")],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [263], "tokens": ["<s>"]}},
    });
    let special = |(id, content): (u32, &str)| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    tokenizer["added_tokens"] = [(263, "<s>"), (264, "</s>"), (265, "<image>")].map(special).into_iter().collect();
    let config = json!({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": true,
        "tokenizer_class": "LlamaTokenizer"});
    let (mut cases, mut found, mut folders) = (Vec::new(), Vec::new(), Vec::new());
    for (name, writes_start) in [("vicuna", false), ("llava-1.5-hf", false), ("llama2", true)] {
        let folder = directory_with(&tokenizer, &config, &template(name));
        // As that of a LLaVA: AutoTokenizer takes tokenizer.json as it is.
        write(folder.path(), "config.json", r#"{"model_type": "llava"}"#);
        let chat = ChatProcessor::from_dir(folder.path()).unwrap_or_else(|error| panic!("{name}: {error}"));
        for (system, turns) in CONVERSATIONS.into_iter().filter(|(system, _)| !system.is_empty()) {
            let what = format!("{name}, {} turns", turns.len());
            let mut messages = messages(system, turns);
            let everything = as_json(&messages, false);
            messages.pop();
            let prompt = chat.encode_prompt(&messages).expect(&what);
            assert_eq!(
                prompt.iter().filter(|&&id| id == 263).count(),
                if writes_start { turns.len() } else { 1 },
                "{what}"
            );
            let row = chat.encode_sample(system, &owned(turns)).expect(&what).input_ids;
            assert_eq!((prompt[0], row[0], row.last()), (263, 263, Some(&264)), "{what}");
            let as_list = AS_LISTS.contains(&name);
            cases.push(json!({"dir": folder.path(), "messages": everything, "as_list": as_list, "as_processor": true}));
            found.push((what, prompt));
        }
        folders.push(folder);
    }
    let Some(expected) = transformers(&cases) else { return };
    for (expected, (what, prompt)) in expected.iter().zip(&found) {
        assert_eq!(*prompt, ids(&expected["prompt"]), "{what}: prompt");
    }
}

#[test]
fn a_template_that_cannot_serve_is_refused_with_what_it_does() {
    let generation = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    let turns = |content: &str, end: &str| {
        format!(
            "{{% for m in messages %}}{{{{ '<|im_start|>' + m.role + '\n' + {content} + '{end}' }}}}{{% endfor %}}{generation}"
        )
    };
    let table: [(&str, String, &[&str]); 9] = [
        ("drops questions", turns("''", "<|im_end|>"), &["a question that is not written"]),
        ("writes questions twice", turns("m.content * 2", "<|im_end|>"), &["that is written 2 times"]),
        (
            "prints lists",
            turns("(m.content if m.content is not string else raise_exception('lists only')) | string", "<|im_end|>"),
            &["lists only"],
        ),
        (
            "ends in a text",
            turns("m.content", "###"),
            &["turns that end in the text \"###\"", "\"<|im_end|>\" (256)", "eos_token_id"],
        ),
        (
            "ends in another token",
            turns("m.content", "<|endoftext|>"),
            &["turns that end in \"<|endoftext|>\" (token 259)", "\"<|im_end|>\" (256)"],
        ),
        (
            "refuses users",
            format!("{{{{ raise_exception('no user') if messages[-1].role == 'user' }}}}{CHATML}"),
            &["no user"],
        ),
        (
            "drops answers",
            turns("(m.content if m.role != 'assistant' else '')", "<|im_end|>"),
            &["an answer that is not written"],
        ),
        ("drops images", turns("m.content.replace('<image>', '')", "<|im_end|>"), &["an image that is not written"]),
        ("is no Jinja", "{% for m in %}".into(), &["syntax error"]),
    ];
    for (what, template, words) in table {
        let folder = directory(&chatml_config(), &template);
        let error = ChatProcessor::from_dir(folder.path()).err().expect(what).to_string();
        println!("{what}: {error}");
        assert!(words.iter().all(|word| error.contains(word)), "{what}: {error}");
        assert!(error.starts_with(&folder.path().display().to_string()), "{error}");
    }
}

#[test]
fn the_end_of_turn_is_the_templates_own_when_generation_stops_there() {
    let mut config = chatml_config();
    config["eos_token"] = json!("<|endoftext|>");
    config["extra_special_tokens"] = json!(["<image>", "<|im_start|>", "<|im_end|>"]);
    let folder = directory(&config, CHATML);
    let refused = ChatProcessor::from_dir(folder.path()).err().expect("a base model's eos").to_string();
    assert!(refused.contains("\"<|im_end|>\" (token 259)") && refused.contains("generation_config.json"), "{refused}");

    write(folder.path(), "generation_config.json", r#"{"eos_token_id": [259, 256]}"#);
    let chat = ChatProcessor::from_dir(folder.path()).expect("it serves");
    assert_eq!(chat.eos_token_ids, [259, 256]);
    let sample = chat.encode_sample("S", &owned(&[("Q", "A"), ("R", "B")])).expect("it encodes");
    assert_eq!(supervised(&chat, &sample.labels), "A<|im_end|>B<|im_end|>");
    let text = chat.decode(&sample.input_ids.iter().map(|&id| id as u32).collect::<Vec<_>>(), false).expect("decodes");
    assert_eq!(
        text,
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n\
         <|im_start|>user\nR<|im_end|>\n<|im_start|>assistant\nB<|im_end|>"
    );
}

/// The number of a turn, which differs from row to row, belongs to the answer where it follows the generation prompt.
#[test]
fn templates_that_number_turns_give_transformers_ids() {
    let end = "{{ '\n' + m.content + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}";
    let numbered =
        |number: &str| format!("{{% for m in messages %}}{{{{ '<|im_start|>' + m.role + ({number}) | string }}}}{end}");
    let mut cases = Vec::new();
    let mut found = Vec::new();
    let mut folders = Vec::new();
    for number in ["loop.index", "loop.index0 * 11", "'no ' + loop.index0 | string"] {
        let folder = directory(&chatml_config(), &numbered(number));
        let chat = ChatProcessor::from_dir(folder.path()).unwrap_or_else(|error| panic!("{number}: {error}"));
        for (system, turns) in CONVERSATIONS {
            let sample = chat.encode_sample(system, &owned(turns)).unwrap_or_else(|error| panic!("{number}: {error}"));
            let everything = as_json(&messages(system, turns), chat.has_default_system());
            cases.push(json!({"dir": folder.path(), "messages": everything}));
            let row: Vec<u32> = sample.input_ids.iter().map(|&id| id as u32).collect();
            found.push((format!("{number}, {} turns", turns.len()), row, supervised(&chat, &sample.labels)));
        }
        folders.push(folder);
    }
    // The first answer with a system prompt is the third message, the last of three answers the seventh.
    assert_eq!(found[0].2, "3\nA cat.<|im_end|>");
    assert!(found[1].2.ends_with("7\nI see 100% <it><|im_end|>"), "{}", found[1].2);
    let Some(expected) = transformers(&cases) else { return };
    for (expected, (what, row, _)) in expected.iter().zip(&found) {
        assert!(ids(&expected["finished"]).starts_with(row), "{what}");
    }
}

#[test]
fn a_row_that_a_template_would_garble_is_refused() {
    // As Qwen3's: an answer with a think block moves the text before it.
    let template = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if '</think>' in m.content %}{{ '[thought]' }}\
                    {{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}\
                    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    let folder = directory(&chatml_config(), template);
    let chat = ChatProcessor::from_dir(folder.path()).expect("it serves");
    // What the template writes for the answer is the answer, wherever it stands.
    for turns in [&[("Q", "<think>x</think>A")][..], &[("Q", "<think>x</think>A"), ("R", "B")]] {
        let sample = chat.encode_sample("", &owned(turns)).expect("it encodes");
        let rest = if turns.len() == 2 { "B<|im_end|>" } else { "" };
        assert_eq!(supervised(&chat, &sample.labels), format!("[thought]A<|im_end|>{rest}"));
    }
    let template = format!("{{{{ messages | map(attribute='content') | join('') | length }}}}{CHATML}");
    let folder = directory(&chatml_config(), &template);
    let chat = ChatProcessor::from_dir(folder.path()).expect("it serves");
    let error = chat.encode_sample("", &owned(&[("Q", "a longer answer")])).expect_err("another text before it");
    assert!(error.to_string().contains("changes the text around it"), "{error}");
}

#[test]
fn lists_keep_questions_apart_and_images_where_they_stand() {
    let template = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% for part in m.content %}{% if part.type == 'image' %}\
                    {{ '<image>' }}{% else %}{{ part.text }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}\
                    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    let folder = directory(&chatml_config(), template);
    let chat = ChatProcessor::from_dir(folder.path()).expect("it serves");
    let text = |question: &str| {
        let messages = [
            Message { role: Role::System, content: String::new() },
            Message { role: Role::User, content: question.into() },
        ];
        chat.decode(&chat.encode_prompt(&messages).expect("it encodes"), false).expect("it decodes")
    };
    let prompt = |content: &str| format!("<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n");
    for (question, content) in [
        ("What is this?", "What is this?"),
        ("Something else", "Something else"),
        ("<image>\nWhat is this?", "<image>What is this?"),
        ("What is\n<image>", "What is<image>"),
        ("A <image> and <image>?", "A <image> and <image>?"),
    ] {
        assert_eq!(text(question), prompt(content));
    }
    // Text parts alone, where images would be written otherwise.
    let folder = directory(&chatml_config(), &template.replace("'<image>'", "'<|vision_start|>'"));
    let chat = ChatProcessor::from_dir(folder.path()).expect("it serves");
    let messages = [
        Message { role: Role::System, content: String::new() },
        Message { role: Role::User, content: "<image>\nHi".into() },
    ];
    let ids = chat.encode_prompt(&messages).expect("it encodes");
    assert_eq!(chat.decode(&ids, false).expect("it decodes"), prompt("<image>\nHi"));
}

/// A LLaVA directory of the reference material with another template.
fn llava_with(template: &str) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for entry in std::fs::read_dir(tests::reference("tiny/llava")).expect("listed") {
        let source: PathBuf = entry.expect("an entry").path();
        std::fs::copy(&source, folder.path().join(source.file_name().expect("a name"))).expect("copied");
    }
    std::fs::remove_file(folder.path().join("chat_template.jinja")).expect("removed");
    write(folder.path(), "chat_template.jinja", template);
    folder
}

#[test]
fn preprocess_refuses_a_template_before_the_first_row() {
    let gemma =
        format!("{{{{ raise_exception('System role not supported') if messages[0].role == 'system' }}}}{CHATML}");
    let data = tempfile::tempdir().expect("a folder");
    let turns = json!([{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]);
    write(data.path(), "chat.json", &json!([{"id": "a", "conversations": turns}]).to_string());
    let run = |template: &str, options: &[&str]| {
        let model = llava_with(template);
        let output = tempfile::tempdir().expect("a folder");
        let shards = output.path().join("shards");
        let mut command = std::process::Command::new(tests::program("preprocess"));
        command.arg("shards").arg("--model").arg(model.path()).arg("--data").arg(data.path());
        let run = command.arg("--output").arg(&shards).args(options).output().expect("it starts");
        (run.status.code(), String::from_utf8_lossy(&run.stderr).into_owned(), shards.exists())
    };
    let (code, stderr, made) = run(&gemma, &[]);
    assert!(code == Some(1) && !made, "{code:?} {stderr}");
    assert!(stderr.contains("System role not supported") && stderr.contains("--system-prompt \"\""), "{stderr}");
    let (code, stderr, made) = run(&gemma, &["--system-prompt", ""]);
    assert!(code == Some(0) && made, "{code:?} {stderr}");
    let (code, stderr, made) = run(&CHATML.replace("m.content", "''"), &[]);
    assert!(code == Some(1) && !made && stderr.contains("a question that is not written"), "{code:?} {stderr}");
    let dated = format!("{{{{ strftime_now('%d %b %Y') }}}}{CHATML}");
    let (code, stderr, _) = run(&dated, &[]);
    assert!(code == Some(0) && stderr.contains("SOURCE_DATE_EPOCH"), "{code:?} {stderr}");
}
