//! A headless Chromium, driven over its debugging pipe with mouse and keyboard events.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// Longest time that anything on the page may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Names under which a Chromium may be installed.
const PROGRAMS: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];

/// A browser with one page.
pub struct Browser {
    child: Child,
    to: ChildStdin,
    from: Receiver<Value>,
    session: Value,
    calls: u64,
    events: Vec<Value>,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// Starts a browser; `None`, said on stdout, where there is none. `LLAVA_BROWSER` names one.
    pub fn start() -> Option<Self> {
        let Some(program) = find_program() else {
            println!("not run: no Chromium was found (LLAVA_BROWSER can name one)");
            return None;
        };
        let profile = tempfile::tempdir().expect("a temporary folder");
        // The browser reads commands from descriptor 3 and writes answers to 4.
        let mut child = Command::new("sh")
            .args(["-c", "exec \"$0\" \"$@\" 3<&0 4>&1 0</dev/null 1>&2"])
            .arg(program)
            .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"])
            .args(["--disable-extensions", "--disable-background-networking", "--remote-debugging-pipe"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the browser starts");
        let to = child.stdin.take().expect("a pipe");
        let mut answers = BufReader::new(child.stdout.take().expect("a pipe"));
        let (sender, from) = channel();
        std::thread::spawn(move || {
            loop {
                let mut message = Vec::new();
                if answers.read_until(0, &mut message).unwrap_or(0) == 0 {
                    return;
                }
                let message = serde_json::from_slice(message.trim_ascii_end().strip_suffix(b"\0").unwrap_or(&message));
                if sender.send(message.expect("the browser writes JSON")).is_err() {
                    return;
                }
            }
        });
        let mut browser =
            Self { child, to, from, session: Value::Null, calls: 0, events: Vec::new(), _profile: profile };
        let target = browser.call("Target.createTarget", json!({"url": "about:blank"}))["targetId"].clone();
        let attached = browser.call("Target.attachToTarget", json!({"targetId": target, "flatten": true}));
        browser.session = attached["sessionId"].clone();
        for domain in ["Page", "Runtime", "Log", "Network", "DOM", "Accessibility"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        Some(browser)
    }

    /// One command of the DevTools protocol; its result.
    pub fn call(&mut self, method: &str, params: Value) -> Value {
        self.calls += 1;
        let mut message = json!({"id": self.calls, "method": method, "params": params});
        if !self.session.is_null() {
            message["sessionId"] = self.session.clone();
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        self.to.write_all(&bytes).expect("the browser listens");
        let begin = Instant::now();
        loop {
            let left = PATIENCE.saturating_sub(begin.elapsed());
            let message = self.from.recv_timeout(left).unwrap_or_else(|_| panic!("{method}: no answer"));
            if message["id"] == json!(self.calls) {
                assert!(message["error"].is_null(), "{method}: {}", message["error"]);
                return message["result"].clone();
            }
            self.events.push(message);
        }
    }

    /// What the browser told unasked: all events of these names so far.
    pub fn events(&mut self, names: &[&str]) -> Vec<Value> {
        self.call("Runtime.evaluate", json!({"expression": "0"}));
        let named = |event: &&Value| names.iter().any(|name| event["method"] == *name);
        self.events.iter().filter(named).map(|event| event["params"].clone()).collect()
    }

    /// Opens an address and waits until it is there.
    pub fn open(&mut self, address: &str) {
        self.call("Page.navigate", json!({"url": address}));
        self.wait(&format!("document.readyState === 'complete' && location.href.startsWith({address:?})"));
    }

    /// The value of a JavaScript expression (awaited if it is a promise).
    pub fn value(&mut self, expression: &str) -> Value {
        let params = json!({"expression": expression, "awaitPromise": true, "returnByValue": true});
        let result = self.call("Runtime.evaluate", params);
        assert!(result["exceptionDetails"].is_null(), "{expression}: {}", result["exceptionDetails"]);
        result["result"]["value"].clone()
    }

    /// The visible text of an element.
    pub fn text(&mut self, selector: &str) -> String {
        let text = self.value(&format!("document.querySelector({selector:?})?.textContent ?? null"));
        text.as_str().unwrap_or_else(|| panic!("no {selector}")).to_string()
    }

    /// Waits until a JavaScript expression is true.
    pub fn wait(&mut self, expression: &str) {
        let begin = Instant::now();
        while self.value(expression) != json!(true) {
            assert!(begin.elapsed() < PATIENCE, "still not true: {expression}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Presses the left button in the middle of an element, wherever it is on the screen; nothing may lie over it.
    pub fn click(&mut self, selector: &str) {
        let place = self.value(&format!(
            "(() => {{ const e = document.querySelector({selector:?}); e.scrollIntoView({{block: 'nearest'}});
               const r = e.getBoundingClientRect(), x = r.x + r.width / 2, y = r.y + r.height / 2;
               return {{ x, y, there: e.contains(document.elementFromPoint(x, y)) }}; }})()"
        ));
        assert_eq!(place["there"], json!(true), "{selector} cannot be clicked: {place}");
        for kind in ["mousePressed", "mouseReleased"] {
            let event = json!({"type": kind, "x": place["x"], "y": place["y"], "button": "left", "clickCount": 1});
            self.call("Input.dispatchMouseEvent", event);
        }
    }

    /// Types text where the keyboard is.
    pub fn type_text(&mut self, text: &str) {
        self.call("Input.insertText", json!({"text": text}));
    }

    /// Presses a key: `Enter`, `Escape`, `Tab`.
    pub fn press(&mut self, key: &str) {
        let (code, text) = match key {
            "Enter" => (13, "\r"),
            "Escape" => (27, ""),
            _ => (9, ""),
        };
        for kind in ["keyDown", "keyUp"] {
            let mut event = json!({"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code});
            if kind == "keyDown" && !text.is_empty() {
                event["text"] = json!(text);
            }
            self.call("Input.dispatchKeyEvent", event);
        }
    }

    /// Clicks what opens the file chooser and chooses a file in it.
    pub fn choose_file(&mut self, selector: &str, file: &Path) {
        self.call("Page.setInterceptFileChooserDialog", json!({"enabled": true}));
        self.click(selector);
        let begin = Instant::now();
        let node = loop {
            if let Some(chooser) = self.events(&["Page.fileChooserOpened"]).pop() {
                break chooser["backendNodeId"].clone();
            }
            assert!(begin.elapsed() < PATIENCE, "{selector} opens no file chooser");
        };
        // A path with .. in it is not read.
        let file = file.canonicalize().expect("the file is there");
        self.call("DOM.setFileInputFiles", json!({"files": [file], "backendNodeId": node}));
        self.events.retain(|event| event["method"] != "Page.fileChooserOpened");
    }

    /// A window of this size in CSS pixels, light or dark.
    pub fn window(&mut self, width: u32, height: u32, phone: bool, scheme: &str) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone});
        self.call("Emulation.setDeviceMetricsOverride", size);
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.call("Emulation.setEmulatedMedia", features);
    }

    /// Writes a picture of the window into the folder that `LLAVA_SCREENSHOTS` names, if it is set.
    pub fn screenshot(&mut self, name: &str) {
        let Some(folder) = std::env::var_os("LLAVA_SCREENSHOTS") else { return };
        let base64 = self.call("Page.captureScreenshot", json!({"format": "png"}))["data"].clone();
        let file = Path::new(&folder).join(format!("{name}.png"));
        std::fs::write(file, crate::from_base64(base64.as_str().expect("a picture"))).expect("written");
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn find_program() -> Option<std::path::PathBuf> {
    if let Some(named) = std::env::var_os("LLAVA_BROWSER") {
        return Some(named.into());
    }
    let folders: Vec<_> = std::env::split_paths(&std::env::var_os("PATH")?).collect();
    PROGRAMS
        .iter()
        .flat_map(|program| folders.iter().map(move |folder| folder.join(program)))
        .find(|path| path.is_file())
}
