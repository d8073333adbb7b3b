use super::*;
use clap::Parser;
use serde_json::json;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    limits: Limits,
}

fn parse(body: &Value) -> Result<ChatRequest, ApiError> {
    let limits = Cli::parse_from(["serve", "--max-images", "4"]).limits;
    ChatRequest::parse(body.to_string().as_bytes(), "m", &limits, 9)
}

fn with(name: &str, value: Value) -> Result<ChatRequest, ApiError> {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "Hi"}]});
    body[name] = value;
    parse(&body)
}

fn picture() -> Value {
    json!({"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}})
}

fn text(text: &str) -> Value {
    json!({"type": "text", "text": text})
}

/// Messages as `role:text|text`, a picture as `#`.
fn shown(messages: &[ChatMessage]) -> String {
    let part = |part: &Part| if let Part::Text(text) = part { text.clone() } else { "#".to_string() };
    let message = |message: &ChatMessage| {
        let parts: Vec<String> = message.parts.iter().map(part).collect();
        format!("{}:{}", message.role.as_str(), parts.join("|"))
    };
    messages.iter().map(message).collect::<Vec<_>>().join("; ")
}

#[test]
fn conversations() {
    let (user, answer) = (json!({"role": "user", "content": "Q"}), json!({"role": "assistant", "content": "A"}));
    let system = |role: &str, content: Value| json!({"role": role, "content": content});
    for (messages, expected) in [
        // Parts keep their order; only pictures after all of the text stand before it.
        (json!([{"role": "user", "content": [text("What?"), picture()]}]), "user:#|What?"),
        (json!([{"role": "user", "content": [text("A"), text("B"), picture(), picture()]}]), "user:#|#|A|B"),
        (json!([{"role": "user", "content": [text("A:"), picture(), text("B:"), picture()]}]), "user:A:|#|B:|#"),
        (json!([{"role": "user", "content": [text("A\n<image>"), picture()]}]), "user:A|#"),
        (json!([{"role": "user", "content": [picture(), text("What?")]}]), "user:#|What?"),
        (
            json!([{"role": "user", "content": [text("A:"), picture(), text("B:"), picture(), text("Same?")]}]),
            "user:A:|#|B:|#|Same?",
        ),
        (json!([{"role": "user", "content": [text(""), picture(), text("")]}]), "user:#"),
        (json!([{"role": "user", "content": []}]), "user:"),
        (json!([{"role": "user", "content": ["Who?", picture()]}]), "user:#|Who?"),
        (json!([{"role": "user", "content": [{"type": "image_url", "image_url": "data:,x"}]}]), "user:#"),
        // `<image>` alone on a line, once for each picture, says where they stand; any other is text.
        (
            json!([{"role": "user", "content": [text("A:\n<image>\nB:\n <image> \nSame?"), picture(), picture()]}]),
            "user:A:|#|B:|#|Same?",
        ),
        (json!([{"role": "user", "content": [picture(), text("<image>\nWhat?")]}]), "user:#|What?"),
        (json!([{"role": "user", "content": [picture(), text("<image>\n<image>")]}]), "user:#|<image>\n<image>"),
        (
            json!([{"role": "user", "content": [picture(), text("What is an <image> tag?")]}]),
            "user:#|What is an <image> tag?",
        ),
        (json!([{"role": "user", "content": "<image>"}]), "user:<image>"),
        // System and developer messages.
        (json!([system("system", json!("a")), system("developer", json!("b")), user]), "system:a\n\nb; user:Q"),
        (
            json!([
                system("system", json!([text("a"), text("b")])),
                system("system", json!("")),
                system("system", json!("c"))
            ]),
            "system:a\nb\n\nc",
        ),
        (json!([system("system", json!("")), user]), "system:; user:Q"),
        (json!([user, answer, system("developer", json!("s"))]), "user:Q; assistant:A; system:s"),
        // Answers.
        (json!([user, answer]), "user:Q; assistant:A"),
        (json!([answer, answer, user, user]), "assistant:A; assistant:A; user:Q; user:Q"),
        (json!([user, {"role": "assistant", "content": null}]), "user:Q; assistant:"),
        (
            json!([user, {"role": "assistant", "refusal": "No.", "tool_calls": [], "annotations": [], "audio": null}, user]),
            "user:Q; assistant:No.; user:Q",
        ),
        (
            json!([user, {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}], "reasoning_content": "Hm."}]),
            "user:Q; assistant:No.",
        ),
    ] {
        let request =
            with("messages", messages.clone()).unwrap_or_else(|error| panic!("{messages}: {}", error.message));
        assert_eq!(shown(&request.messages), expected);
        let pictures = request.messages.iter().flat_map(|message| &message.parts).filter(|part| **part == Part::Image);
        assert_eq!(pictures.count(), request.images.len(), "{messages}");
    }
    let request = with("messages", json!([{"role": "user", "content": [text("What?"), picture()]}])).expect("accepted");
    let place = "messages[0].content[1].image_url.url".to_string();
    assert_eq!(request.images, [ImagePart { source: ImageUrl::Data("data:image/png;base64,AA==".into()), place }]);
}

#[test]
fn settings_are_taken() {
    assert_eq!(
        (with("n", json!(1)).expect("accepted").sampling.seed, with("n", json!(1)).expect("accepted").max_tokens),
        (9, 512)
    );
    assert_eq!(with("seed", json!(-1)).expect("accepted").sampling.seed, u64::MAX);
    assert_eq!(with("seed", json!(7.0)).expect("accepted").sampling.seed, 7);
    assert_eq!(with("stop", json!("a")).expect("accepted").stop, ["a"]);
    assert_eq!(with("stop", json!(["", "a"])).expect("accepted").stop, ["a"]);
    assert_eq!(with("max_tokens", json!(3.0)).expect("accepted").max_tokens, 3);
    assert_eq!(with("max_completion_tokens", json!(3)).expect("accepted").max_tokens, 3);
    assert_eq!(with("top_k", json!(-1)).expect("accepted").sampling.top_k, 0);
    assert_eq!(with("temperature", json!(1)).expect("accepted").sampling.temperature, 1.0);
    assert!(
        with("stream", json!(true)).expect("accepted").stream && !with("stream", json!(null)).expect("accepted").stream
    );
    assert!(
        with("stream_options", json!({"include_usage": true, "include_obfuscation": false}))
            .expect("accepted")
            .include_usage
    );
    let mut both = json!({"model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5, "max_completion_tokens": 2});
    assert_eq!(parse(&both).expect("accepted").max_tokens, 2);
    both["tools"] = json!([{"type": "function", "function": {"name": "f"}}]);
    assert_eq!(parse(&both).unwrap_err().param.as_deref(), Some("tools"));
    both["tool_choice"] = json!("none");
    assert!(parse(&both).is_ok(), "tools that may not be called");
}

#[test]
fn values_that_ask_for_nothing_are_accepted_and_others_refused_by_name() {
    for (name, nothing, something) in [
        ("top_logprobs", json!(0), json!(3)),
        ("logprobs", json!(false), json!(true)),
        ("modalities", json!(["text"]), json!(["text", "audio"])),
        ("function_call", json!("none"), json!({"name": "f"})),
        ("functions", json!([]), json!([{"name": "f"}])),
        ("tools", json!([]), json!([{}])),
        ("tool_choice", json!("auto"), json!("required")),
        ("min_p", json!(0), json!(0.1)),
        ("best_of", json!(1), json!(2)),
        ("n", json!(1.0), json!(2)),
        ("chat_template_kwargs", json!({}), json!({"enable_thinking": false})),
        ("options", json!({}), json!({"num_ctx": 8192})),
        ("presence_penalty", json!(0), json!(0.5)),
        ("frequency_penalty", json!(0.0), json!(-0.5)),
        ("repeat_penalty", json!(1), json!(1.1)),
        ("logit_bias", json!({}), json!({"5": 1})),
        ("response_format", json!({"type": "text"}), json!({"type": "json_object"})),
        ("reasoning_effort", json!("none"), json!("low")),
        ("verbosity", json!("medium"), json!("low")),
        ("thinking", json!({"type": "disabled"}), json!({"type": "enabled"})),
        ("skip_special_tokens", json!(true), json!(false)),
        ("ignore_eos", json!(false), json!(true)),
        ("stop_token_ids", json!([]), json!([5])),
        ("echo", json!(false), json!(true)),
        ("suffix", json!(""), json!("x")),
        ("audio", json!(null), json!({"voice": "alloy"})),
        ("web_search_options", json!(null), json!({})),
        ("guided_json", json!(null), json!({})),
    ] {
        let accepted = with(name, nothing.clone());
        assert!(accepted.is_ok(), "{name} {nothing}: {}", accepted.unwrap_err().message);
        let error = with(name, something.clone()).expect_err(name);
        assert_eq!((error.status.as_u16(), error.param.as_deref()), (400, Some(name)), "{something}");
        assert!(error.message.starts_with(name) && error.message.contains("does not implement"), "{}", error.message);
    }
    for (name, value) in [
        ("user", json!("u")),
        ("store", json!(true)),
        ("metadata", json!({"a": "b"})),
        ("parallel_tool_calls", json!(true)),
        ("prompt_cache_retention", json!("24h")),
        ("prediction", json!({"type": "content", "content": "x"})),
        ("keep_alive", json!("5m")),
        ("unheard_of", json!(null)),
    ] {
        assert!(with(name, value.clone()).is_ok(), "{name} {value}");
    }
}

/// Every refusal names the field as the request has it, and no type by Rust's name.
#[test]
fn refusals_name_the_field() {
    let user = |content: Value| json!([{"role": "user", "content": content}]);
    let image = |value: Value| user(json!([{"type": "image_url", "image_url": value}]));
    let rust = ["untagged", "enum", "usize", "u64", "i64", "f32", "struct", "variant", "map", "sequence", "serde"];
    for (name, value, param, code) in [
        ("temperature", json!(3), "temperature", "invalid_value"),
        ("temperature", json!(1e300), "temperature", "invalid_value"),
        ("temperature", json!("hot"), "temperature", "invalid_type"),
        ("top_p", json!(0), "top_p", "invalid_value"),
        ("top_k", json!(-2), "top_k", "invalid_value"),
        ("seed", json!(0.5), "seed", "invalid_type"),
        ("seed", json!(u64::MAX), "seed", "invalid_type"),
        ("max_tokens", json!(0), "max_tokens", "invalid_value"),
        ("max_tokens", json!(-5), "max_tokens", "invalid_value"),
        ("max_tokens", json!("5"), "max_tokens", "invalid_type"),
        ("max_tokens", json!(1e300), "max_tokens", "invalid_type"),
        ("max_completion_tokens", json!(1e9), "max_completion_tokens", "invalid_value"),
        ("stop", json!(["1", "2", "3", "4", "5"]), "stop", "invalid_value"),
        ("stop", json!(["a", null]), "stop[1]", "invalid_type"),
        ("stop", json!(5), "stop", "invalid_type"),
        ("stream", json!("true"), "stream", "invalid_type"),
        ("stream_options", json!(true), "stream_options", "invalid_type"),
        (
            "stream_options",
            json!({"continuous_usage_stats": true}),
            "stream_options.continuous_usage_stats",
            "unsupported_value",
        ),
        ("stream_options", json!({"usage": true}), "stream_options.usage", "unknown_parameter"),
        ("max_token", json!(5), "max_token", "unknown_parameter"),
        ("messages", json!(null), "messages", "missing_required_parameter"),
        ("messages", json!([]), "messages", "invalid_value"),
        ("messages", json!("Hi"), "messages", "invalid_type"),
        ("messages", json!({"role": "user"}), "messages", "invalid_type"),
        ("messages", json!(["Hi"]), "messages[0]", "invalid_type"),
        ("messages", json!([{"content": "Hi"}]), "messages[0].role", "missing_required_parameter"),
        ("messages", json!([{"role": "wizard", "content": "Hi"}]), "messages[0].role", "invalid_value"),
        (
            "messages",
            json!([{"role": "tool", "content": "Hi", "tool_call_id": "1"}]),
            "messages[0].role",
            "unsupported_value",
        ),
        ("messages", json!([{"role": "user"}]), "messages[0].content", "missing_required_parameter"),
        ("messages", user(json!(5)), "messages[0].content", "invalid_type"),
        ("messages", user(json!([5])), "messages[0].content[0]", "invalid_type"),
        ("messages", user(json!([{"text": "Hi"}])), "messages[0].content[0].type", "missing_required_parameter"),
        (
            "messages",
            user(json!([text("a"), {"type": "text"}])),
            "messages[0].content[1].text",
            "missing_required_parameter",
        ),
        ("messages", user(json!([{"type": "input_audio"}])), "messages[0].content[0].type", "invalid_value"),
        (
            "messages",
            user(json!([{"type": "refusal", "refusal": "x"}])),
            "messages[0].content[0].type",
            "invalid_value",
        ),
        (
            "messages",
            user(json!([{"type": "text", "text": "x", "images": ["y"]}])),
            "messages[0].content[0].images",
            "unknown_parameter",
        ),
        (
            "messages",
            json!([{"role": "system", "content": [picture()]}]),
            "messages[0].content[0].type",
            "invalid_value",
        ),
        (
            "messages",
            json!([{"role": "user", "content": "x", "images": ["y"]}]),
            "messages[0].images",
            "unsupported_value",
        ),
        (
            "messages",
            json!([{"role": "user", "content": "x"}, {"role": "assistant", "content": null, "tool_calls": [{"id": "1"}]}]),
            "messages[1].tool_calls",
            "unsupported_value",
        ),
        (
            "messages",
            json!([{"role": "assistant", "content": "x", "prefix": true}]),
            "messages[0].prefix",
            "unsupported_value",
        ),
        ("messages", image(json!({})), "messages[0].content[0].image_url.url", "missing_required_parameter"),
        ("messages", image(json!(5)), "messages[0].content[0].image_url", "invalid_type"),
        ("messages", image(json!("file:///etc/passwd")), "messages[0].content[0].image_url", "invalid_value"),
        ("messages", image(json!({"url": "iVBORw0KGgo="})), "messages[0].content[0].image_url.url", "invalid_value"),
        (
            "messages",
            image(json!({"url": "data:,x", "detail": "ultra"})),
            "messages[0].content[0].image_url.detail",
            "unsupported_value",
        ),
        ("messages", user(json!(vec![picture(); 5])), "messages", "invalid_value"),
        ("model", json!(5), "model", "invalid_type"),
        ("model", json!(null), "model", "missing_required_parameter"),
    ] {
        let error = with(name, value.clone()).expect_err(&format!("{name} {value}"));
        assert_eq!(
            (error.status.as_u16(), error.param.as_deref(), error.code),
            (400, Some(param), code),
            "{}",
            error.message
        );
        assert!(error.message.contains(param), "{}", error.message);
        assert!(!rust.iter().any(|word| error.message.contains(word)), "{}", error.message);
    }
    assert_eq!(with("model", json!("gpt")).unwrap_err().status.as_u16(), 404);
    assert_eq!(parse(&json!([])).unwrap_err().code, "invalid_type");
}
