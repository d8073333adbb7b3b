//! Names of Hugging Face repositories: downloaded from a local server with the hub's protocol, then read from the cache.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tests::training::{fail, succeed};
use tests::{program, reference};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What a server says that is not so.
#[derive(Clone, Copy, Default)]
struct Lies {
    /// A file that every repository is said to have.
    listed: Option<&'static str>,
    etag: Option<&'static str>,
    commit: Option<&'static str>,
}

/// Serves folders as repositories.
struct Hub {
    endpoint: String,
    requests: Arc<AtomicUsize>,
}

impl Hub {
    fn start(repositories: Vec<(&'static str, PathBuf)>) -> Self {
        Self::lying(repositories, Lies::default())
    }

    fn lying(repositories: Vec<(&'static str, PathBuf)>, lies: Lies) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        let requests = Arc::new(AtomicUsize::new(0));
        let (counted, repositories) = (Arc::clone(&requests), Arc::new(repositories));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (counted, repositories) = (Arc::clone(&counted), Arc::clone(&repositories));
                std::thread::spawn(move || serve(stream, &repositories, &counted, lies));
            }
        });
        Self { endpoint, requests }
    }
}

/// Answers the requests of one connection.
fn serve(mut stream: TcpStream, repositories: &[(&str, PathBuf)], requests: &AtomicUsize, lies: Lies) {
    let mut reader = BufReader::new(stream.try_clone().expect("a connection"));
    loop {
        let (mut path, mut from, mut to) = (String::new(), 0, usize::MAX);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            let line = line.trim_end();
            if line.is_empty() {
                break;
            }
            if let Some(rest) = line.strip_prefix("GET ") {
                path = rest.split(' ').next().unwrap_or_default().to_string();
            }
            if let Some(range) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
                let (first, last) = range.split_once('-').expect("a range");
                (from, to) = (first.parse().expect("a number"), last.parse().unwrap_or(usize::MAX));
            }
        }
        requests.fetch_add(1, Ordering::SeqCst);
        let answer = answer(&path, repositories, (from, to), lies);
        stream.write_all(&answer).expect("the client listens");
    }
}

fn answer(path: &str, repositories: &[(&str, PathBuf)], (from, to): (usize, usize), lies: Lies) -> Vec<u8> {
    for (id, folder) in repositories {
        if path == format!("/api/models/{id}/revision/main") {
            let entries = std::fs::read_dir(folder).expect("the folder is readable").flatten();
            let files = entries.map(|entry| serde_json::json!({"rfilename": entry.file_name().to_string_lossy()}));
            // Beside safetensors it is listed and not there: nobody needs it.
            let unneeded = folder.join("model.safetensors").exists().then_some("pytorch_model.bin");
            let unneeded = unneeded.map(|name| serde_json::json!({"rfilename": name}));
            let listed = lies.listed.map(|name| serde_json::json!({"rfilename": name}));
            let files: Vec<_> = files.chain(unneeded).chain(listed).collect();
            let body = serde_json::json!({"siblings": files, "sha": COMMIT}).to_string();
            return response("200 OK", "content-type: application/json\r\n", body.as_bytes());
        }
        let Some(name) = path.strip_prefix(&format!("/{id}/resolve/main/")) else { continue };
        let Ok(bytes) = std::fs::read(folder.join(name)) else { continue };
        let end = to.saturating_add(1).min(bytes.len());
        let headers = format!(
            "etag: \"{}\"\r\nx-repo-commit: {}\r\ncontent-range: bytes {from}-{}/{}\r\n",
            lies.etag.map_or(format!("{name}-{}", bytes.len()), str::to_string),
            lies.commit.unwrap_or(COMMIT),
            end - 1,
            bytes.len()
        );
        return response("206 Partial Content", &headers, &bytes[from..end]);
    }
    response("404 Not Found", "", b"no such thing")
}

fn response(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

fn assemble(home: &Path, endpoint: &str, clip: &str, text: &str, output: &Path) -> Command {
    let mut command = Command::new(program("preprocess"));
    command.arg("model").args(["--vision-tower", clip, "--language-model", text]).arg("--output").arg(output);
    // Somewhere without folders of these names.
    command.current_dir(home).env("HF_HOME", home).env("HF_ENDPOINT", endpoint).env_remove("HF_HUB_OFFLINE");
    command
}

#[test]
fn names_are_downloaded_once_and_then_taken_from_the_cache() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (clip, text) = (reference("tiny/clip"), reference("tiny/text"));
    let hub = Hub::start(vec![("tiny-org/clip", clip.clone()), ("tiny-org/text-0.1", text.clone())]);
    let output = |name: &str| folder.path().join(name);
    let weights = |name: &str| std::fs::read(output(name).join("model.safetensors")).expect("weights");

    succeed(&mut assemble(folder.path(), &hub.endpoint, "tiny-org/clip", "tiny-org/text-0.1", &output("downloaded")));
    let (clip, text) = (clip.to_str().expect("UTF-8"), text.to_str().expect("UTF-8"));
    succeed(&mut assemble(folder.path(), &hub.endpoint, clip, text, &output("local")));
    assert!(weights("downloaded") == weights("local"), "other weights than from the folders");

    let requests = hub.requests.load(Ordering::SeqCst);
    assert!(requests > 4, "{requests} requests");
    let offline = "http://127.0.0.1:1";
    succeed(&mut assemble(folder.path(), offline, "tiny-org/clip", "tiny-org/text-0.1", &output("cached")));
    assert!(weights("cached") == weights("local"));
    assert_eq!(hub.requests.load(Ordering::SeqCst), requests, "the cache needs no server");
    println!("{requests} requests for two repositories, none for the second time");

    // A configuration is enough for a plan.
    let mut plan = Command::new(program("train"));
    plan.arg("plan").args(["--vision-tower", "tiny-org/clip", "--language-model", "tiny-org/text-0.1", "--rows", "10"]);
    succeed(plan.current_dir(folder.path()).env("HF_HOME", folder.path()).env("HF_HUB_OFFLINE", "1"));
}

/// CLIP ViT-L/14-336 is published so.
#[test]
fn a_repository_with_nothing_but_pickled_weights_is_downloaded() {
    let Some(mut python) = tests::python() else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (clip, text) = (reference("tiny/clip"), reference("tiny/text"));
    let pickled = folder.path().join("pickled");
    std::fs::create_dir(&pickled).expect("a folder");
    for name in ["config.json", "preprocessor_config.json"] {
        std::fs::copy(clip.join(name), pickled.join(name)).expect("copied");
    }
    const PICKLE: &str = "import sys, torch; from safetensors.torch import load_file\n\
                          torch.save(load_file(sys.argv[1]), sys.argv[2])";
    python.args(["-c", PICKLE]).arg(clip.join("model.safetensors")).arg(pickled.join("pytorch_model.bin"));
    succeed(&mut python);
    let hub = Hub::start(vec![("tiny-org/pickled", pickled), ("tiny-org/text", text.clone())]);
    let output = |name: &str| folder.path().join(name);
    succeed(&mut assemble(folder.path(), &hub.endpoint, "tiny-org/pickled", "tiny-org/text", &output("downloaded")));
    let (clip, text) = (clip.to_str().expect("UTF-8"), text.to_str().expect("UTF-8"));
    succeed(&mut assemble(folder.path(), &hub.endpoint, clip, text, &output("local")));
    let weights = |name: &str| std::fs::read(output(name).join("model.safetensors")).expect("weights");
    assert!(weights("downloaded") == weights("local"), "other weights than from the folder's safetensors");
}

/// A server (or whoever sits between) makes up names; none of them becomes a path out of the cache.
#[test]
fn names_from_a_hostile_server_lead_nowhere() {
    let (clip, text) = (reference("tiny/clip"), reference("tiny/text"));
    let repositories = || vec![("tiny-org/clip", clip.clone()), ("tiny-org/text", text.clone())];
    let lies = |listed, etag, commit| Lies { listed, etag, commit };
    for (lies, refused) in [
        // Not a model's file: not asked for.
        (lies(Some("model-/../../../../../stolen.safetensors"), None, None), None),
        (lies(Some("../stolen.json"), None, None), None),
        (lies(None, Some("../../../../stolen"), None), Some("the server's etag is \"../../../../stolen\"")),
        (lies(None, None, Some("../../../../stolen")), Some("the server's x-repo-commit is \"../../../../stolen\"")),
        (lies(None, Some("/tmp/stolen"), None), Some("the server's etag is \"/tmp/stolen\"")),
    ] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let home = folder.path().join("1/2/3/4");
        std::fs::create_dir_all(&home).expect("created");
        let (hub, output) = (Hub::lying(repositories(), lies), home.join("out"));
        let mut command = assemble(&home, &hub.endpoint, "tiny-org/clip", "tiny-org/text", &output);
        match refused {
            None => drop(succeed(&mut command)),
            Some(named) => {
                let error = fail(&mut command);
                assert!(error.contains(named), "{error}");
            }
        }
        let outside = |path: &Path| !path.starts_with(&home) && path.is_file();
        assert_eq!(
            files_below(folder.path()).into_iter().filter(|path| outside(path)).collect::<Vec<_>>(),
            [] as [PathBuf; 0]
        );
        assert!(!files_below(folder.path()).iter().any(|path| path.to_string_lossy().contains("stolen")));
    }
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("readable").flatten() {
        if entry.file_type().expect("a type").is_dir() {
            found.extend(files_below(&entry.path()));
        } else {
            found.push(entry.path());
        }
    }
    found
}

#[test]
fn without_a_network_the_files_to_provide_are_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let output = folder.path().join("out");
    let mut command =
        assemble(folder.path(), "http://127.0.0.1:1", "openai/clip-vit-large-patch14-336", "a/b", &output);
    for offline in [false, true] {
        if offline {
            command.env("HF_HUB_OFFLINE", "1");
        }
        let error = fail(&mut command);
        println!("{error}");
        for part in
            ["openai/clip-vit-large-patch14-336", "config.json", "preprocessor_config.json", "model.safetensors"]
        {
            assert!(error.contains(part), "{part} is not in: {error}");
        }
        assert_eq!(error.contains("HF_HUB_OFFLINE"), offline, "{error}");
    }
    let empty = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(empty.path().join("config.json"), "{}").expect("written");
    let hub = Hub::start(vec![("tiny-org/empty", empty.path().to_path_buf())]);
    let error = fail(&mut assemble(folder.path(), &hub.endpoint, "tiny-org/empty", "a/b", &output));
    assert!(error.contains("the repository has no preprocessor_config.json"), "{error}");
}

/// A recipe takes names as the command line does; its second run finds everything as it was, without asking anybody.
#[test]
fn recipes_take_names_too() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let hub =
        Hub::start(vec![("tiny-org/clip", reference("tiny/clip")), ("tiny-org/text-0.1", reference("tiny/text"))]);
    // What a stage writes is a folder, also where its name looks like a repository's.
    let recipe = "purpose = \"names\"\n[model]\nvision_tower = \"tiny-org/clip\"\nlanguage_model = \"tiny-org/text-0.1\"\n\
        output = \"models/llava\"\n[data]\ndir = \"{data}\"\nshards = \"shards\"\n[train]\n\
        model_name_or_path = \"models/llava\"\ndata_path = \"shards\"\noutput_dir = \"runs/one\"\ntrain_type = \"projector\"\n\
        max_steps = 1\noptim = \"adamw_torch\"\nlr_scheduler_kwargs = {}\n";
    let data = reference("pictures");
    let recipe = recipe.replace("{data}", data.to_str().expect("UTF-8"));
    std::fs::write(folder.path().join("recipe.toml"), recipe).expect("written");
    let run = |endpoint: &str| {
        let mut command = Command::new(program("pipelines"));
        command.args(["run", "recipe.toml"]).current_dir(folder.path()).env("HF_HOME", folder.path().join("home"));
        command.env("HF_ENDPOINT", endpoint).env_remove("HF_HUB_OFFLINE");
        String::from_utf8(succeed(&mut command).stdout).expect("UTF-8")
    };
    run(&hub.endpoint);
    assert!(folder.path().join("runs/one/model.safetensors").exists());
    assert!(hub.requests.load(Ordering::SeqCst) > 4);
    let again = run("http://127.0.0.1:1");
    assert_eq!(again.matches("unchanged").count(), 3, "{again}");
}
