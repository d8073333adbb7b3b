use super::headers;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// What of a CUDA toolkit was found, and where it was looked for.
#[derive(Clone, Debug)]
pub struct Toolkit {
    looked: Vec<PathBuf>,
    nvrtc: Option<PathBuf>,
    cublas_lt: Option<PathBuf>,
    headers: Option<PathBuf>,
    missing_headers: Vec<&'static str>,
}

/// A part of it.
#[derive(Clone, Debug)]
pub struct Part {
    /// What it is called.
    pub name: &'static str,
    /// What it is for.
    pub purpose: &'static str,
    /// Whether nothing can be computed without it.
    pub required: bool,
    /// Where it is.
    pub found: Option<PathBuf>,
    /// What of it was not found.
    pub missing: Vec<&'static str>,
}

const NCCL: [&str; 1] = ["libnccl.so.2"];
const NVRTC: [&str; 2] = ["libnvrtc.so.13", "libnvrtc.so.12"];
const CUBLAS_LT: [&str; 2] = ["libcublasLt.so.13", "libcublasLt.so.12"];

impl Toolkit {
    /// Looks once, for the rest of the process: `CUDA_PATH`, `CUDA_HOME`, the usual folders, the active Python environments'
    /// NVIDIA wheels, and for libraries the system's own path.
    pub fn find() -> &'static Self {
        static FOUND: OnceLock<Toolkit> = OnceLock::new();
        FOUND.get_or_init(|| {
            let roots = roots();
            let includes: Vec<_> = roots.iter().map(|root| root.join("include")).filter(|dir| dir.is_dir()).collect();
            let (headers, missing_headers) = headers::one_folder(&includes);
            Self {
                nvrtc: library(&roots, &NVRTC),
                cublas_lt: library(&roots, &CUBLAS_LT),
                headers,
                missing_headers,
                looked: roots,
            }
        })
    }

    /// Everything that is looked for.
    pub fn parts(&self) -> Vec<Part> {
        let part = |name, purpose, required, found: &Option<PathBuf>, files: &[&'static str]| Part {
            name,
            purpose,
            required,
            found: found.clone(),
            missing: if found.is_none() { files.to_vec() } else { Vec::new() },
        };
        let products = match super::may_use_cublas_lt() {
            true => "matrix products; without it by burn's kernels",
            false => "not used: LLAVA_CUDA_CUBLASLT=0; matrix products by burn's kernels",
        };
        vec![
            part("NVRTC", "compiles the kernels", true, &self.nvrtc, &NVRTC),
            part("CUDA headers", "kernels include them", true, &self.headers, &self.missing_headers),
            part("cuBLASLt", products, false, &self.cublas_lt, &CUBLAS_LT),
        ]
    }

    /// cuBLASLt's library, if it was found: a path, or a name that the system finds.
    pub fn cublas_lt(&self) -> Option<&Path> {
        self.cublas_lt.as_deref()
    }

    /// NCCL's library, which several GPUs need: its path in one of the folders, else its bare name, for the system to find.
    pub fn nccl(&self) -> PathBuf {
        in_roots(&self.looked, &NCCL).unwrap_or_else(|| NCCL[0].into())
    }

    /// Where it was looked for, beside the system's own path for libraries.
    pub fn looked(&self) -> String {
        match self.looked.as_slice() {
            [] => "neither a toolkit nor a Python environment with NVIDIA's wheels".to_owned(),
            places => places.iter().map(|place| place.display().to_string()).collect::<Vec<_>>().join(", "),
        }
    }

    /// The folder whose `include` has all headers, which cubecl takes as `CUDA_PATH`.
    pub fn cuda_path(&self) -> Option<&Path> {
        self.headers.as_deref().and_then(Path::parent)
    }

    /// Opens NVRTC by its path, after the library that it opens by name itself; both stay open.
    pub fn open_nvrtc(&self) {
        let Some(nvrtc) = self.nvrtc.as_deref().filter(|path| path.is_absolute()) else { return };
        let beside = nvrtc.parent().into_iter().flat_map(Path::read_dir).flatten().flatten().map(|entry| entry.path());
        let builtins = beside.filter(|path| has_name(path, "libnvrtc-builtins.so."));
        for path in builtins.chain([nvrtc.to_path_buf()]) {
            #[cfg(unix)]
            {
                use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
                // SAFETY: NVRTC's libraries run no code of their own when loaded. One that cannot be opened is reported by
                // cubecl, which opens it again.
                if let Ok(library) = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) } {
                    std::mem::forget(library);
                }
            }
        }
    }
}

fn has_name(path: &Path, start: &str) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(start))
}

/// Folders that may have `include` and `lib`, the ones that were named first.
fn roots() -> Vec<PathBuf> {
    let named = ["CUDA_PATH", "CUDA_HOME"].iter().filter_map(std::env::var_os).map(PathBuf::from);
    let usual = ["/usr/local/cuda", "/opt/cuda"].map(PathBuf::from);
    let mut roots: Vec<PathBuf> = Vec::new();
    for root in named.chain(usual).chain(wheels()) {
        if root.is_dir() && !roots.contains(&root) {
            roots.push(root);
        }
    }
    roots
}

/// Folders of NVIDIA's wheels: `nvidia/cu13` has everything since CUDA 13, before it each wheel had a folder.
fn wheels() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    for packages in environments().iter().flat_map(|prefix| site_packages(prefix)) {
        let Ok(entries) = packages.join("nvidia").read_dir() else { continue };
        let mut folders: Vec<_> = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
        // The newest CUDA first: "cu13" before "cu12", both before folders of single wheels.
        folders.sort_by_key(|path| (!has_name(path, "cu1"), std::cmp::Reverse(path.clone())));
        found.extend(folders);
    }
    found
}

/// Python environments: the active one, and that of the first `python3` in `PATH`.
fn environments() -> Vec<PathBuf> {
    let active = ["VIRTUAL_ENV", "CONDA_PREFIX"].iter().filter_map(std::env::var_os).map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let first = std::env::split_paths(&path).find(|dir| dir.join("python3").is_file());
    let user = std::env::var_os("HOME").map(|home| Path::new(&home).join(".local"));
    active.chain(first.as_deref().and_then(Path::parent).map(Path::to_path_buf)).chain(user).collect()
}

fn site_packages(prefix: &Path) -> Vec<PathBuf> {
    let versions = prefix.join("lib").read_dir().into_iter().flatten().flatten().map(|entry| entry.path());
    versions
        .filter(|path| has_name(path, "python3"))
        .flat_map(|path| [path.join("site-packages"), path.join("dist-packages")])
        .filter(|path| path.is_dir())
        .collect()
}

/// A library of these names: its path in a root, else its bare name where the system finds it.
fn library(roots: &[PathBuf], names: &[&str]) -> Option<PathBuf> {
    in_roots(roots, names).or_else(|| {
        // SAFETY: as in `open_nvrtc`; cuBLASLt runs no code of its own either.
        names.iter().find(|name| unsafe { libloading::Library::new(**name) }.is_ok()).map(PathBuf::from)
    })
}

fn in_roots(roots: &[PathBuf], names: &[&str]) -> Option<PathBuf> {
    let folders = ["lib64", "lib", "lib/x86_64-linux-gnu", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib"];
    let in_roots = roots.iter().flat_map(|root| folders.map(|folder| root.join(folder)));
    in_roots.flat_map(|folder| names.iter().map(move |name| folder.join(name))).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Toolkit {
        fn of_nothing() -> Self {
            Self { looked: Vec::new(), nvrtc: None, cublas_lt: None, headers: None, missing_headers: Vec::new() }
        }
    }

    fn file(path: PathBuf) {
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a new folder");
        std::fs::write(path, "").expect("a new file");
    }

    /// A toolkit's folders, a wheel's of CUDA 13, and wheels' of CUDA 12.
    #[test]
    fn libraries_are_found_in_toolkits_and_wheels() {
        let dir = tempfile::tempdir().expect("a folder");
        let at = |path: &str| dir.path().join(path);
        file(at("toolkit/lib64/libnvrtc.so.12"));
        file(at("env/lib/python3.11/site-packages/nvidia/cu13/lib/libnvrtc.so.13"));
        file(at("env/lib/python3.11/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12"));
        assert_eq!(library(&[at("toolkit")], &NVRTC), Some(at("toolkit/lib64/libnvrtc.so.12")));
        let packages = site_packages(&at("env"));
        assert_eq!(packages, [at("env/lib/python3.11/site-packages")]);
        let roots = [packages[0].join("nvidia/cu13"), packages[0].join("nvidia/cuda_nvrtc")];
        assert_eq!(library(&roots, &NVRTC), Some(roots[0].join("lib/libnvrtc.so.13")));
        assert_eq!(library(&roots[1..], &NVRTC), Some(roots[1].join("lib/libnvrtc.so.12")));
        file(at("env/lib/python3.11/site-packages/nvidia/nccl/lib/libnccl.so.2"));
        let toolkit = Toolkit { looked: vec![packages[0].join("nvidia/nccl")], ..Toolkit::of_nothing() };
        assert_eq!(toolkit.nccl(), packages[0].join("nvidia/nccl/lib/libnccl.so.2"));
        assert_eq!(Toolkit::of_nothing().nccl(), PathBuf::from("libnccl.so.2"));
        assert_eq!(library(&[at("empty")], &["libno-such-library.so.1"]), None);
    }

    #[test]
    fn what_is_missing_is_named() {
        let toolkit = Toolkit {
            looked: vec!["/opt/one".into(), "/opt/two".into()],
            nvrtc: Some("libnvrtc.so.12".into()),
            cublas_lt: None,
            headers: None,
            missing_headers: vec!["crt/mma.h"],
        };
        let missing: Vec<_> = toolkit.parts().into_iter().map(|part| part.missing).collect();
        assert_eq!(missing, [vec![], vec!["crt/mma.h"], CUBLAS_LT.to_vec()]);
        assert_eq!(toolkit.looked(), "/opt/one, /opt/two");
    }
}
