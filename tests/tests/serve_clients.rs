//! `infer serve` and the requests that clients send: bodies as they were captured from them, spellings of pictures, addresses.

use serde_json::{Value, json};
use std::path::Path;
use tests::server::Server;
use tests::small::Small;
use tests::to_base64;

/// Bodies as the clients sent them, one a line: client and version, expected status and `param`.
const REQUESTS: &str = include_str!("../data/client_requests.jsonl");
const CHAT: &str = "/v1/chat/completions";
const JSON: &str = "Content-Type: application/json\r\n";

fn data_uri(picture: &Path) -> String {
    format!("data:image/png;base64,{}", to_base64(&std::fs::read(picture).expect("a picture")))
}

fn post(server: &Server, path: &str, body: &Value) -> (u16, Value) {
    let (status, head, text) = server.send("POST", path, JSON, body.to_string().as_bytes());
    if head.to_lowercase().contains("text/event-stream") {
        return (status, json!({"events": text}));
    }
    (status, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{status} {text}: {error}")))
}

#[test]
fn requests_of_eight_clients() {
    let small = Small::make();
    let server = Server::of(&small.model(), &[]);
    let picture = data_uri(&small.picture(0));
    let mut clients = std::collections::BTreeMap::new();
    for line in REQUESTS.lines() {
        let row: Value = serde_json::from_str(&line.replace("{picture}", &picture)).expect("JSON");
        let (status, answer) = post(&server, CHAT, &row["body"]);
        let place = format!("{}: {line}", row["client"]);
        assert_eq!(json!(status), row["status"], "{place}: {answer}");
        match (status, row["body"]["stream"].as_bool()) {
            (200, Some(true)) => {
                let events = answer["events"].as_str().expect("events");
                assert!(
                    events.trim_end().ends_with("data: [DONE]") && !events.contains("\"error\""),
                    "{place}: {events}"
                );
            }
            (200, _) => assert!(answer["choices"][0]["message"]["content"].is_string(), "{place}: {answer}"),
            _ => {
                assert_eq!(answer["error"]["param"], row["param"], "{place}: {answer}");
                let message = answer["error"]["message"].as_str().expect("a message");
                assert!(!message.contains("untagged") && message.len() < 400, "{place}: {message}");
            }
        }
        *clients.entry(row["client"].to_string()).or_insert(0) += 1;
    }
    println!("requests of {clients:?}");
    assert_eq!(clients.len(), 8);
}

/// Every spelling of a picture's data gives the same prompt; system messages are joined; answers and system messages may be last.
#[test]
fn pictures_and_system_messages_in_many_spellings() {
    let small = Small::make();
    let server = Server::of(&small.model(), &[]);
    let uri = data_uri(&small.picture(0));
    let (head, data) = uri.split_once(',').expect("a data URI");
    let wrapped: String =
        data.as_bytes().chunks(76).map(|line| format!("{}\r\n", String::from_utf8_lossy(line))).collect();
    let ask = |messages: Value| post(&server, CHAT, &json!({"model": "tiny", "max_tokens": 4, "messages": messages}));
    let about = |url: String| {
        let image = json!({"type": "image_url", "image_url": {"url": url}});
        ask(json!([{"role": "user", "content": [{"type": "text", "text": "What is this?"}, image]}]))
    };
    let (status, expected) = about(uri.clone());
    assert_eq!(status, 200, "{expected}");
    for url in [
        format!("{head},{wrapped}"),
        format!("{head},{}", data.replace('+', "-").replace('/', "_")),
        format!("{head},{}", data.trim_end_matches('=')),
        format!("data:image/png;name=\"a b.png\";base64,{data}"),
        format!("{head},{}", data.replace('+', "%2B").replace('=', "%3D")),
    ] {
        let (status, answer) = about(url);
        assert_eq!(status, 200, "{answer}");
        assert_eq!((&answer["usage"], &answer["choices"]), (&expected["usage"], &expected["choices"]));
    }
    let (status, answer) = about(format!("{head},{}", &data[..data.len() / 2]));
    assert_eq!((status, answer["error"]["code"].as_str()), (400, Some("invalid_image")), "{answer}");
    assert_eq!(answer["error"]["param"], "messages[0].content[1].image_url.url");

    let user = json!({"role": "user", "content": "What is this?"});
    let system = |role: &str, text: &str| json!({"role": role, "content": text});
    let tokens = |messages: Value| {
        let (status, answer) = ask(messages);
        assert_eq!(status, 200, "{answer}");
        answer["usage"]["prompt_tokens"].as_u64().expect("a number")
    };
    let joined = tokens(json!([system("system", "Be brief.\n\nUse English."), user]));
    assert_eq!(tokens(json!([system("system", "Be brief."), system("developer", "Use English."), user])), joined);
    let default = tokens(json!([user]));
    assert_eq!(default, tokens(json!([system("developer", "You are a helpful assistant."), user])));
    assert!(tokens(json!([system("system", ""), user])) < default, "an empty system message is empty");
    let answer = json!({"role": "assistant", "content": null});
    assert_eq!(ask(json!([user, answer, user])).0, 200);
    assert_eq!(ask(json!([user, {"role": "assistant", "content": "A circle."}])).0, 200);
    assert_eq!(ask(json!([system("system", "Say hello.")])).0, 200);
    // A marker is one token and a literal several; without a picture it is a literal.
    assert!(
        tokens(json!([{"role": "user", "content": "<image>"}])) > tokens(json!([{"role": "user", "content": "x"}]))
    );
}

#[test]
fn other_addresses_name_the_one_that_is_served() {
    let small = Small::make();
    let server = Server::of(&small.model(), &["--api-key", "secret"]);
    for path in
        ["/v1/responses", "/v1/completions", "/v1/embeddings", "/v1/moderations", "/chat/completions", "/api/chat"]
    {
        let (status, answer) = post(&server, path, &json!({"model": "tiny", "input": "Hi"}));
        let message = answer["error"]["message"].as_str().unwrap_or_default();
        assert!(
            status == 404 && message.contains("/v1/chat/completions") && message.contains(path),
            "{path}: {answer}"
        );
    }
    let (status, _, text) = server.send("GET", CHAT, "", b"");
    assert!(status == 405 && text.contains("POST /v1/chat/completions"), "{text}");
    for (scheme, expected) in [("Bearer", 200), ("bearer", 200), ("BEARER ", 200), ("Basic", 401), ("", 401)] {
        let header = format!("Authorization: {scheme} secret\r\n");
        assert_eq!(server.send("GET", "/v1/models", &header, b"").0, expected, "{scheme}");
    }
}
