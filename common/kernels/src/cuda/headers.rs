use base::{Error, Result, files};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};

/// Headers that kernels include, each with the wheel that has it: nvidia-cuda-runtime, -crt and -cccl.
const NEEDED: [&str; 5] = ["cuda_fp16.h", "cuda_bf16.h", "crt/mma.h", "cooperative_groups.h", "cuda/barrier"];

fn has(include: &Path, header: &str) -> bool {
    include.join(header).is_file() || include.join("cccl").join(header).is_file()
}

/// The first of these folders that has all headers. Where none has, but all together have: a folder of links to them, beside the
/// user's other caches. Else none, with the headers that no folder has.
pub(super) fn one_folder(includes: &[PathBuf]) -> (Option<PathBuf>, Vec<&'static str>) {
    if let Some(complete) = includes.iter().find(|dir| NEEDED.iter().all(|header| has(dir, header))) {
        return (Some(complete.clone()), Vec::new());
    }
    let missing: Vec<_> = NEEDED.into_iter().filter(|header| !includes.iter().any(|dir| has(dir, header))).collect();
    if !missing.is_empty() {
        return (None, missing);
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")));
    let joined = cache.and_then(|cache| join(includes, &cache.join("llava-cuda-headers")).ok());
    (joined, Vec::new())
}

/// Links to the files of all folders in one, named after their paths; made once.
fn join(includes: &[PathBuf], cache: &Path) -> Result<PathBuf> {
    let mut hash = DefaultHasher::new();
    includes.hash(&mut hash);
    let made = cache.join(format!("{:016x}", hash.finish()));
    let (joined, complete) = (made.join("include"), made.join("complete"));
    if !complete.is_file() {
        for include in includes {
            link_all(include, &joined).map_err(Error::io(&joined))?;
        }
        files::write_atomically(&complete, b"")?;
    }
    Ok(joined)
}

/// Links that are there already stay: another process may be at it too.
fn link_all(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in from.read_dir()? {
        let path = entry?.path();
        let Some(target) = path.file_name().map(|name| to.join(name)) else { continue };
        if path.is_dir() {
            link_all(&path, &target)?;
            continue;
        }
        #[cfg(unix)]
        let linked = std::os::unix::fs::symlink(&path, &target);
        #[cfg(windows)]
        let linked = std::os::windows::fs::symlink_file(&path, &target);
        match linked {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_several_wheels_become_one_folder() {
        let dir = tempfile::tempdir().expect("a folder");
        let put = |path: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("a new folder");
            std::fs::write(path, "").expect("a new file");
        };
        put("runtime/include/cuda_fp16.h");
        put("runtime/include/cuda_bf16.h");
        put("runtime/include/crt/host.h");
        put("crt/include/crt/mma.h");
        let includes =
            |names: &[&str]| -> Vec<_> { names.iter().map(|name| dir.path().join(name).join("include")).collect() };
        let (found, missing) = one_folder(&includes(&["runtime", "crt"]));
        assert_eq!((found, missing), (None, vec!["cooperative_groups.h", "cuda/barrier"]));
        put("cccl/include/cooperative_groups.h");
        put("cccl/include/cccl/cuda/barrier");
        let all = includes(&["runtime", "crt", "cccl"]);
        let joined = join(&all, &dir.path().join("cache")).expect("links");
        assert_eq!(one_folder(std::slice::from_ref(&joined)), (Some(joined.clone()), vec![]));
        assert!(joined.join("crt/host.h").is_file());
        assert_eq!(join(&all, &dir.path().join("cache")).expect("the same"), joined);
    }
}
