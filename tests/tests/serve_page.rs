//! The web page in a headless Chromium: a conversation by mouse and keyboard, large and small, light and dark, and text that
//! would like to be mark-up.

use serde_json::{Value, json};
use tests::browser::Browser;
use tests::reference;
use tests::server::{Server, picture};

const IMAGE: &str = "pictures/images/100000000.jpg";
/// True when no answer is being written.
const QUIET: &str = "document.querySelectorAll('[aria-busy]').length === 0 && document.querySelector('#stop').hidden";

fn open(server: &Server) -> Option<Browser> {
    let mut browser = Browser::start()?;
    browser.window(1200, 800, false, "light");
    browser.open(&format!("http://{}/", server.address));
    Some(browser)
}

/// Replaces an input's value as a person does.
fn fill(browser: &mut Browser, selector: &str, text: &str) {
    browser.click(selector);
    browser.value("document.activeElement.select()");
    browser.type_text(text);
}

fn set_longest_answer(browser: &mut Browser, tokens: &str) {
    browser.click("#open-settings");
    browser.wait("document.querySelector('#settings').open");
    fill(browser, "#max_tokens", tokens);
    browser.click("#settings .main");
    browser.wait("!document.querySelector('#settings').open");
}

fn choose_picture(browser: &mut Browser) {
    browser.choose_file("#drop", &reference(IMAGE));
    browser.wait("document.querySelector('#pictures img')?.naturalWidth > 0");
}

/// JavaScript of a file that is dropped or pasted.
fn file(name: &str, kind: &str, base64: &str) -> String {
    format!(
        "(() => {{ const bytes = Uint8Array.from(atob({base64:?}), (c) => c.charCodeAt(0)), data = new DataTransfer();
           data.items.add(new File([bytes], {name:?}, {{ type: {kind:?} }})); return data; }})()"
    )
}

fn drop_file(browser: &mut Browser, file: &str) {
    browser.value(&format!(
        "document.body.dispatchEvent(new DragEvent('drop', {{ bubbles: true, dataTransfer: {file} }}))"
    ));
}

/// Asks by keyboard and waits for the answer.
fn ask(browser: &mut Browser, question: &str) {
    let answers = browser.value("document.querySelectorAll('.assistant').length").as_u64().expect("a number");
    browser.click("#question");
    browser.type_text(question);
    browser.press("Enter");
    browser.wait(&format!("document.querySelectorAll('.assistant').length === {}", answers + 1));
    browser.wait(QUIET);
}

/// Texts of all answers, without what stands below them.
fn answers(browser: &mut Browser) -> Vec<String> {
    let texts = "[...document.querySelectorAll('.assistant .body')].map((body) => body.textContent)";
    serde_json::from_value(browser.value(texts)).expect("texts")
}

/// The messages of the last conversation that the page sent.
fn sent_messages(browser: &mut Browser) -> Value {
    let requests = browser.events(&["Network.requestWillBeSent"]);
    let is_chat =
        |request: &&Value| request["request"]["url"].as_str().is_some_and(|url| url.ends_with("chat/completions"));
    let id = requests.iter().rfind(is_chat).expect("a conversation")["requestId"].clone();
    let body = browser.call("Network.getRequestPostData", json!({"requestId": id}))["postData"].clone();
    serde_json::from_str::<Value>(body.as_str().expect("a body")).expect("JSON")["messages"].clone()
}

/// No request left the server, nothing was forbidden, no script failed.
fn assert_well_behaved(browser: &mut Browser, server: &Server) {
    let own = format!("http://{}/", server.address);
    for request in browser.events(&["Network.requestWillBeSent"]) {
        let url = request["request"]["url"].as_str().expect("an address").to_string();
        assert!([own.as_str(), "data:", "blob:", "about:"].iter().any(|start| url.starts_with(start)), "{url}");
    }
    let complaints = browser.events(&["Runtime.exceptionThrown", "Log.entryAdded"]);
    assert!(complaints.is_empty(), "{complaints:?}");
}

#[test]
fn a_conversation_is_clicked_through() {
    let server = Server::start(&[]);
    let Some(mut browser) = open(&server) else { return };
    browser.wait("document.querySelector('#model').textContent === 'tiny'");
    browser.screenshot("desktop-light-empty");
    set_longest_answer(&mut browser, "24");
    choose_picture(&mut browser);

    // The question has the keyboard after a picture was chosen; Enter asks.
    browser.type_text("What is this?");
    browser.press("Enter");
    browser.wait("document.querySelectorAll('.assistant').length === 1");
    browser.wait(QUIET);
    let mut body = json!({"model": "tiny", "max_tokens": 24, "messages": [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": picture()}}, {"type": "text", "text": "What is this?"}]},
    ]});
    let first = server.text(&body);
    assert_eq!(answers(&mut browser), [first.trim_start()]);

    // A second question about the same picture, with the button.
    browser.click("#question");
    browser.type_text("Are you sure?");
    browser.click("#send");
    browser.wait("document.querySelectorAll('.assistant').length === 2");
    browser.wait(QUIET);
    let messages = body["messages"].as_array_mut().expect("messages");
    messages.push(json!({"role": "assistant", "content": first}));
    messages.push(json!({"role": "user", "content": "Are you sure?"}));
    assert_eq!(answers(&mut browser), [first.trim_start(), server.text(&body).trim_start()]);
    assert!(browser.text(".assistant small").contains("tokens"), "token count and time stand below an answer");
    browser.screenshot("desktop-light");
    browser.window(1200, 800, false, "dark");
    browser.screenshot("desktop-dark");

    for scheme in ["light", "dark"] {
        browser.window(390, 844, true, scheme);
        let wide = browser.value("document.documentElement.scrollWidth - innerWidth");
        assert!(wide.as_i64().expect("a number") <= 0, "the page is {wide} px wider than a phone");
        browser.screenshot(&format!("phone-{scheme}"));
    }
    // On the phone the box for the question is there without scrolling, and large enough for a finger.
    let send = browser.value("(({ top, bottom, height }) => ({ top, bottom, height, window: innerHeight }))(document.querySelector('#send').getBoundingClientRect())");
    let side = |name: &str| send[name].as_f64().expect("a number");
    assert!(side("top") >= 0.0 && side("bottom") <= side("window") && side("height") >= 40.0, "{send}");
    browser.click("#open-settings");
    browser.wait("document.querySelector('#settings').open");
    browser.screenshot("phone-dark-settings");
    browser.press("Escape");
    browser.wait("!document.querySelector('#settings').open");

    browser.window(1200, 800, false, "light");
    browser.click("#restart");
    assert_eq!(answers(&mut browser), Vec::<String>::new());
    browser.click("#pictures button");
    assert_eq!(browser.value("document.querySelectorAll('#pictures img').length"), json!(0));
    assert_well_behaved(&mut browser, &server);
}

#[test]
fn an_answer_is_stopped_by_button_and_by_key() {
    let server = Server::start(&[]);
    let Some(mut browser) = open(&server) else { return };
    browser.wait("document.querySelector('#model').textContent === 'tiny'");
    set_longest_answer(&mut browser, "900");
    choose_picture(&mut browser);
    // The page itself stops at the first words: an answer of the tiny model is over before a click from outside arrives.
    let stops = [
        "document.querySelector('#stop').click()",
        "document.activeElement.dispatchEvent(new KeyboardEvent('keydown', { key: 'Escape', bubbles: true }))",
    ];
    for (number, stop) in stops.into_iter().enumerate() {
        browser.value(&format!(
            "new MutationObserver((_, observer) => {{
               if (!document.querySelectorAll('.assistant .body')[{number}]?.textContent) return;
               observer.disconnect(); {stop}; }}).observe(document.body, {{ childList: true, subtree: true, characterData: true }})"
        ));
        browser.click("#question");
        browser.type_text("What is this?");
        browser.press("Enter");
        browser.wait(&format!("(document.querySelectorAll('.assistant small')[{number}]?.textContent ?? '') !== ''"));
        browser.wait(QUIET);
        assert_eq!(
            browser.value(&format!("document.querySelectorAll('.assistant small')[{number}].textContent")),
            "stopped"
        );
        browser.wait("document.activeElement.id === 'question'");
    }
    assert_well_behaved(&mut browser, &server);
}

#[test]
fn pictures_are_dropped_and_pasted_and_other_files_are_named() {
    let server = Server::start(&[]);
    let Some(mut browser) = open(&server) else { return };
    let picture = picture();
    let picture = file("a.jpg", "image/jpeg", picture.split_once(',').expect("a data URI").1);
    drop_file(&mut browser, &picture);
    browser.wait("document.querySelector('#pictures img')?.alt === 'Picture 1: a.jpg'");
    browser.click("#pictures button");
    browser.wait("document.querySelectorAll('#pictures img').length === 0");
    browser.value(&format!(
        "document.body.dispatchEvent(new ClipboardEvent('paste', {{ bubbles: true, clipboardData: {picture} }}))"
    ));
    browser.wait("document.querySelector('#pictures img')?.naturalWidth > 0");
    for (name, kind, fault) in
        [("notes.txt", "text/plain", "not a picture"), ("broken.jpg", "image/jpeg", "could not be read")]
    {
        drop_file(&mut browser, &file(name, kind, "aGVsbG8="));
        browser.wait(&format!("document.querySelector('#status').textContent.startsWith('{name}: {fault}')"));
        browser.wait(&format!("document.querySelector('#pictures .fault').textContent.includes('{name}')"));
        // The picture before it is not asked about in its place.
        browser.click("#question");
        browser.type_text("What is this?");
        browser.press("Enter");
        browser.wait("document.querySelector('#status').textContent.includes('before you ask')");
        assert_eq!(answers(&mut browser), Vec::<String>::new());
        browser.click("#pictures .fault button");
        browser.wait("document.querySelector('#status').textContent === ''");
        browser.value("document.querySelector('#question').value = ''");
    }
    ask(&mut browser, "What is this?");
    assert_eq!(answers(&mut browser).len(), 1);
    assert_well_behaved(&mut browser, &server);
}

/// What a person types and what a model answers is text, whatever it looks like.
#[test]
fn markup_stays_text() {
    let server = Server::start(&["--served-model-name", "<b>tiny</b>"]);
    let Some(mut browser) = open(&server) else { return };
    browser.wait("document.querySelector('#model').textContent === '<b>tiny</b>'");
    let evil = "<img src=x onerror=\"window.ran = 1\"><script>window.ran = 1</script>";
    let chunk = json!({"choices": [{"delta": {"content": evil}}]});
    browser.value(&format!(
        "window.fetch = async () => new Response({:?}, {{ headers: {{ 'Content-Type': 'text/event-stream' }} }})",
        format!("data: {chunk}\n\ndata: [DONE]\n\n")
    ));
    browser.click("#question");
    browser.type_text(evil);
    browser.press("Enter");
    browser.wait("document.querySelectorAll('.assistant').length === 1");
    browser.wait(QUIET);
    assert_eq!(answers(&mut browser), [evil]);
    assert_eq!(browser.value("document.querySelectorAll('#log img, #log script, #model b').length"), json!(0));
    // And were it to become mark-up, the page's policy would keep it from running.
    browser.value(&format!("document.querySelector('#log').innerHTML = {evil:?}"));
    browser.value("new Promise((done) => setTimeout(done, 200))");
    assert_eq!(browser.value("window.ran ?? null"), Value::Null);
}

#[test]
fn keyboard_and_screen_reader_reach_everything() {
    let server = Server::start(&[]);
    let Some(mut browser) = open(&server) else { return };
    choose_picture(&mut browser);
    browser.value("document.activeElement.blur()");
    let mut reached = Vec::new();
    for _ in 0..12 {
        browser.press("Tab");
        let name = browser.value("document.activeElement.id || document.activeElement.getAttribute('aria-label')");
        reached.push(name.as_str().unwrap_or_default().to_string());
    }
    for id in ["restart", "open-settings", "drop", "Remove 100000000.jpg", "log", "question", "send"] {
        assert!(reached.iter().any(|reached| reached == id), "Tab does not reach {id}: {reached:?}");
    }
    for dialog in [false, true] {
        if dialog {
            browser.click("#open-settings");
        }
        let tree = browser.call("Accessibility.getFullAXTree", json!({}));
        let mut named = 0;
        for node in tree["nodes"].as_array().expect("nodes").iter().filter(|node| node["ignored"] == json!(false)) {
            let role = node["role"]["value"].as_str().unwrap_or_default();
            if ["button", "textbox", "spinbutton", "image", "dialog", "log"].contains(&role) {
                assert!(
                    node["name"]["value"].as_str().is_some_and(|name| !name.trim().is_empty()),
                    "a {role} without a name: {node}"
                );
                named += 1;
            }
        }
        assert!(named >= 6, "{named} controls with names, dialog {dialog}");
    }
}

#[test]
fn a_key_is_asked_for_and_kept() {
    let server = Server::start(&["--api-key", "secret"]);
    let Some(mut browser) = open(&server) else { return };
    browser.wait("document.querySelector('#status').textContent.includes('API key')");
    browser.click("#open-settings");
    browser.wait("document.querySelector('#settings').open");
    fill(&mut browser, "#api-key", "secret");
    browser.press("Enter");
    browser.wait("document.querySelector('#model').textContent === 'tiny'");
    assert_eq!(browser.text("#status"), "");
}

/// Two pictures, in their order, and one that is added later: the question that it belongs to has it.
#[test]
fn several_pictures_are_asked_about() {
    let server = Server::start(&[]);
    let Some(mut browser) = open(&server) else { return };
    browser.wait("document.querySelector('#model').textContent === 'tiny'");
    set_longest_answer(&mut browser, "12");
    let base64 = |name: &str| tests::to_base64(&std::fs::read(reference(name)).expect("a picture"));
    let names: Vec<String> = std::fs::read_dir(reference("pictures/images"))
        .expect("pictures")
        .map(|entry| entry.expect("a file").file_name().to_string_lossy().into_owned())
        .filter(|name| name.ends_with(".jpg"))
        .collect();
    let [first, second, third] = [0, 1, 2].map(|index| base64(&format!("pictures/images/{}", names[index])));
    for (name, base64) in [("a.jpg", &first), ("b.jpg", &second)] {
        drop_file(&mut browser, &file(name, "image/jpeg", base64));
        browser.wait(&format!(
            "[...document.querySelectorAll('#pictures img')].some((image) => image.title === '{name}')"
        ));
    }
    ask(&mut browser, "Which is which?");
    let part =
        |base64: &str| json!({"type": "image_url", "image_url": {"url": format!("data:image/jpeg;base64,{base64}")}});
    let text = |text: &str| json!({"type": "text", "text": text});
    let mut body = json!({"model": "tiny", "max_tokens": 12, "messages": [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": [part(&first), part(&second), text("Which is which?")]},
    ]});
    assert_eq!(sent_messages(&mut browser), body["messages"]);
    let answer = server.text(&body);
    assert_eq!(answers(&mut browser), [answer.trim_start()]);
    drop_file(&mut browser, &file("c.jpg", "image/jpeg", &third));
    browser.wait("document.querySelectorAll('#pictures img').length === 3");
    ask(&mut browser, "And this?");
    let messages = body["messages"].as_array_mut().expect("messages");
    messages.push(json!({"role": "assistant", "content": answer}));
    messages.push(json!({"role": "user", "content": [part(&third), text("And this?")]}));
    assert_eq!(sent_messages(&mut browser), body["messages"]);
    assert_eq!(answers(&mut browser)[1], server.text(&body).trim_start());
    for (name, width, phone, scheme) in [("desktop", 1200, false, "light"), ("phone", 390, true, "dark")] {
        browser.window(width, 844, phone, scheme);
        browser.screenshot(&format!("several-{name}-{scheme}"));
    }
    // Without a picture that was asked about, the conversation begins again.
    browser.window(1200, 800, false, "light");
    browser.click("#pictures button");
    assert_eq!(answers(&mut browser), Vec::<String>::new());
    assert_well_behaved(&mut browser, &server);
}

/// Settings come from the address and stand in it; another answer takes the place of the last.
#[test]
fn the_address_has_the_settings_and_answers_are_made_again() {
    let server = Server::start(&[]);
    let Some(mut browser) = Browser::start() else { return };
    browser.window(1200, 800, false, "light");
    let address = format!("http://{}/", server.address);
    browser.open(&format!("{address}#temperature=1.5&max_tokens=12&seed=7&question=What+is+this%3F&colour=red"));
    let shown = "['temperature', 'max_tokens', 'seed', 'top_p', 'question'].map((id) => document.getElementById(id).value).join(' ')";
    assert_eq!(browser.value(shown), json!("1.5 12 7 1 What is this?"));
    assert!(browser.text("#status").contains("colour"), "an unknown setting is named");
    browser.wait("document.querySelector('#model').textContent === 'tiny'");
    ask(&mut browser, "");
    let body = |seed: u64| {
        json!({"model": "tiny", "max_tokens": 12, "temperature": 1.5, "seed": seed, "messages": [
            {"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": "What is this?"}]})
    };
    let first = server.text(&body(7));
    assert_eq!(answers(&mut browser), [first.trim_start()]);
    // Another seed, by the settings: in the address, and in the next answer to the same question.
    browser.click("#open-settings");
    browser.wait("document.querySelector('#settings').open");
    fill(&mut browser, "#seed", "8");
    browser.click("#settings .main");
    browser.wait("location.hash === '#temperature=1.5&max_tokens=12&seed=8'");
    browser.click(".tools button");
    browser.wait(QUIET);
    let second = server.text(&body(8));
    assert_ne!(first, second);
    assert_eq!(answers(&mut browser), [second.trim_start()]);
    assert_eq!(browser.value("document.querySelectorAll('.user').length"), json!(1));
    assert_well_behaved(&mut browser, &server);
}

/// A server that has gone, one that refuses a conversation, and one that breaks off: said in words, with a way out.
#[test]
fn errors_say_what_to_do_and_end_with_new_chat() {
    let mut server = Server::start(&[]);
    let Some(mut browser) = open(&server) else { return };
    browser.wait("document.querySelector('#model').textContent === 'tiny'");
    set_longest_answer(&mut browser, "100000");
    ask(&mut browser, "What is this?");
    assert!(browser.text(".assistant .error").contains("max_tokens"), "{}", browser.text(".assistant .error"));
    let tools = "[...document.querySelectorAll('.tools button')].map((button) => button.textContent).join('|')";
    assert_eq!(browser.value(tools), json!("Try again|New chat"));
    set_longest_answer(&mut browser, "8");
    browser.click(".tools button");
    browser.wait(QUIET);
    assert_eq!(browser.value("document.querySelectorAll('.error:not(#status)').length"), json!(0));
    assert_eq!(answers(&mut browser).len(), 1);

    server.child.kill().expect("killed");
    server.child.wait().expect("ended");
    ask(&mut browser, "Are you there?");
    assert!(browser.text(".assistant .error").contains("does not answer"), "{}", browser.text(".assistant .error"));
    browser.screenshot("server-gone");
    browser.click(".tools button:last-child");
    assert_eq!(answers(&mut browser), Vec::<String>::new());
    // A proxy's own page, and a stream that ends too early.
    for (reply, named) in [
        ("new Response('<h1>Bad Gateway</h1>', { status: 502, statusText: 'Bad Gateway' })", "502 Bad Gateway"),
        ("new Response('data: {\"choices\":[{\"delta\":{\"content\":\"A c\"}}]}\\n\\n')", "before the answer ended"),
    ] {
        browser.value(&format!("window.fetch = async () => {reply}"));
        ask(&mut browser, "And now?");
        assert!(
            browser.text(".assistant:last-child .error").contains(named),
            "{}",
            browser.text(".assistant:last-child .error")
        );
    }
}
