//! Recipes: stages that run again or continue, and signals. On the quickstart's data and models.

use serde_json::Value;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use tests::program;
use tests::runs::json_lines;
use tests::training::succeed;

/// A model, shards and held-out pictures, made once.
fn made() -> &'static Path {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    let make = || {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let args = ["quickstart", "--pictures", "48", "--held-out", "4", "--epochs", "1", "--require", "0"];
        succeed(pipelines(folder.path()).args(args));
        folder
    };
    FOLDER.get_or_init(make).path()
}

fn pipelines(folder: &Path) -> Command {
    let mut command = Command::new(program("pipelines"));
    // As a user starts it: not through cargo, which would build the programs first.
    command.current_dir(folder).env_remove("CARGO").env_remove("CARGO_PKG_NAME");
    command
}

/// A recipe that trains and captions in a folder of its own.
struct Recipe {
    folder: tempfile::TempDir,
}

impl Recipe {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a temporary folder") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes the recipe with these options of `train` beside the fixed ones.
    fn write(&self, train: &str) {
        let made = made().join("quickstart");
        let (made, folder) = (made.display(), self.folder.path().display());
        let recipe = format!(
            "purpose = \"a test\"\n[train]\nmodel_name_or_path = \"{made}/llava\"\ndata_path = \"{made}/shards\"\n\
             output_dir = \"{folder}/run\"\ntrain_type = \"none\"\nper_device_train_batch_size = 4\nlogging_steps = 1\n\
             save_total_limit = 2\ndeepspeed = \"None\"\n{train}\n\
             [infer]\nmodel = \"{folder}/run\"\ndata = \"{made}/held_out\"\noutput = \"{folder}/captions.jsonl\"\n\
             max_new_tokens = 12\n"
        );
        std::fs::write(self.path("recipe.toml"), recipe).expect("written");
    }

    fn command(&self, more: &[&str]) -> Command {
        let mut command = pipelines(self.folder.path());
        command.args(["run", "recipe.toml"]).args(more);
        command
    }

    fn run(&self, more: &[&str]) -> (String, String) {
        let Output { stdout, stderr, .. } = succeed(&mut self.command(more));
        (String::from_utf8_lossy(&stdout).into_owned(), String::from_utf8_lossy(&stderr).into_owned())
    }

    /// Starts it and waits until training has done a few steps, and saved some of them.
    fn started(&self, steps: usize) -> Child {
        let mut child = self.command(&[]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
        let mut said = BufReader::new(child.stderr.take().expect("a pipe"));
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        let begin = Instant::now();
        while self.steps() < steps {
            assert!(begin.elapsed() < Duration::from_secs(120), "training does not begin");
            std::thread::sleep(Duration::from_millis(10));
        }
        child
    }

    fn steps(&self) -> usize {
        std::fs::read_to_string(self.path("run/metrics.jsonl")).map_or(0, |text| text.lines().count())
    }

    fn weights(&self) -> Vec<u8> {
        std::fs::read(self.path("run/model.safetensors")).expect("weights")
    }

    fn captions(&self) -> Vec<Value> {
        let lines = json_lines(&self.path("captions.jsonl"));
        lines.into_iter().map(|line| line["caption"].clone()).collect()
    }

    /// The process of `train` that works in this folder.
    fn train_process(&self) -> Option<u32> {
        let run = self.path("run").display().to_string();
        let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
        let ids = processes.filter_map(|process| process.file_name().to_str()?.parse::<u32>().ok());
        ids.into_iter().find(|id| {
            let line = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            line.split('\0').next().is_some_and(|name| name.ends_with("/train")) && line.contains(&run)
        })
    }
}

fn kill(signal: &str, process: u32) {
    succeed(Command::new("kill").args(["-s", signal, &process.to_string()]));
}

/// Exit code and stdout; the run must end soon.
fn ended(mut child: Child) -> (Option<i32>, String) {
    let status = child.wait().expect("the program ends");
    let mut text = String::new();
    child.stdout.take().expect("a pipe").read_to_string(&mut text).expect("UTF-8");
    (status.code(), text)
}

#[test]
fn every_recipe_of_the_repository_is_understood() {
    let folder = tests::project_file("../pipelines/recipes");
    let files = std::fs::read_dir(folder).expect("recipes").map(|entry| entry.expect("a file").path());
    // The quickstart's is a template.
    let files: Vec<PathBuf> = files.filter(|file| !file.ends_with("quickstart.toml")).collect();
    assert!(files.len() > 5, "{files:?}");
    let elsewhere = tempfile::tempdir().expect("a temporary folder");
    let lines = |file: &Path| {
        let output = succeed(pipelines(elsewhere.path()).arg("run").arg(file).arg("--dry-run"));
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    for file in &files {
        let text = lines(file);
        assert!(text.lines().count() > 2 && text.contains("\ntrain --"), "{}: {text}", file.display());
    }
    let lora = files.iter().find(|file| file.ends_with("llava-v1.5-7b-lora.toml")).expect("LLaVA's LoRA recipe");
    let text = lines(lora);
    let lines: Vec<&str> = text.lines().map(|line| line.split(" --").next().unwrap_or_default()).collect();
    assert_eq!(lines, ["preprocess model", "preprocess shards", "preprocess shards", "train", "train"]);
    assert!(text.contains("--learning_rate 0.0002 ") && text.contains("--mm_projector_lr 0.00002 "), "{text}");
}

const SHORT: &str = "max_steps = 4\nsave_steps = 2\n";
const FAST: &str = "learning_rate = 0.02\n";
const SLOW: &str = "learning_rate = 0.001\n";

/// What an undisturbed run of an own recipe gives.
fn undisturbed(train: &str) -> Recipe {
    let recipe = Recipe::new();
    recipe.write(train);
    recipe.run(&[]);
    recipe
}

#[test]
fn a_changed_option_trains_and_captions_anew_and_nothing_else_does() {
    let (slow, fast) = (undisturbed(&(SHORT.to_string() + SLOW)), undisturbed(&(SHORT.to_string() + FAST)));
    assert!(slow.weights() != fast.weights() && slow.captions() != fast.captions(), "a change that shows");

    let (said, _) = slow.run(&[]);
    assert_eq!(said.matches("unchanged").count(), 2, "{said}");
    // What else is in the run's folder is no reason to train again.
    std::fs::write(slow.path("run/notes.txt"), "a note").expect("written");
    let (said, _) = slow.run(&[]);
    assert_eq!(said.matches("unchanged").count(), 2, "{said}");

    // A recipe of before that always resumes: a finished training is not one to go on with.
    for resume in ["", "resume_from_checkpoint = \"true\"\n", "resume_from_checkpoint = true\n"] {
        let (from, to) = if resume.is_empty() { (&slow, &fast) } else { (&slow, &slow) };
        from.write(&format!("{SHORT}{}{resume}", if resume.is_empty() { FAST } else { SLOW }));
        let (_, log) = from.run(&[]);
        if resume.is_empty() {
            assert!(log.contains("changed: learning_rate 0.001 → 0.02; run again"), "{log}");
        }
        assert!(!log.contains("resuming"), "{log}");
        if resume.is_empty() {
            assert!(from.weights() == to.weights(), "the weights of a training with this option from the start");
            assert_eq!(from.captions(), to.captions(), "captions of the new model");
        }
        assert_eq!(from.steps(), 4, "the log of one training");
    }

    let before = slow.weights();
    let (said, log) = slow.run(&["--force"]);
    assert!(!said.contains("unchanged") && !log.contains("resuming"), "{said}\n{log}");
    assert!(slow.weights() == before, "trained again from the start");
    assert_eq!(slow.steps(), 4);
}

#[test]
fn a_run_that_no_stage_has_made_is_not_replaced() {
    let recipe = undisturbed(&(SHORT.to_string() + SLOW));
    std::fs::remove_file(recipe.path("run.stage.json")).expect("removed");
    let before = recipe.weights();
    // Not the second time either, when the stage has a record, and not with other options than that.
    for more in ["", "", "warmup_steps = 1\n"] {
        recipe.write(&(SHORT.to_string() + FAST + more));
        let output = recipe.command(&[]).output().expect("starts");
        let log = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{log}");
        assert!(log.contains("overwrite_output_dir"), "{log}");
        assert!(recipe.weights() == before);
    }
    recipe.write(&(SHORT.to_string() + FAST + "overwrite_output_dir = true\n"));
    recipe.run(&[]);
    assert!(recipe.weights() != before);
}

/// Files and folders that a recipe names as output by mistake stay, also when its options change, and folders when all is to be
/// made again.
#[test]
fn what_no_stage_has_made_stays() {
    let recipe = Recipe::new();
    let made = made().join("quickstart").display().to_string();
    let (photos, notes) = (recipe.path("photos"), recipe.path("notes.jsonl"));
    std::fs::create_dir(&photos).expect("a folder");
    std::fs::write(photos.join("a.png"), "a picture").expect("written");
    std::fs::write(&notes, "notes\n").expect("written");
    let [photo, note] = [photos.join("a.png"), notes.clone()];
    let pictures = format!("images = \"{made}/held_out/images\"\n");
    for (output, input) in [(&photos, &pictures), (&notes, &pictures)] {
        for (tokens, more) in [(3, None), (4, None), (4, Some("--force"))] {
            if more.is_some() && output == &notes {
                continue; // a file is replaced with --force
            }
            let text = format!(
                "[infer]\nmodel = \"{made}/run\"\n{input}output = \"{}\"\nmax_new_tokens = {tokens}\n",
                output.display()
            );
            std::fs::write(recipe.path("recipe.toml"), text).expect("written");
            let run = recipe.command(more.as_slice()).output().expect("starts");
            let log = String::from_utf8_lossy(&run.stderr);
            assert_eq!(run.status.code(), Some(1), "{log}");
            assert_eq!(std::fs::read_to_string(&photo).expect("still there"), "a picture", "{log}");
            assert_eq!(std::fs::read_to_string(&note).expect("still there"), "notes\n", "{log}");
        }
    }
    // One of the pictures that are read is not written to, even with --force.
    let text = format!(
        "[infer]\nmodel = \"{made}/run\"\nimages = \"{}\"\noutput = \"{}\"\n",
        photos.display(),
        photo.display()
    );
    std::fs::write(recipe.path("recipe.toml"), text).expect("written");
    let run = recipe.command(&["--force"]).output().expect("starts");
    assert_eq!(run.status.code(), Some(1), "{}", String::from_utf8_lossy(&run.stderr));
    assert_eq!(std::fs::read_to_string(&photo).expect("still there"), "a picture");
}

const LONG: &str = "max_steps = 200\nsave_steps = 3\n";

/// A signal goes on to the training, which saves; the next run goes on from there, to the same weights. Changed options begin
/// from the start also where a training is half done.
#[test]
fn a_stopped_recipe_goes_on_and_leaves_nothing_running() {
    let whole = undisturbed(&(LONG.to_string() + SLOW));
    let recipe = Recipe::new();
    recipe.write(&(LONG.to_string() + SLOW));
    for (signal, to_train) in [("TERM", false), ("INT", false), ("TERM", true)] {
        let child = recipe.started(recipe.steps() + 6);
        let second = recipe.command(&[]).output().expect("starts");
        let refused = String::from_utf8_lossy(&second.stderr);
        assert_eq!(second.status.code(), Some(1), "{refused}");
        assert!(refused.contains("is being made by"), "a second one beside the first: {refused}");
        let target = if to_train { recipe.train_process().expect("train runs") } else { child.id() };
        kill(signal, target);
        let (code, text) = ended(child);
        assert_eq!(code, Some(75), "SIG{signal}: {text}");
        assert_eq!(recipe.train_process(), None, "nothing goes on");
        assert!(!recipe.path("captions.jsonl").exists() && !recipe.path("run/model.safetensors").exists());
    }
    let (said, log) = recipe.run(&[]);
    assert!(log.contains("unfinished, with the same options") && log.contains("resuming from"), "{log}");
    assert!(recipe.weights() == whole.weights(), "other weights than undisturbed");
    assert_eq!(recipe.captions(), whole.captions());
    assert!(!said.contains("unchanged"), "{said}");

    let changed = Recipe::new();
    changed.write(&(LONG.to_string() + FAST));
    let child = changed.started(6);
    kill("TERM", child.id());
    assert_eq!(ended(child).0, Some(75));
    changed.write(&(LONG.to_string() + SLOW));
    let (_, log) = changed.run(&[]);
    assert!(log.contains("changed: learning_rate") && !log.contains("resuming from"), "{log}");
    assert!(changed.weights() == whole.weights(), "a changed learning rate trains from the start");
}

/// SIGKILL cannot be passed on: the training goes on, and nothing starts beside it.
#[test]
fn a_killed_runner_does_not_make_room_for_a_second_training() {
    let recipe = Recipe::new();
    recipe.write("max_steps = 100000\nsave_strategy = \"no\"\n");
    let mut child = recipe.started(3);
    child.kill().expect("killed");
    child.wait().expect("gone");
    let train = recipe.train_process().expect("it goes on");
    let output = recipe.command(&[]).output().expect("starts");
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    kill("KILL", train);
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(log.contains("is being made by") && log.contains("kill -TERM"), "{log}");
}

/// A signal between programs, and one to a program that does not save.
#[test]
fn other_programs_are_ended_by_a_signal_and_run_again() {
    let recipe = Recipe::new();
    recipe.write(&(SHORT.to_string() + SLOW));
    recipe.run(&[]);
    std::fs::remove_file(recipe.path("captions.jsonl")).expect("removed");
    let text = std::fs::read_to_string(recipe.path("recipe.toml")).expect("read");
    // Longer captions: time to stop in the middle.
    let more = text.replace("max_new_tokens = 12", "max_new_tokens = 100\nbatch_size = 1");
    std::fs::write(recipe.path("recipe.toml"), more).expect("written");
    let child = recipe.command(&[]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("starts");
    let begin = Instant::now();
    while std::fs::metadata(recipe.path("captions.jsonl")).is_err() {
        assert!(begin.elapsed() < Duration::from_secs(60), "captioning does not begin");
        std::thread::sleep(Duration::from_millis(1));
    }
    kill("TERM", child.id());
    let (code, text) = ended(child);
    // Captioning may be over before the signal comes.
    assert!(matches!(code, Some(0 | 143)), "{code:?}: {text}");
    recipe.run(&[]);
    assert_eq!(recipe.captions().len(), 4);
}
