//! The prefix command of tarball and wheel, with scripts in place of the programs. packaging/build makes both.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tests::project_file;

/// A program that prints how it was called.
fn write_program(folder: &Path, name: &str) {
    std::fs::create_dir_all(folder).expect("created");
    let path = folder.join(name);
    std::fs::write(&path, format!("#!/bin/sh\necho {name} \"$@\"\nexit 75\n")).expect("written");
    std::fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("permitted");
}

fn packaging(path: &str) -> PathBuf {
    project_file("../packaging").join(path)
}

/// The program's own output and exit code come through; another name is wrong usage.
fn check(start: impl Fn() -> Command) {
    let said =
        |output: Output| (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned(), output.stderr);
    let (code, stdout, stderr) = said(start().args(["train", "plan", "--x", "a b"]).output().expect("it starts"));
    assert_eq!((code, stdout.as_str()), (Some(75), "train plan --x a b\n"), "{}", String::from_utf8_lossy(&stderr));
    let (code, _, stderr) = said(start().arg("serve").output().expect("it starts"));
    let told = String::from_utf8_lossy(&stderr);
    assert!(code == Some(2) && told.contains("serve: no such program") && told.contains("infer"), "{told}");
    let (code, stdout, _) = said(start().arg("--help").output().expect("it starts"));
    assert!(code == Some(0) && stdout.contains("preprocess"), "{stdout}");
}

#[test]
fn the_prefix_command_of_the_tarball_starts_the_programs_beside_it() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (real, linked) = (folder.path().join("real"), folder.path().join("linked"));
    write_program(&real, "train");
    std::fs::copy(packaging("llava-rs"), real.join("llava-rs")).expect("copied");
    std::fs::create_dir(&linked).expect("created");
    std::os::unix::fs::symlink(real.join("llava-rs"), linked.join("llava-rs")).expect("linked");
    for place in [&real, &linked] {
        check(|| Command::new(place.join("llava-rs")));
    }
}

#[test]
fn the_prefix_command_of_the_wheel_starts_its_own_programs() {
    if Command::new("python3").arg("-V").output().is_err() {
        println!("not run: there is no python3");
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let package = folder.path().join("llava_rs");
    write_program(&package.join("bin"), "train");
    for file in ["__init__.py", "__main__.py"] {
        std::fs::copy(packaging("wheel/src/llava_rs").join(file), package.join(file)).expect("copied");
    }
    check(|| {
        let mut python = Command::new("python3");
        python.args(["-B", "-m", "llava_rs"]).env("PYTHONPATH", folder.path());
        python
    });
}
