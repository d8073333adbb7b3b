//! Datasets made for a test, and `preprocess shards` over them.

use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The tiny model.
pub fn llava() -> PathBuf {
    crate::reference("tiny/llava")
}

/// A question turn.
pub fn question(text: &str) -> Value {
    json!({"from": "human", "value": text})
}

/// An answer turn.
pub fn answered(text: &str) -> Value {
    json!({"from": "gpt", "value": text})
}

/// The rows of a reference dataset's chat.json.
pub fn reference_rows(data: &str) -> Vec<Value> {
    let text = std::fs::read(crate::reference(data).join("chat.json")).expect("read");
    serde_json::from_slice(&text).expect("a list of rows")
}

/// A data folder, and fresh output folders for runs over it.
pub struct Dataset {
    data: PathBuf,
    _own: Option<tempfile::TempDir>,
}

/// How a run ended.
pub struct Finished {
    /// Exit code.
    pub code: Option<i32>,
    /// Results.
    pub stdout: String,
    /// Messages.
    pub stderr: String,
}

/// Output folder of a successful run.
pub struct Output {
    dir: tempfile::TempDir,
    /// Its closing summary.
    pub stdout: String,
}

impl Output {
    /// The folder with the shards.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// rejected.jsonl.
    pub fn rejected(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path().join("rejected.jsonl")).expect("read");
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }
}

impl Dataset {
    /// One that `tests/reference/make` made.
    pub fn reference(path: &str) -> Self {
        Self { data: crate::reference(path), _own: None }
    }

    /// An empty one with an images folder.
    pub fn empty() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        std::fs::create_dir(dir.path().join("images")).expect("created");
        Self { data: dir.path().to_path_buf(), _own: Some(dir) }
    }

    /// The folder with chat.json and the pictures.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Writes chat.json.
    pub fn write(&self, rows: &Value) {
        let text = serde_json::to_vec_pretty(rows).expect("written");
        std::fs::write(self.data.join("chat.json"), text).expect("written");
    }

    /// Writes `count` pictures, `0.bmp` and so on.
    pub fn write_pictures(&self, count: u8) {
        for number in 0..count {
            let path = self.data.join("images").join(format!("{number}.bmp"));
            std::fs::write(path, crate::byte_model::picture(number)).expect("written");
        }
    }

    /// Copies the first `count` images of a reference dataset; their names.
    pub fn copy_images(&self, data: &str, count: usize) -> Vec<String> {
        let rows = reference_rows(data);
        let names = rows.iter().take(count).map(|row| row["image"].as_str().expect("a name").to_owned());
        names
            .inspect(|name| {
                let source = crate::reference(data).join("images").join(name);
                std::fs::copy(source, self.data.join("images").join(name)).expect("copied");
            })
            .collect()
    }

    /// `preprocess shards` into `output`, not started.
    pub fn command(&self, output: &Path, args: &[&str]) -> Command {
        self.command_for(&llava(), output, args)
    }

    /// The same for another model.
    pub fn command_for(&self, model: &Path, output: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(crate::program("preprocess"));
        command.arg("shards").arg("--model").arg(model).arg("--data").arg(&self.data);
        command.arg("--output").arg(output).args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs into `output` to the end.
    pub fn run_into(&self, output: &Path, args: &[&str]) -> Finished {
        self.run_for(&llava(), output, args)
    }

    /// The same for another model.
    pub fn run_for(&self, model: &Path, output: &Path, args: &[&str]) -> Finished {
        let run = self.command_for(model, output, args).output().expect("started");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Finished { code: run.status.code(), stdout: text(&run.stdout), stderr: text(&run.stderr) }
    }

    /// Runs into a fresh folder to the end.
    pub fn run(&self, args: &[&str]) -> Finished {
        self.run_into(tempfile::tempdir().expect("a temporary folder").path(), args)
    }

    /// Runs into a fresh folder; it has to succeed.
    pub fn shards(&self, args: &[&str]) -> Output {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let run = self.run_into(dir.path(), args);
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        Output { dir, stdout: run.stdout }
    }
}
