//! The pages that programs write, in a headless Chromium: `pipelines report` and the filters of `preprocess inspect`.

use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use tests::browser::Browser;
use tests::dataset::Dataset;
use tests::{program, reference};

/// A run's folder with a falling loss that has one spike, evaluations and captions of two pictures.
fn run(folder: &Path, name: &str, scale: f64) -> PathBuf {
    let dir = folder.join(name);
    std::fs::create_dir(&dir).expect("created");
    let mut lines: Vec<Value> = (1..=60)
        .map(|step| {
            let loss = if step == 30 { 40.0 } else { scale * 8.0 / f64::from(step) + 0.05 };
            json!({"step": step, "epoch": f64::from(step) / 30.0, "loss": loss, "grad_norm": 1.0, "learning_rate": 1e-3,
                "supervised_tokens": 100.0 * scale, "tokens_per_second": 900.0})
        })
        .collect();
    lines.push(json!({"step": 60, "eval_loss": 0.4 * scale, "eval_cider": 0.7}));
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    std::fs::write(dir.join("metrics.jsonl"), text).expect("written");
    let caption = |id: u32, said: &str| json!({"index": 0, "id": id.to_string(), "image": format!("{id}.jpg"), "caption": said, "references": ["a red cat"]});
    let captions = format!("{}\n{}\n", caption(100_000_000, "a red cat"), caption(100_000_001, "a dog"));
    std::fs::write(dir.join("captions.jsonl"), captions).expect("written");
    dir
}

/// Every control, image and group has a name in the accessibility tree.
fn assert_named(browser: &mut Browser, least: usize) {
    let tree = browser.call("Accessibility.getFullAXTree", json!({}));
    let mut named = 0;
    for node in tree["nodes"].as_array().expect("nodes").iter().filter(|node| node["ignored"] == json!(false)) {
        let role = node["role"]["value"].as_str().unwrap_or_default();
        if ["button", "checkbox", "combobox", "slider", "searchbox", "spinbutton", "image", "img"].contains(&role) {
            let name = node["name"]["value"].as_str().unwrap_or_default();
            assert!(!name.trim().is_empty(), "a {role} without a name: {node}");
            named += 1;
        }
    }
    assert!(named >= least, "{named} named controls and images");
}

/// At the widths of a phone and a desktop, light and dark: nothing is wider than the window.
fn look(browser: &mut Browser, name: &str) {
    for (size, width, height, phone) in [("desktop", 1280, 900, false), ("phone", 390, 844, true)] {
        for scheme in ["light", "dark"] {
            browser.window(width, height, phone, scheme);
            let wide = browser.value("document.documentElement.scrollWidth - innerWidth");
            assert!(wide.as_i64().expect("a number") <= 0, "{name} is {wide} px wider than a {size}");
            browser.screenshot(&format!("{name}-{size}-{scheme}"));
        }
    }
    browser.window(1280, 900, false, "light");
}

#[test]
fn the_report_compares_runs() {
    let Some(mut browser) = Browser::start() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let runs = [run(folder.path(), "first", 1.0), run(folder.path(), "second", 2.0)];
    let page = folder.path().join("report.html");
    let report = Command::new(program("pipelines"))
        .arg("report")
        .args(&runs)
        .arg("--html")
        .arg(&page)
        .arg("--pictures")
        .arg(reference("pictures/images"))
        .output()
        .expect("pipelines starts");
    assert!(report.status.success(), "{}", String::from_utf8_lossy(&report.stderr));
    browser.window(1280, 900, false, "light");
    browser.open(&format!("file://{}", page.display()));
    browser.wait("document.querySelectorAll('figure:not([hidden]) polyline').length > 0");
    let loss = "document.querySelector('figure')";
    // A spike of 40 over losses of 0.2: the first view is logarithmic, smoothed, with the unsmoothed lines behind.
    assert_eq!(browser.value("document.querySelector('#scale').value"), "log");
    let lines = |browser: &mut Browser| browser.value(&format!("{loss}.querySelectorAll('polyline').length"));
    assert_eq!(lines(&mut browser), json!(6), "two runs, smoothed and not, and their evaluations");
    look(&mut browser, "report");
    let set = |browser: &mut Browser, id: &str, value: &str| {
        browser.value(&format!("{{ const e = document.querySelector('#{id}'); e.value = '{value}'; e.oninput(); }}"));
    };
    set(&mut browser, "smoothing", "0");
    assert_eq!(lines(&mut browser), json!(4));
    let label = |browser: &mut Browser| {
        browser
            .value(&format!("{loss}.querySelector('svg').getAttribute('aria-label')"))
            .as_str()
            .unwrap_or_default()
            .to_string()
    };
    assert!(
        label(&mut browser).starts_with("Loss over step: first, loss from 8.05 to 0.1833"),
        "{}",
        label(&mut browser)
    );
    set(&mut browser, "scale", "clipped");
    assert_eq!(browser.value(&format!("{loss}.querySelector('.mode').textContent")), "clipped at 8.05");
    set(&mut browser, "scale", "linear");
    // On the axis of tokens the second run is twice as long: its line ends at the right, the first in the middle.
    set(&mut browser, "axis", "tokens");
    let ends = browser.value(&format!(
        "[...{loss}.querySelectorAll('polyline:not(.dashed)')].map((line) => Number(line.getAttribute('points').trim().split(' ').at(-1).split(',')[0]))"
    ));
    let ends: Vec<f64> = serde_json::from_value(ends).expect("numbers");
    println!("ends of the lines over tokens: {ends:?}");
    assert!((ends[1] - 546.0).abs() < 0.2 && (ends[0] - (58.0 + 488.0 * 5900.0 / 11_900.0)).abs() < 6.0, "{ends:?}");
    browser.click("#run0");
    assert_eq!(lines(&mut browser), json!(2), "a run is hidden");
    browser.click("#run0");
    assert_eq!(
        browser
            .value("[...document.querySelectorAll('.words img')].filter((image) => image.naturalWidth === 144).length"),
        json!(4)
    );
    assert_eq!(browser.value("document.querySelectorAll('.words .same').length"), json!(2));
    assert_named(&mut browser, 12);
    let complaints = browser.events(&["Runtime.exceptionThrown", "Log.entryAdded"]);
    assert!(complaints.is_empty(), "{complaints:?}");
}

#[test]
fn samples_and_rejected_rows_are_filtered() {
    let Some(mut browser) = Browser::start() else { return };
    let dataset = Dataset::empty();
    let names = dataset.copy_images("pictures", 30);
    let mut rows: Vec<Value> = tests::dataset::reference_rows("pictures").into_iter().take(30).collect();
    for (id, image) in [("gone", "nowhere.jpg"), ("away", "elsewhere.jpg")] {
        let mut row = rows[1].clone();
        (row["id"], row["image"]) = (json!(id), json!(image));
        rows.push(row);
    }
    rows.push(json!({"id": "silent", "image": names[0], "conversations": []}));
    rows[7]["conversations"][1]["value"] = json!("A caption that names the xylophone.");
    dataset.write(&Value::Array(rows));
    let shards = dataset.shards(&["--max-rejected", "1"]);
    let page = shards.path().join("page.html");
    let inspect =
        Command::new(program("preprocess")).arg("inspect").arg(shards.path()).arg("--html").arg(&page).output();
    let inspect = inspect.expect("preprocess starts");
    assert!(inspect.status.success(), "{}", String::from_utf8_lossy(&inspect.stderr));
    browser.window(1280, 900, false, "light");
    browser.open(&format!("file://{}", page.display()));
    assert_eq!(browser.text("#shown"), "30 of 30 samples");
    browser.click("#rejected summary");
    look(&mut browser, "inspect");
    browser.click("#find");
    browser.type_text("xylophone");
    assert_eq!(browser.text("#shown"), "1 of 30 samples", "the tokens' text is searched");
    browser.value("{ const e = document.querySelector('#find'); e.value = ''; e.oninput(); }");
    let lengths =
        browser.value("[...document.querySelectorAll('.sample')].map((sample) => Number(sample.dataset.tokens))");
    let lengths: Vec<u64> = serde_json::from_value(lengths).expect("numbers");
    let longest = *lengths.iter().max().expect("samples");
    browser.click("#min-tokens");
    browser.type_text(&longest.to_string());
    let expected = lengths.iter().filter(|&&length| length == longest).count();
    assert_eq!(browser.text("#shown"), format!("{expected} of 30 samples"));
    browser.value("{ const e = document.querySelector('#min-tokens'); e.value = ''; e.oninput(); }");
    browser.value("{ const e = document.querySelector('#sort'); e.value = 'tokens'; e.onchange(); }");
    assert_eq!(browser.value("Number(document.querySelector('.sample').dataset.tokens)"), json!(longest));
    browser.click("#open");
    assert_eq!(browser.value("document.querySelectorAll('.sample[open]').length"), json!(30));
    browser.screenshot("inspect-open");
    assert_eq!(browser.text("#rejected-shown"), "3 of 3 listed rows");
    browser.value("{ const e = document.querySelector('#cause'); e.value = 'missing_image'; e.onchange(); }");
    assert_eq!(browser.text("#rejected-shown"), "2 of 3 listed rows");
    assert_named(&mut browser, 38);
    let complaints = browser.events(&["Runtime.exceptionThrown", "Log.entryAdded"]);
    assert!(complaints.is_empty(), "{complaints:?}");
}
