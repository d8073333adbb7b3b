//! `--version`, completions and man pages of all programs.

use std::process::{Command, Stdio};
use tests::program;
use tests::training::succeed;

const PROGRAMS: [&str; 4] = ["preprocess", "train", "infer", "pipelines"];

fn said(command: &mut Command) -> String {
    String::from_utf8(succeed(command).stdout).expect("UTF-8")
}

#[test]
fn versions_name_commit_features_and_cpu_path() {
    for name in PROGRAMS {
        let long = said(Command::new(program(name)).arg("--version"));
        let lines: Vec<&str> = long.lines().collect();
        println!("{long}");
        let [version, commit, features, cpu] = lines[..] else { panic!("{long}") };
        assert_eq!(version, format!("{name} {}", env!("CARGO_PKG_VERSION")));
        assert_eq!(said(Command::new(program(name)).arg("-V")).trim_end(), version, "-V has no commit");
        assert!(commit.starts_with("commit    ") && features.starts_with("features  "), "{long}");
        assert!(cpu.starts_with("CPU       ") && cpu.contains("kernels"), "{long}");
        for (feature, is_on) in [("ndarray", cfg!(feature = "ndarray")), ("wgpu", cfg!(feature = "wgpu"))] {
            let expected = is_on && ["train", "infer"].contains(&name);
            assert_eq!(features.contains(feature), expected, "{long}");
        }
    }
}

#[test]
fn completions_are_scripts_of_the_shell() {
    for name in PROGRAMS {
        let script = said(Command::new(program(name)).args(["completions", "bash"]));
        let mut bash = Command::new("bash").arg("-n").stdin(Stdio::piped()).spawn().expect("bash starts");
        std::io::Write::write_all(bash.stdin.as_mut().expect("a pipe"), script.as_bytes()).expect("written");
        assert!(bash.wait().expect("it ends").success(), "{name}");
        assert!(script.contains("completions"), "{name}: its own subcommand is completed");
    }
    let options = said(Command::new(program("train")).args(["completions", "fish"]));
    assert!(options.contains("per-device-train-batch-size"), "{options}");
}

#[test]
fn every_subcommand_has_a_man_page() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for name in PROGRAMS {
        said(Command::new(program(name)).arg("man").arg(folder.path()));
    }
    for (page, option) in [
        ("preprocess-shards.1", "rows\\-per\\-shard"),
        ("train.1", "learning\\-rate"),
        ("train-plan.1", "nproc"),
        ("infer-serve.1", "max\\-queue"),
        ("pipelines-doctor.1", "output"),
    ] {
        let text = std::fs::read_to_string(folder.path().join(page)).expect(page);
        assert!(text.contains(".TH") && text.contains(option), "{page}: {text}");
    }
    let hidden = std::fs::read_dir(folder.path()).expect("the pages").flatten();
    let hidden: Vec<_> = hidden.filter(|page| page.file_name().to_string_lossy().contains("options")).collect();
    assert!(hidden.is_empty(), "{hidden:?}");
}
