//! Connections to a server whose answers take minutes, and its metrics.

use crate::inference::model_dir;
use crate::program;
use crate::server::{CHAT, JSON, Server};
use serde_json::{Value, json};
use std::io::{BufRead, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The tiny model with a context of 60,000 tokens and without an end: its answers can take minutes.
pub fn patient_model() -> tempfile::TempDir {
    let model = model_dir("tiny/train_none");
    let path = model.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).expect("a config")).expect("JSON");
    config["text_config"]["max_position_embeddings"] = json!(60_000);
    std::fs::write(&path, config.to_string()).expect("written");
    // With a row of zeros an end's logit is 0, and others are above.
    let path = model.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).expect("weights");
    let header = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes"))).expect("a length");
    let tensors: Value = serde_json::from_slice(&bytes[8..8 + header]).expect("a header");
    let head = &tensors["language_model.lm_head.weight"];
    let begin = 8 + header + head["data_offsets"][0].as_u64().expect("an offset") as usize;
    let row = 4 * head["shape"][1].as_u64().expect("a width") as usize;
    for id in ["bos_token_id", "eos_token_id"] {
        let id = config["text_config"][id].as_u64().expect("an id") as usize;
        bytes[begin + id * row..][..row].fill(0);
    }
    std::fs::write(&path, bytes).expect("written");
    model
}

/// A server whose answers take minutes when asked with [`endless`].
pub fn patient_server(args: &[&str]) -> Server {
    let mut infer = Command::new(program("infer"));
    infer.stderr(Stdio::piped());
    Server::start_with(patient_model(), infer, &[&["--max-tokens", "50000"], args].concat())
}

/// A conversation whose answer takes minutes.
pub fn endless(stream: bool) -> Value {
    json!({"model": "tiny", "max_tokens": 50_000, "stream": stream, "messages": [{"role": "user", "content": "Go on."}]})
}

/// A conversation with a short answer.
pub fn short() -> Value {
    json!({"model": "tiny", "max_tokens": 4, "messages": [{"role": "user", "content": "Hi"}]})
}

/// A connection that waits at most 30 s for bytes.
pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("connected");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
    stream
}

/// Sends a conversation; the connection ends with the answer.
pub fn send(address: SocketAddr, body: &Value) -> TcpStream {
    let (mut stream, body) = (connect(address), body.to_string());
    let head = format!("POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{JSON}");
    write!(stream, "{head}Content-Length: {}\r\n\r\n{body}", body.len()).expect("sent");
    stream
}

/// Reads lines until one contains `text`.
pub fn read_until(reader: &mut impl BufRead, text: &str) -> String {
    let mut all = String::new();
    while reader.read_line(&mut all).expect("lines") > 0 {
        if all.lines().next_back().is_some_and(|line| line.contains(text)) {
            return all;
        }
    }
    panic!("{text:?} is not in {all:?}");
}

/// The rest of a connection. One that the server has closed with bytes of ours unread counts as ended.
pub fn rest(stream: &mut impl Read) -> String {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A value of /metrics.
pub fn metric(server: &Server, name: &str) -> f64 {
    let (_, _, page) = server.send("GET", "/metrics", "", b"");
    let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
    value.unwrap_or_default()
}

/// Waits up to 20 s for a value of /metrics.
pub fn wait_for_metric(server: &Server, name: &str, expected: f64) {
    let begin = Instant::now();
    loop {
        let found = metric(server, name);
        if found == expected {
            return;
        }
        assert!(begin.elapsed() < Duration::from_secs(20), "{name}: found {found}, expected {expected}");
        std::thread::sleep(Duration::from_millis(30));
    }
}
