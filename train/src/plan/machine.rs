//! Memory and disk of this machine.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Memory and disk, as the system tells them; `None` where it does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Memory that programs can have now, bytes.
    pub available_memory: Option<u64>,
    /// All memory, bytes.
    pub total_memory: Option<u64>,
    /// Memory of the smallest GPU, bytes.
    pub gpu_memory: Option<u64>,
    /// Free space where the run will be, bytes.
    pub free_disk: Option<u64>,
    /// The folder that was asked about: the run's, or the nearest one above it that exists.
    pub disk_of: PathBuf,
    /// Cores.
    pub cores: usize,
}

impl Machine {
    /// Looks at the machine; `dir` need not exist.
    pub fn look(dir: &Path) -> Self {
        let absolute = std::path::absolute(dir).unwrap_or_else(|_| PathBuf::from("."));
        let disk_of = absolute.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new(".")).to_path_buf();
        let (available_memory, total_memory) = if cfg!(target_os = "macos") { of_mac() } else { of_linux() };
        let limit = cgroup_limit();
        let within = |bytes: u64| limit.map_or(bytes, |limit| bytes.min(limit));
        Self {
            available_memory: available_memory.map(within),
            total_memory: total_memory.map(within),
            gpu_memory: kernels::cuda::driver().ok().and_then(|driver| driver.gpus.iter().map(|gpu| gpu.memory).min()),
            free_disk: rustix::fs::statvfs(&disk_of).ok().map(|stat| stat.f_bavail * stat.f_frsize),
            disk_of,
            cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        }
    }
}

/// Sizes of all files of a folder, bytes.
pub(super) fn bytes_of(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(about) if about.is_dir() => bytes_of(&entry.path()),
        Ok(about) => about.len(),
        Err(_) => 0,
    });
    sizes.sum()
}

/// Available and all memory, bytes.
fn of_linux() -> (Option<u64>, Option<u64>) {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    (meminfo(&info, "MemAvailable:"), meminfo(&info, "MemTotal:"))
}

/// The same on macOS. The commands' output is read as their manuals describe it; not run.
fn of_mac() -> (Option<u64>, Option<u64>) {
    let output = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).output().ok()?;
        Some(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let available = output("vm_stat", &[]).and_then(|text| vm_stat(&text));
    (available, output("sysctl", &["-n", "hw.memsize"]).and_then(|text| text.trim().parse().ok()))
}

/// Memory that programs can have without swapping: pages that are free, read ahead or not used of late.
fn vm_stat(text: &str) -> Option<u64> {
    let (_, size) = text.lines().next()?.split_once("page size of ")?;
    let size: u64 = size.split_whitespace().next()?.parse().ok()?;
    let pages = |key: &str| {
        let rest = text.lines().find_map(|line| line.strip_prefix(key))?;
        rest.trim().trim_end_matches('.').parse::<u64>().ok()
    };
    Some(size * (pages("Pages free:")? + pages("Pages speculative:")? + pages("Pages inactive:")?))
}

fn meminfo(text: &str, key: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(key))?;
    Some(rest.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// A container's limit.
fn cgroup_limit() -> Option<u64> {
    let files = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    files.iter().find_map(|file| std::fs::read_to_string(file).ok()?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_does_not_exist_yet_has_the_disk_above_it() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let machine = Machine::look(&folder.path().join("runs/new"));
        assert_eq!(machine.disk_of, folder.path());
        assert!(machine.free_disk.is_some() && machine.cores > 0);
    }

    #[test]
    fn vm_stat_counts_pages() {
        let text = "Mach Virtual Memory Statistics: (page size of 16384 bytes)\n\
                    Pages free:                               10.\nPages active:                           1000.\n\
                    Pages inactive:                           20.\nPages speculative:                         3.\n";
        assert_eq!(vm_stat(text), Some(33 * 16384));
        assert_eq!(vm_stat(""), None);
    }

    #[test]
    fn meminfo_is_in_kilobytes() {
        assert_eq!(meminfo("MemTotal:  2 kB\nMemAvailable:   1 kB\n", "MemAvailable:"), Some(1024));
    }
}
