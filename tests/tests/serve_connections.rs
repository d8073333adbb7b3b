//! `infer serve` and its connections: half-sent, idle, too many, slow, large, behind a proxy.

use serde_json::json;
use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tests::connections::{connect, endless, metric, patient_server, read_until, rest, send, short, wait_for_metric};
use tests::documents::{blocks, root};
use tests::inference::model_dir;
use tests::server::{CHAT, JSON, Server, split};
use tests::{program, to_base64};

fn peak_kb(server: &Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.child.id())).expect("/proc");
    let line = status.lines().find(|line| line.starts_with("VmHWM")).expect("VmHWM");
    line.split_whitespace().nth(1).and_then(|kb| kb.parse().ok()).expect("a number")
}

/// More half-sent requests than the process has descriptors: the server answers others at once, and closes those in time.
#[test]
fn half_sent_headers_keep_nobody_out() {
    let mut infer = Command::new("sh");
    infer.args(["-c", "ulimit -n 128 && exec \"$0\" \"$@\""]).arg(program("infer"));
    let model = model_dir("tiny/train_none");
    let server = Server::start_with(model, infer, &["--header-timeout-seconds", "2"]);
    let half_sent =
        ["GET / HTTP/1.1\r\nHost: lo", "", "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Le"];
    let mut connections: Vec<TcpStream> = (0..200)
        .map(|number| {
            let mut stream = connect(server.address);
            let _ = stream.write_all(half_sent[number % 3].as_bytes());
            stream
        })
        .collect();
    let begin = Instant::now();
    assert_eq!(server.send("GET", "/health", "", b"").0, 200);
    assert_eq!(server.chat(&short()).0, 200);
    assert!(begin.elapsed() < Duration::from_secs(2), "answered after {:?}", begin.elapsed());
    let open = metric(&server, "infer_connections");
    assert!((10.0..=48.0).contains(&open), "{open} connections with 128 descriptors");
    // All with a byte of a header are closed after its time. The others (no byte sent) may stay.
    std::thread::sleep(Duration::from_secs(4).saturating_sub(begin.elapsed()));
    for (number, stream) in connections.iter_mut().enumerate().filter(|(number, _)| number % 3 != 1) {
        stream.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
        let ended = match stream.read(&mut [0; 64]) {
            Ok(bytes) => bytes == 0,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        };
        assert!(ended, "connection {number} is still open");
    }
}

#[test]
fn too_few_descriptors_are_said_at_the_start() {
    for (limit, wanted, message) in
        [("90", None, "this process may open 90"), ("256", Some("500"), "500 connections need 580 descriptors")]
    {
        let model = model_dir("tiny/train_none");
        let mut infer = Command::new("sh");
        infer.arg("-c").arg(format!("ulimit -n {limit} && exec \"$0\" \"$@\"")).arg(program("infer"));
        infer.args(["serve", "--port", "0", "--model"]).arg(model.path());
        infer.args(wanted.iter().flat_map(|wanted| ["--max-connections", wanted]));
        let output = infer.output().expect("infer runs");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && text.contains(message), "{text}");
    }
}

/// A kept connection is used again, is closed when it was idle for too long, and never while an answer is written.
#[test]
fn idle_connections_are_closed_and_used_ones_are_not() {
    let server = patient_server(&["--idle-timeout-seconds", "1"]);
    let mut kept = connect(server.address);
    for _ in 0..2 {
        write!(kept, "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("sent");
        let mut answer = [0; 4096];
        let bytes = kept.read(&mut answer).expect("an answer");
        assert!(answer[..bytes].starts_with(b"HTTP/1.1 200"));
    }
    let mut streaming = BufReader::new(send(server.address, &endless(true)));
    read_until(&mut streaming, "content");
    let begin = Instant::now();
    assert_eq!(kept.read(&mut [0; 64]).expect("the end"), 0);
    assert!((0.9..4.0).contains(&begin.elapsed().as_secs_f64()), "closed after {:?}", begin.elapsed());
    std::thread::sleep(Duration::from_secs(2));
    read_until(&mut streaming, "content");
}

/// Where each connection has a request, further ones get 503 at once, and probes their answer.
#[test]
fn a_full_server_refuses_and_stays_healthy() {
    let server = patient_server(&["--max-connections", "3"]);
    let mut streams: Vec<_> = (0..3).map(|_| BufReader::new(send(server.address, &endless(true)))).collect();
    streams.iter_mut().for_each(|stream| drop(read_until(stream, "content")));
    let (status, head, text) = server.send("POST", CHAT, JSON, short().to_string().as_bytes());
    assert_eq!((status, text.contains("too_many_connections")), (503, true), "{text}");
    assert!(head.to_lowercase().contains("retry-after: 2"), "{head}");
    assert_eq!(server.send("GET", "/health", "", b"").0, 200);
    for stream in &mut streams {
        read_until(stream, "content");
    }
    drop(streams);
    let begin = Instant::now();
    while server.chat(&short()).0 != 200 {
        assert!(begin.elapsed() < Duration::from_secs(10), "no place after the clients left");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A body that stalls, and one that comes drop by drop.
#[test]
fn slow_bodies_time_out() {
    let server = Server::start(&[]);
    let begin = Instant::now();
    let head = format!("POST {CHAT} HTTP/1.1\r\nHost: localhost\r\n{JSON}Content-Length: 5000\r\n\r\n{{");
    std::thread::scope(|scope| {
        let stalled = scope.spawn(|| {
            let mut stream = connect(server.address);
            stream.write_all(head.as_bytes()).expect("sent");
            (split(&rest(&mut stream)), begin.elapsed().as_secs_f64())
        });
        let dripping = scope.spawn(|| {
            let mut stream = connect(server.address);
            stream.write_all(head.as_bytes()).expect("sent");
            while stream.write_all(b" ").is_ok() && begin.elapsed() < Duration::from_secs(23) {
                std::thread::sleep(Duration::from_millis(500));
            }
            begin.elapsed().as_secs_f64()
        });
        let ((status, _, text), seconds) = stalled.join().expect("a client");
        assert!(status == 408 && text.contains("body_timeout"), "{status} {text}");
        assert!((9.0..14.0).contains(&seconds), "{seconds} s");
        let seconds = dripping.join().expect("a client");
        assert!((19.0..23.0).contains(&seconds), "{seconds} s");
    });
}

/// An uncompressed picture of so many bytes.
fn bmp(width: u32, height: u32) -> Vec<u8> {
    let size = 54 + 3 * width * height;
    let mut bytes = b"BM".to_vec();
    for number in [size, 0, 54, 40, width, height, 1 | 24 << 16, 0, 0, 0, 0, 0, 0] {
        bytes.extend(number.to_le_bytes());
    }
    bytes.extend((0..3 * width * height).map(|index| (index * 7) as u8));
    bytes
}

/// 30 bodies of 16 MB at once take no more memory than allowed, and all are answered in the end.
#[test]
fn many_large_bodies_stay_within_the_memory_for_requests() {
    const ALLOWED: u64 = 140_000_000;
    let allowed = ALLOWED.to_string();
    let server = Server::start(&["--max-request-memory", &allowed, "--max-queue", "64"]);
    // Width × 3 is a multiple of four, as rows of this format have to be.
    let url = format!("data:image/bmp;base64,{}", to_base64(&bmp(2000, 2000)));
    let body = json!({"model": "tiny", "max_tokens": 2, "messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is this?"}]}]});
    let body = body.to_string();
    assert_eq!(server.chat(&short()).0, 200, "what is loaded at first use is in the peak before");
    let before = peak_kb(&server);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..30)
            .map(|number| {
                let (server, body) = (&server, &body);
                scope.spawn(move || {
                    // Half of them do not say how long the body is.
                    if number % 2 == 0 {
                        return server.send("POST", CHAT, JSON, body.as_bytes()).0;
                    }
                    let mut stream = connect(server.address);
                    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
                    let head = format!("POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{JSON}");
                    write!(stream, "{head}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n", body.len())
                        .expect("sent");
                    split(&rest(&mut stream)).0
                })
            })
            .collect();
        let statuses: Vec<u16> = clients.into_iter().map(|client| client.join().expect("a client")).collect();
        assert!(statuses.iter().all(|&status| status == 200), "{statuses:?}");
    });
    let grown = peak_kb(&server) - before;
    println!(
        "30 bodies of {} MB: the peak grew by {grown} kB, {} kB are allowed",
        body.len() / 1_000_000,
        ALLOWED / 1024
    );
    assert!(grown < ALLOWED / 1024 + 40_000, "{grown} kB");
    wait_for_metric(&server, "infer_request_memory_bytes", 0.0);
}

/// Many small JSON values, and a text far longer than the context, are refused before they take many times their bytes.
#[test]
fn bodies_that_grow_in_memory_are_refused() {
    let server = Server::start(&[]);
    assert_eq!(server.chat(&short()).0, 200);
    let before = peak_kb(&server);
    let many = format!("{{\"model\": \"tiny\", \"messages\": [{}0]}}", "0,".repeat(9_000_000));
    let (status, _, text) = server.send("POST", CHAT, JSON, many.as_bytes());
    assert!(status == 400 && text.contains("JSON values"), "{status} {text}");
    let mut long = short();
    long["messages"][0]["content"] = json!("a b ".repeat(4_500_000));
    let (status, answer) = server.chat(&long);
    assert_eq!((status, answer["error"]["code"].as_str()), (400, Some("context_length_exceeded")), "{answer}");
    let grown = peak_kb(&server) - before;
    assert!(grown < 120_000, "the peak grew by {grown} kB");
}

#[test]
fn memory_too_small_for_one_request_is_said_at_the_start() {
    let model = model_dir("tiny/train_none");
    let mut infer = Command::new(program("infer"));
    infer.args(["serve", "--port", "0", "--max-request-memory", "100000000", "--model"]).arg(model.path());
    let output = infer.output().expect("infer runs");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.code() == Some(2) && text.contains("max-request-memory: found 100000000, expected at least"),
        "{text}"
    );
}

/// A process that ends with the test, also when it fails.
struct Ending(Child);

impl Drop for Ending {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// nginx with these servers, which listen on `PORT`; `None`, said on stdout, where it is not installed.
fn nginx(servers: &str) -> Option<(Ending, SocketAddr, TempDir)> {
    if Command::new("nginx").arg("-v").output().is_err() {
        println!("not run: nginx is not installed");
        return None;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
    let config = format!(
        "daemon off; master_process off; pid nginx.pid; error_log error.log; events {{}}\n\
         http {{ access_log off; client_body_temp_path b; proxy_temp_path p; fastcgi_temp_path f; uwsgi_temp_path u;\n\
         scgi_temp_path s; {} }}",
        servers.replace("PORT", &format!("127.0.0.1:{port}"))
    );
    std::fs::write(folder.path().join("nginx.conf"), config).expect("written");
    let mut nginx = Command::new("nginx");
    let nginx = nginx.arg("-p").arg(folder.path()).args(["-e", "error.log", "-c", "nginx.conf"]);
    let nginx = Ending(nginx.stderr(Stdio::null()).spawn().expect("nginx starts"));
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let begin = Instant::now();
    while TcpStream::connect(address).is_err() {
        assert!(begin.elapsed() < Duration::from_secs(10), "nginx does not listen");
        std::thread::sleep(Duration::from_millis(50));
    }
    Some((nginx, address, folder))
}

/// With nginx's defaults (HTTP/1.0 towards the server, answers collected in buffers) events arrive one by one.
#[test]
fn streams_pass_through_nginx_event_by_event() {
    let server = patient_server(&[]);
    let servers = format!(
        "upstream my_upstream {{ server {}; }} server {{ listen PORT; location / {{ proxy_pass http://my_upstream; }} }}",
        server.address
    );
    let Some((_nginx, address, _folder)) = nginx(&servers) else { return };
    let mut stream = BufReader::new(send(address, &endless(true)));
    read_until(&mut stream, "assistant");
    // 4 kB, nginx's buffer, are some twenty events; ten arrive long before.
    let mut arrivals = Vec::new();
    for _ in 0..10 {
        read_until(&mut stream, "content");
        arrivals.push(metric(&server, "infer_completion_tokens_total"));
    }
    drop(stream);
    println!("tokens generated when each of ten events had arrived: {arrivals:?}");
    assert!(arrivals[9] > arrivals[0] && arrivals[0] < 200.0, "events arrive together: {arrivals:?}");
}

/// The cookbook's server block, but for its certificate: page and API pass under the name that it has, and no other.
#[test]
fn the_cookbooks_nginx_passes_page_and_api() {
    let cookbook = std::fs::read_to_string(root().join("docs/cookbook.md")).expect("the cookbook");
    let block = blocks(&cookbook).into_iter().find(|block| block.language == "nginx").expect("a server block").text;
    let server = patient_server(&["--allowed-host", "llava.example.org"]);
    let of_here = |line: &&str| !line.trim_start().starts_with("ssl_");
    let servers: String = block.lines().filter(of_here).map(|line| format!("{line}\n")).collect();
    let servers = servers.replace("443 ssl", "PORT").replace("127.0.0.1:8000", &server.address.to_string());
    let Some((_nginx, address, _folder)) = nginx(&servers) else { return };
    let get = |path: &str, host: &str| {
        let mut stream = connect(address);
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").expect("sent");
        rest(&mut stream)
    };
    assert!(get("/", "llava.example.org").contains("<title>Ask about pictures</title>"));
    assert!(get("/v1/models", "llava.example.org").contains("\"object\":\"list\""));
    assert!(
        get("/v1/models", "other.example.org").starts_with("HTTP/1.1 421"),
        "{}",
        get("/v1/models", "other.example.org")
    );
}
