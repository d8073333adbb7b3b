//! Ranks as MPI processes: what ranks must agree on, and two hosts.

use std::path::Path;
use std::process::Command;
use tests::training::{
    Split, arguments, compare_log, fail, final_weights, metrics, mpi, mpi_prefix, mpiexec, succeed, threads,
};
use tests::{program, reference};

const TWO: Split = Split { ranks: 2, micro_batch: 2, accumulation: 1 };

#[test]
fn ranks_that_disagree_end_before_any_work() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (output, copy) = (folder.path().join("run"), folder.path().join("shards"));
    tests::training::make_shards(&copy);
    let options = arguments(&output, "none", TWO, &[]);
    let other_data = arguments(&output, "none", TWO, &["--seed", "42"]);
    // The same options, but other rows: another folder would be another setting.
    let index = copy.join("index.json");
    assert!(index.exists());
    for (second, named) in [(arguments(&output, "none", TWO, &["--seed", "7"]), "settings"), (other_data, "data")] {
        let Some(mut command) = mpiexec(1) else { return };
        command.arg(program("train")).args(&options);
        command.args([":", "-n", "1"]);
        if named == "data" {
            // The second host sees other shards under the same name.
            let visible = tests::training::shards();
            let script = format!(
                "mount --bind {} {} && exec {} \"$@\"",
                other_rows(folder.path()).display(),
                visible.display(),
                program("train").display()
            );
            if !may_mount() {
                println!("not run: bind mounts need root");
                continue;
            }
            command.args(["unshare", "-m", "sh", "-c", &script, "sh"]).args(&second);
        } else {
            command.arg(program("train")).args(&second);
        }
        let stderr = fail(&mut command);
        assert!(stderr.contains(&format!("the {named} of ranks [1] differ")), "{named}: {stderr}");
        assert!(!output.exists(), "{named}: work has begun");
        println!("{named}: refused");
    }
}

/// Shards with fewer rows.
fn other_rows(folder: &Path) -> std::path::PathBuf {
    let output = folder.join("other");
    let mut command = Command::new(program("preprocess"));
    command.arg("shards").arg("--model").arg(reference("tiny/llava"));
    command.arg("--data").arg(reference("pictures")).arg("--output").arg(&output).args(["--limit", "16"]);
    succeed(&mut command);
    output
}

fn may_mount() -> bool {
    Command::new("unshare").args(["-m", "true"]).output().is_ok_and(|output| output.status.success())
}

#[test]
fn one_process_writes_and_reports() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let Some(mut command) = mpi(folder.path(), "use_lora", TWO, &["--save_strategy", "steps", "--save_steps", "4"])
    else {
        return;
    };
    let output = succeed(&mut command);
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(stdout.lines().filter(|line| line.starts_with("8 steps")).count(), 1, "{stdout}");
    assert!(stderr.contains("MPI: ") && stderr.contains("2 ranks"), "{stderr}");
    compare_log("use_lora, 2 MPI ranks", folder.path(), "use_lora");
    for file in ["optimizer-00000-of-00002.safetensors", "optimizer-00001-of-00002.safetensors", "manifest.json"] {
        assert!(folder.path().join("checkpoint-8").join(file).exists(), "{file}");
    }
    assert_eq!(metrics(folder.path()).len(), 8);
}

/// Two network namespaces with host names of their own, joined by a cable.
pub fn two_hosts(script: &str) -> Option<Command> {
    let prefix = mpi_prefix()?;
    let ready = may_mount() && Command::new("ip").arg("netns").output().is_ok_and(|output| output.status.success());
    if !ready {
        println!("not run: network namespaces need root and iproute2");
        return None;
    }
    let mut command = Command::new("unshare");
    command.arg("-m").arg(tests::project_file("hosts/two_hosts")).arg(prefix).arg(script);
    Some(command)
}

/// A program that can be passed on by name alone.
pub fn script(path: &Path, text: &str) -> String {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, format!("#!/bin/sh\n{text}\n")).expect("written");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("executable");
    path.display().to_string()
}

#[test]
fn two_hosts_give_the_bits_of_two_threads() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (of_hosts, of_threads) = (folder.path().join("hosts"), folder.path().join("threads"));
    let words = arguments(&of_hosts, "none", TWO, &[]).join(" ");
    let script = script(&folder.path().join("rank"), &format!("exec {} {words}", program("train").display()));
    let Some(mut command) = two_hosts(&script) else { return };
    succeed(&mut command);
    succeed(&mut threads(&of_threads, "none", TWO, &[]));
    compare_log("two hosts", &of_hosts, "none");
    assert!(final_weights(&of_hosts) == final_weights(&of_threads), "weights differ");
}
