//! `infer serve`: timeouts, a full queue, SIGTERM, and their counters.

use serde_json::Value;
use std::io::{BufReader, Read, Write};
use std::process::Command;
use std::time::{Duration, Instant};
use tests::connections::{connect, endless, metric, patient_server, read_until, rest, send, short, wait_for_metric};
use tests::server::{CHAT, JSON, Server, split};

const TIMED_OUT: &str = "infer_requests_total{status=\"504\"}";

/// The error of the last event but one, before `[DONE]`.
fn error_event(events: &str) -> Value {
    let data: Vec<&str> = events.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    assert_eq!(data.last(), Some(&"[DONE]"), "{events}");
    let event: Value = serde_json::from_str(data[data.len() - 2]).expect("JSON");
    event["error"].clone()
}

/// Whole, streamed and still in the queue: 504, which is not to be repeated, and counted as such.
#[test]
fn requests_out_of_time_are_not_to_be_repeated() {
    let server = patient_server(&["--request-timeout-seconds", "2", "--max-batch", "2"]);
    let mut whole = send(server.address, &endless(false));
    let mut stream = send(server.address, &endless(true));
    wait_for_metric(&server, "infer_active_sequences", 2.0);
    let mut queued = [send(server.address, &endless(false)), send(server.address, &endless(true))];
    wait_for_metric(&server, "infer_queued_requests", 2.0);
    assert_eq!(metric(&server, "infer_requests_in_progress"), 4.0);
    for connection in [&mut whole, &mut queued[0]] {
        let (status, head, text) = split(&rest(connection));
        assert_eq!(status, 504, "{text}");
        let head = head.to_lowercase();
        assert!(head.contains("x-should-retry: false") && !head.contains("retry-after"), "{head}");
    }
    for connection in [&mut stream, &mut queued[1]] {
        let mut reader = BufReader::new(connection);
        let events = read_until(&mut reader, "[DONE]");
        assert!(events.starts_with("HTTP/1.1 200"), "the head of a stream is sent at once");
        assert_eq!(error_event(&events)["code"], "timeout");
    }
    wait_for_metric(&server, TIMED_OUT, 4.0);
    assert_eq!(metric(&server, "infer_requests_total{status=\"200\"}"), 0.0);
    wait_for_metric(&server, "infer_active_sequences", 0.0);
    assert_eq!(metric(&server, "infer_queued_requests"), 0.0);
    wait_for_metric(&server, "infer_requests_in_progress", 0.0);
    assert_eq!(server.chat(&short()).0, 200);
}

/// The official client asks once: it repeats other errors of the server twice.
#[test]
fn the_openai_client_does_not_repeat_what_ran_out_of_time() {
    let Some(mut python) = tests::python() else { return };
    let server = patient_server(&["--request-timeout-seconds", "1"]);
    let script = format!(
        "import openai\n\
         client = openai.OpenAI(base_url='http://{}/v1', api_key='any')\n\
         try:\n    client.chat.completions.create(model='tiny', max_tokens=50000, messages=[{{'role': 'user', 'content': 'Go on.'}}])\n\
         except openai.APIStatusError as error: print(error.status_code, error.code)",
        server.address
    );
    let output = python.arg("-c").arg(script).output().expect("Python runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(text.trim(), "504 timeout", "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(metric(&server, TIMED_OUT), 1.0);
}

/// One place and a queue of three for six clients; clients that disconnect free their place.
#[test]
fn the_queue_counts_those_that_wait() {
    let server = patient_server(&["--max-batch", "1", "--max-queue", "3"]);
    let mut first = BufReader::new(send(server.address, &endless(true)));
    read_until(&mut first, "content");
    let mut queued: Vec<_> = (0..3).map(|_| send(server.address, &endless(false))).collect();
    wait_for_metric(&server, "infer_queued_requests", 3.0);
    assert_eq!(metric(&server, "infer_active_sequences"), 1.0);
    for _ in 0..2 {
        assert_eq!(server.chat(&short()).0, 429);
    }
    drop(queued.pop());
    wait_for_metric(&server, "infer_queued_requests", 2.0);
    wait_for_metric(&server, "infer_requests_total{status=\"499\"}", 1.0);
    queued.push(send(server.address, &endless(false)));
    wait_for_metric(&server, "infer_queued_requests", 3.0);
    drop((first, queued));
    wait_for_metric(&server, "infer_queued_requests", 0.0);
    wait_for_metric(&server, "infer_active_sequences", 0.0);
    wait_for_metric(&server, "infer_requests_total{status=\"499\"}", 5.0);
    // Refusals before the model count, too.
    assert_eq!(server.send("GET", CHAT, "", b"").0, 405);
    assert_eq!(metric(&server, "infer_requests_total{status=\"405\"}"), 1.0);
    assert_eq!(metric(&server, "infer_requests_total{status=\"429\"}"), 2.0);
}

fn terminate(server: &Server) {
    let kill = Command::new("kill").args(["-TERM", &server.child.id().to_string()]).status();
    assert!(kill.expect("kill runs").success());
}

/// Exit code, and what the server wrote to stderr.
fn end(mut server: Server) -> (Option<i32>, String) {
    let status = server.child.wait().expect("an exit");
    (status.code(), rest(&mut server.child.stderr.take().expect("a pipe")))
}

/// Answers in the making finish, those in the queue as well; new requests get 503, also on kept connections.
#[test]
fn answers_finish_after_sigterm() {
    let server = patient_server(&["--max-batch", "2", "--request-timeout-seconds", "8"]);
    let mut kept = connect(server.address);
    write!(kept, "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("sent");
    assert!(kept.read(&mut [0; 4096]).expect("an answer") > 0);
    // The first two hold the places until their time is over; then the third one is answered whole.
    let mut streams = [(); 2].map(|()| BufReader::new(send(server.address, &endless(true))));
    streams.iter_mut().for_each(|stream| drop(read_until(stream, "content")));
    std::thread::sleep(Duration::from_secs(4));
    let mut queued = send(server.address, &short());
    wait_for_metric(&server, "infer_queued_requests", 1.0);
    terminate(&server);
    std::thread::sleep(Duration::from_millis(200));
    for path in ["/health", "/v1/models", "/"] {
        let (status, head, text) = server.send("GET", path, "", b"");
        assert!(status == 503 && text.contains("stopping"), "{path}: {status} {text}");
        assert!(head.to_lowercase().contains("retry-after"), "{head}");
    }
    write!(kept, "POST {CHAT} HTTP/1.1\r\nHost: localhost\r\n{JSON}Content-Length: 2\r\n\r\n{{}}").expect("sent");
    let (status, head, _) = split(&rest(&mut kept));
    assert!(status == 503 && head.to_lowercase().contains("connection: close"), "{head}");
    for stream in &mut streams {
        assert_eq!(error_event(&read_until(stream, "[DONE]"))["code"], "timeout", "not broken off before its time");
    }
    let (status, _, text) = split(&rest(&mut queued));
    assert_eq!(status, 200, "{text}");
    let (code, log) = end(server);
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("stopping: 3 in progress, 30 s to finish"), "{log}");
    assert!(log.contains("stopped: no request in progress"), "{log}");
}

/// What is not finished in the time for that ends with an error that says so; a second signal ends it at once.
#[test]
fn answers_are_broken_off_with_an_error() {
    for (timeout, signals) in [("1", 1), ("60", 2)] {
        let server = patient_server(&["--max-batch", "2", "--shutdown-timeout", timeout]);
        let mut stream = BufReader::new(send(server.address, &endless(true)));
        let mut whole = send(server.address, &endless(false));
        read_until(&mut stream, "content");
        wait_for_metric(&server, "infer_active_sequences", 2.0);
        let mut queued = send(server.address, &endless(false));
        wait_for_metric(&server, "infer_queued_requests", 1.0);
        let begin = Instant::now();
        terminate(&server);
        if signals == 2 {
            std::thread::sleep(Duration::from_millis(300));
            terminate(&server);
        }
        let error = error_event(&read_until(&mut stream, "[DONE]"));
        assert_eq!((&error["code"], &error["type"]), (&"stopping".into(), &"server_error".into()));
        for connection in [&mut whole, &mut queued] {
            let (status, _, text) = split(&rest(connection));
            assert!(status == 503 && text.contains("stopped before the answer was whole"), "{status} {text}");
        }
        let (code, log) = end(server);
        assert_eq!(code, Some(0), "{log}");
        let cause = if signals == 2 { "by a second signal" } else { "after 1 s (--shutdown-timeout)" };
        assert!(log.contains(&format!("stopped: 3 in progress, broken off {cause}")), "{log}");
        assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    }
}

/// Without a request in progress the server ends at once, whatever connections are open.
#[test]
fn an_idle_server_ends_at_once() {
    let server = patient_server(&[]);
    let mut half_sent = connect(server.address);
    half_sent.write_all(b"GET / HTTP/1.1\r\nHos").expect("sent");
    let _idle = connect(server.address);
    wait_for_metric(&server, "infer_connections", 3.0);
    let begin = Instant::now();
    terminate(&server);
    let (code, log) = end(server);
    assert!(code == Some(0) && log.contains("stopped: no request in progress"), "{code:?} {log}");
    assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
}
