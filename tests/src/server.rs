//! `infer serve` in a process of its own, spoken to over plain sockets.

use crate::inference::model_dir;
use crate::{program, reference, to_base64};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A running server on a free port, with the tiny fixture model.
pub struct Server {
    /// The process.
    pub child: Child,
    /// Where it listens.
    pub address: SocketAddr,
    /// Its model, where it is the server's own.
    pub model: Option<tempfile::TempDir>,
}

impl Server {
    /// Starts with these options and waits until it listens.
    pub fn start(args: &[&str]) -> Self {
        Self::start_with(model_dir("tiny/train_none"), Command::new(program("infer")), args)
    }

    /// The same with another model.
    pub fn of(model: &Path, args: &[&str]) -> Self {
        Self::started_by(Command::new(program("infer")), model, args)
    }

    /// The same with a model folder and a command that starts `infer`.
    pub fn start_with(model: tempfile::TempDir, infer: Command, args: &[&str]) -> Self {
        let mut server = Self::started_by(infer, model.path(), args);
        server.model = Some(model);
        server
    }

    fn started_by(mut infer: Command, model: &Path, args: &[&str]) -> Self {
        let name = if args.contains(&"--served-model-name") { &[][..] } else { &["--served-model-name", "tiny"] };
        let mut child = infer
            .args(["serve", "--port", "0"])
            .args(name)
            .arg("--model")
            .arg(model)
            .args(args)
            .stdout(Stdio::piped())
            .spawn()
            .expect("infer serve starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("a pipe");
        BufReader::new(stdout).read_line(&mut line).expect("the address");
        let address =
            line.trim().strip_prefix("listening on http://").expect("an address").parse().expect("an address");
        Self { child, address, model: None }
    }

    /// Sends raw bytes, returns all that comes back before the connection closes.
    pub fn raw(&self, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address).expect("connected");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
        // The server may refuse and close before everything is sent.
        let _ = stream.write_all(request);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// Status, headers and body of a request.
    pub fn send(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> (u16, String, String) {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n",
            self.address,
            body.len()
        );
        split(&self.raw(&[head.as_bytes(), body].concat()))
    }

    /// Status and answer of a conversation.
    pub fn chat(&self, body: &Value) -> (u16, Value) {
        let (status, _, text) = self.send("POST", CHAT, JSON, body.to_string().as_bytes());
        (status, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{status} {text}: {error}")))
    }

    /// The answer's text.
    pub fn text(&self, body: &Value) -> String {
        let (status, answer) = self.chat(body);
        assert_eq!(status, 200, "{answer}");
        answer["choices"][0]["message"]["content"].as_str().expect("text").to_string()
    }

    /// Resident memory, KB.
    pub fn resident_kb(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("/proc");
        let line = status.lines().find(|line| line.starts_with("VmRSS")).expect("VmRSS");
        line.split_whitespace().nth(1).and_then(|kb| kb.parse().ok()).expect("a number")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where conversations are answered.
pub const CHAT: &str = "/v1/chat/completions";
/// The header that a conversation needs.
pub const JSON: &str = "Content-Type: application/json\r\n";

/// Status, headers, body; chunks joined.
pub fn split(answer: &str) -> (u16, String, String) {
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    if !head.to_lowercase().contains("transfer-encoding: chunked") {
        return (status, head.to_string(), body.to_string());
    }
    let (mut rest, mut joined) = (body, String::new());
    while let Some((size, after)) = rest.split_once("\r\n") {
        let Ok(size @ 1..) = usize::from_str_radix(size, 16) else { break };
        joined.push_str(&after[..size]);
        rest = &after[size + 2..];
    }
    (status, head.to_string(), joined)
}

/// A picture as data URI.
pub fn picture() -> String {
    let bytes = std::fs::read(reference("pictures/images/100000000.jpg")).expect("a picture");
    format!("data:image/jpeg;base64,{}", to_base64(&bytes))
}

/// A conversation of one question.
pub fn question(content: Value) -> Value {
    json!({"model": "tiny", "max_tokens": 24, "messages": [{"role": "user", "content": content}]})
}

/// A question about [`picture`].
pub fn about_the_picture(text: &str) -> Value {
    question(json!([{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": picture()}}]))
}
