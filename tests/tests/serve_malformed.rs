//! `infer serve` and requests that are damaged in any way.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use tests::server::{CHAT, JSON, Server, about_the_picture, question};
use tests::{reference, to_base64};

/// Damaged JSON, damaged pictures, odd headers: always a 4xx with the server alive, never a crash.
#[test]
fn a_thousand_malformed_requests_get_a_4xx() {
    let server = Server::start(&[]);
    let mut random = StdRng::seed_from_u64(1);
    let picture = std::fs::read(reference("pictures/images/100000000.jpg")).expect("a picture");
    let png = std::fs::read(reference("edge/rgba.png")).expect("a picture");
    let ask_about = |kind: &str, bytes: &[u8]| {
        let url = format!("data:image/{kind};base64,{}", to_base64(bytes));
        question(json!([{"type": "image_url", "image_url": {"url": url}}])).to_string().into_bytes()
    };
    let values = [
        json!(null),
        json!(-1),
        json!(1e300),
        json!(""),
        json!([]),
        json!({}),
        json!([[[]]]),
        json!("\u{0}"),
        json!(true),
    ];
    let mut seen = std::collections::BTreeMap::new();
    for number in 0..1000 {
        let mut headers = JSON.to_string();
        let body = match number % 8 {
            0 => {
                let mut bytes = about_the_picture("Hi").to_string().into_bytes();
                bytes.truncate(random.random_range(0..bytes.len() - 1));
                bytes
            }
            1 => (0..random.random_range(1..400)).map(|_| random.random::<u8>()).collect(),
            2 => {
                let mut body = question(json!("Hi"));
                let key =
                    ["messages", "model", "max_tokens", "temperature", "stop", "tools"][random.random_range(0..6)];
                body[key] = values[random.random_range(0..values.len())].clone();
                // Some of these happen to be harmless; an unknown field makes each wrong.
                body[format!("field{number}")] = json!(1);
                body.to_string().into_bytes()
            }
            3 => {
                let cut = random.random_range(0..picture.len() / 2);
                ask_about("jpeg", &picture[..cut])
            }
            4 => {
                // A bit of the signature, the size, the colour type or their checksum.
                let mut bytes = png.clone();
                bytes[random.random_range(0..33)] ^= 1 << random.random_range(0..8);
                ask_about("png", &bytes)
            }
            5 => {
                let depth = random.random_range(1..3000);
                format!("{{\"model\": \"tiny\", \"messages\": {}{}}}", "[".repeat(depth), "]".repeat(depth))
                    .into_bytes()
            }
            6 => {
                let mut bytes = question(json!("Hi")).to_string().into_bytes();
                let at = random.random_range(0..bytes.len());
                bytes.insert(at, [0, 0x80, 0xC0, 0xFF][random.random_range(0..4)]);
                bytes
            }
            _ => {
                headers = format!(
                    "Content-Type: {}\r\nX-Odd: {}\r\n",
                    "x".repeat(random.random_range(0..50)),
                    "y".repeat(random.random_range(0..5000))
                );
                b"{}".to_vec()
            }
        };
        let (status, _, answer) = server.send("POST", CHAT, &headers, &body);
        assert!(
            (400..500).contains(&status),
            "request {number}: {status} {answer}\n{}",
            String::from_utf8_lossy(&body)
        );
        *seen.entry(status).or_insert(0) += 1;
    }
    for bytes in
        [&b"\0\0\0\0"[..], b"GET / HTTP/9.9\r\n\r\n", b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"\r\n\r\n"]
    {
        server.raw(bytes);
    }
    println!("statuses of 1,000 malformed requests: {seen:?}");
    assert_eq!(server.chat(&question(json!("Hi"))).0, 200, "the server still answers");
}
