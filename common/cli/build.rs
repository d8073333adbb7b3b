//! Writes the macro `commit!`, which gives the commit that a program is built from.
//!
//! In a git checkout the macro reads the log of HEAD where it is used, in a program's `main.rs`: a new commit compiles `main.rs`
//! again and no library. An archive that git made has the commit in `commit.txt`. Without both there is none.

use std::path::{Path, PathBuf};

fn main() {
    let here = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let output = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=commit.txt");
    let from_source = match git_folder(&here.join("../..")) {
        Some(git) if git.join("logs/HEAD").is_file() => {
            // Goes away with the checkout. The log itself would make all libraries again with every commit.
            let mark = ["commondir", "config"].map(|name| git.join(name)).into_iter().find(|file| file.is_file());
            mark.iter().for_each(|mark| println!("cargo::rerun-if-changed={}", mark.display()));
            format!("const {{ $crate::version::last_of_log(include_bytes!({:?})) }}", git.join("logs/HEAD"))
        }
        _ => {
            let text = std::fs::read_to_string(here.join("commit.txt")).unwrap_or_default();
            format!("const {{ $crate::version::hexadecimal({:?}.as_bytes()) }}", text.trim())
        }
    };
    let code = format!(
        "/// The commit that the program is built from: `LLAVA_COMMIT` of the build, or that of the checkout or archive.\n\
         #[macro_export]\nmacro_rules! commit {{ () => {{\n    match option_env!(\"LLAVA_COMMIT\") {{\n        \
         Some(given) => Some(given.to_string()),\n        None => $crate::version::text_of({from_source}),\n    }}\n}} }}\n"
    );
    std::fs::write(output.join("commit.rs"), code).expect("cargo's output folder takes files");
}

/// The folder with a checkout's HEAD: `.git`, or where the file `.git` of a worktree points to.
fn git_folder(root: &Path) -> Option<PathBuf> {
    let git = root.join(".git").canonicalize().ok()?;
    match std::fs::read_to_string(&git) {
        Ok(text) => root.join(text.strip_prefix("gitdir:")?.trim()).canonicalize().ok(),
        Err(_) => Some(git),
    }
}
