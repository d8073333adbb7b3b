//! `infer serve`: OpenAI's API over plain sockets, the official client, many clients.

use serde_json::{Value, json};
use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;
use tests::inference::infer_ok;
use tests::server::{CHAT, JSON, Server, about_the_picture, question, split};
use tests::{python, python_script, reference, to_base64};

#[test]
fn answers_equal_the_command_line_whole_and_streamed() {
    let server = Server::start(&[]);
    let image = reference("pictures/images/100000000.jpg");
    let model = server.model.as_ref().and_then(|model| model.path().to_str()).expect("UTF-8");
    let args = [
        "generate",
        "--model",
        model,
        "--image",
        image.to_str().expect("UTF-8"),
        "--prompt",
        "What is this?",
        "--max-new-tokens",
        "24",
    ];
    let expected = infer_ok(&args);
    // Clients send the question first; the picture stands before it all the same.
    let body = about_the_picture("What is this?");
    let (status, answer) = server.chat(&body);
    assert_eq!(
        (status, answer["choices"][0]["message"]["content"].as_str()),
        (200, Some(expected.trim_end_matches('\n')))
    );
    assert_eq!(answer["object"], "chat.completion");
    let usage = &answer["usage"];
    assert_eq!(
        usage["total_tokens"].as_u64(),
        Some(usage["prompt_tokens"].as_u64().expect("n") + usage["completion_tokens"].as_u64().expect("n"))
    );

    let mut streamed = body.clone();
    streamed["stream"] = json!(true);
    streamed["stream_options"] = json!({"include_usage": true});
    let (status, head, events) = server.send("POST", CHAT, JSON, streamed.to_string().as_bytes());
    assert!(status == 200 && head.contains("text/event-stream"), "{head}");
    let data: Vec<&str> = events.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    assert_eq!(data.last(), Some(&"[DONE]"));
    let chunks: Vec<Value> =
        data[..data.len() - 1].iter().map(|data| serde_json::from_str(data).expect("JSON")).collect();
    let text: String = chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, expected.trim_end_matches('\n'));
    assert_eq!(chunks.last().expect("chunks")["usage"], *usage);
    assert_eq!(chunks[chunks.len() - 2]["choices"][0]["finish_reason"], answer["choices"][0]["finish_reason"]);
}

/// Pictures between texts stay there: as in a text with markers, and not as in front.
#[test]
fn pictures_between_texts_stay_there() {
    // With random weights answers depend on everything in the prompt.
    let server = Server::of(&reference("tiny/llava"), &[]);
    let image = |name: &str| {
        let bytes = std::fs::read(reference(&format!("pictures/images/{name}"))).expect("a picture");
        json!({"type": "image_url", "image_url": {"url": format!("data:image/jpeg;base64,{}", to_base64(&bytes))}})
    };
    let text = |text: &str| json!({"type": "text", "text": text});
    let (a, b) = (image("100000000.jpg"), image("100000001.jpg"));
    let between = server.text(&question(json!([text("First:"), a, text("Second:"), b, text("Which?")])));
    let marked = text("First:\n<image>\nSecond:\n<image>\nWhich?");
    assert_eq!(server.text(&question(json!([marked, a, b]))), between);
    assert_ne!(server.text(&question(json!([a, b, text("First:"), text("Second:"), text("Which?")]))), between);
}

#[test]
fn settings_several_turns_and_the_other_addresses() {
    let server = Server::start(&["--max-queue", "4"]);
    let mut drawn = about_the_picture("Describe it.");
    drawn["temperature"] = json!(1.0);
    drawn["seed"] = json!(5);
    assert_eq!(server.text(&drawn), server.text(&drawn), "the same seed");
    let first = server.text(&drawn);
    drawn["seed"] = json!(6);
    assert_ne!(server.text(&drawn), first, "another seed");

    let mut turns = about_the_picture("What is this?");
    let messages = turns["messages"].as_array_mut().expect("messages");
    messages
        .extend([json!({"role": "assistant", "content": "A statue."}), json!({"role": "user", "content": "Sure?"})]);
    assert_eq!(server.chat(&turns).0, 200);

    let mut stopped = about_the_picture("What is this?");
    stopped["stop"] = json!(["a a a"]);
    let (_, answer) = server.chat(&stopped);
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert!(!answer["choices"][0]["message"]["content"].as_str().expect("text").contains("a a a"));

    let (status, _, models) = server.send("GET", "/v1/models", "", b"");
    assert!(status == 200 && models.contains("\"id\":\"tiny\""), "{models}");
    assert_eq!(server.send("GET", "/health", "", b"").0, 200);
    let (status, _, metrics) = server.send("GET", "/metrics", "", b"");
    assert!(status == 200 && metrics.contains("infer_requests_total{status=\"200\"}"), "{metrics}");
    let (status, head, page) = server.send("GET", "/", "", b"");
    assert!(status == 200 && head.contains("text/html"), "{head}");
    for outside in ["src=\"http", "href=\"http", "@import", "url("] {
        assert!(!page.contains(outside), "the page must work without a network: {outside}");
    }
}

#[test]
fn refusals_have_their_status_and_an_error_object() {
    let server = Server::start(&["--max-body-bytes", "100000", "--max-pixels", "60000", "--max-tokens", "50"]);
    let with = |key: &str, value: Value| {
        let mut body = question(json!("Hi"));
        body[key] = value;
        body
    };
    let image = |url: &str| question(json!([{"type": "image_url", "image_url": {"url": url}}]));
    let big = std::fs::read(reference("edge/bomb_header.png")).expect("a file");
    for (name, body, expected) in [
        ("model", with("model", json!("other")), 404),
        ("max_tokens", with("max_tokens", json!(51)), 400),
        ("field", with("max_token", json!(5)), 400),
        ("remote", image("http://127.0.0.1:1/x.png"), 403),
        ("file", image("file:///etc/passwd"), 400),
        ("not a picture", image("data:image/png;base64,aGVsbG8="), 400),
        ("bomb", image(&format!("data:image/png;base64,{}", to_base64(&big))), 413),
        ("context", question(json!("word ".repeat(2000))), 400),
        ("body", question(json!("w".repeat(200_000))), 413),
    ] {
        let (status, answer) = server.chat(&body);
        assert_eq!(status, expected, "{name}: {answer}");
        assert!(answer["error"]["message"].is_string() && answer["error"]["code"].is_string(), "{name}: {answer}");
    }
    assert_eq!(server.send("POST", CHAT, "Content-Type: text/plain\r\n", b"{}").0, 415);
    assert_eq!(server.send("GET", CHAT, "", b"").0, 405);
    assert_eq!(server.send("GET", "/nowhere", "", b"").0, 404);
    let foreign = server.raw(b"GET /v1/models HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n");
    assert_eq!(split(&foreign).0, 421);

    let keyed = Server::start(&["--api-key", "secret"]);
    assert_eq!(keyed.send("GET", "/v1/models", "", b"").0, 401);
    assert_eq!(keyed.send("GET", "/v1/models", "Authorization: Bearer wrong!\r\n", b"").0, 401);
    assert_eq!(keyed.send("GET", "/v1/models", "Authorization: Bearer secret\r\n", b"").0, 200);
    assert_eq!(keyed.send("GET", "/health", "", b"").0, 200);

    let fetching = Server::start(&["--allow-remote-images"]);
    let (status, answer) = fetching.chat(&image(&format!("http://{}/x.png", fetching.address)));
    assert_eq!((status, answer["error"]["code"].as_str()), (400, Some("remote_image_failed")), "{answer}");
}

/// 32 clients at once: nothing but answers and refusals with Retry-After, answers equal to the unloaded ones, memory level.
#[test]
fn many_clients_get_the_unloaded_answers() {
    let server = Server::start(&["--max-batch", "8", "--max-queue", "16"]);
    let ask = |client: usize| {
        let mut body = about_the_picture(&format!("Question {}?", client % 8));
        if client % 2 == 1 {
            body["temperature"] = json!(1.0);
            body["seed"] = json!(client % 8);
        }
        body
    };
    let expected: Vec<String> = (0..8).map(|client| server.text(&ask(client))).collect();
    // A client that asks and does not read must not hold the others.
    let mut slow = TcpStream::connect(server.address).expect("connected");
    let mut body = ask(0);
    body["stream"] = json!(true);
    let body = body.to_string();
    write!(
        slow,
        "POST {CHAT} HTTP/1.1\r\nHost: {}\r\n{JSON}Content-Length: {}\r\n\r\n{body}",
        server.address,
        body.len()
    )
    .expect("sent");

    let round = || {
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..32)
                .map(|client| {
                    let (server, expected, body) = (&server, &expected, ask(client));
                    scope.spawn(move || {
                        let (mut answered, mut refused) = (0, 0);
                        for _ in 0..6 {
                            let (status, head, text) = server.send("POST", CHAT, JSON, body.to_string().as_bytes());
                            match status {
                                200 => {
                                    let answer: Value = serde_json::from_str(&text).expect("JSON");
                                    assert_eq!(
                                        answer["choices"][0]["message"]["content"],
                                        expected[client % 8],
                                        "client {client}"
                                    );
                                    answered += 1;
                                }
                                429 | 503 => {
                                    assert!(head.to_lowercase().contains("retry-after:"), "{head}");
                                    refused += 1;
                                    std::thread::sleep(Duration::from_millis(50));
                                }
                                other => panic!("client {client}: {other} {text}"),
                            }
                        }
                        (answered, refused)
                    })
                })
                .collect();
            clients
                .into_iter()
                .map(|client| client.join().expect("a client"))
                .fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1))
        })
    };
    let first = round();
    let after_first = server.resident_kb();
    let second = round();
    let after_second = server.resident_kb();
    println!("answered, refused: {first:?}, {second:?}; resident {after_first} kB, then {after_second} kB");
    assert!(first.0 > 32 && second.0 > 32);
    assert!(after_second < after_first + after_first / 5 + 20_000, "memory grows");
}

/// The official client: whole, streamed, several turns, errors.
#[test]
fn the_openai_client_works() {
    let Some(mut python) = python() else { return };
    let has_client = python.args(["-c", "import openai"]).output().is_ok_and(|output| output.status.success());
    assert!(has_client, "LLAVA_PYTHON has no openai package: pip install openai");
    let server = Server::start(&["--api-key", "secret"]);
    let image = reference("pictures/images/100000000.jpg");
    let mut python = tests::python().expect("still there");
    let ran =
        python.arg(python_script("openai_client.py")).arg(format!("http://{}/v1", server.address)).arg(image).output();
    let ran = ran.expect("Python runs");
    println!("{}", String::from_utf8_lossy(&ran.stdout));
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
}
