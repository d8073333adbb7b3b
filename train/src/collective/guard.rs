//! The supervisor process of a rank under MPI: it reports a rank that is killed.
//!
//! A killed rank cannot report itself, and the launcher ends the other ranks before they notice. The launcher reports a process,
//! too, but it may be one that it ended itself (MPICH 5.0.2: 9 of 40 runs). So the process that the launcher started runs the
//! rank as its child, waits for it, and reports how it ended before the launcher detects it.

use super::launch::launched_processes;
use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, getppid, kill_process};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::{emulate_default_handler, signal_name};
use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitCode, ExitStatus};

/// Passes the supervisor's process id and the note's descriptor to the child: `PID:FD`.
const VARIABLE: &str = "LLAVA_RANK_GUARD";

/// Bytes of a note.
const LEN: usize = 256;

/// A rank's number and last exchange, in memory that outlives the rank if it has a supervisor.
pub struct Note(Option<File>);

impl Note {
    /// The note that this rank's guard reads; nobody's, if it has none.
    ///
    /// # Errors
    /// The guard is gone; it ends with the rank otherwise.
    pub fn of_this_rank() -> Result<Self> {
        let Ok(value) = std::env::var(VARIABLE) else { return Ok(Self(None)) };
        guarded(&value).with_context(|| format!("{VARIABLE}={value}, which train sets itself"))
    }

    /// Replaces the text by another one, cut to 256 bytes. One system call, no wait.
    pub fn write(&self, text: fmt::Arguments<'_>) {
        let Some(file) = &self.0 else { return };
        let mut page = [0; LEN];
        // What does not fit is left out; a note that cannot be written must not end a run.
        let _ = (&mut page[..]).write_fmt(text);
        let _ = file.write_all_at(&page, 0);
    }
}

fn read(note: &File) -> String {
    let mut page = [0; LEN];
    let _ = note.read_exact_at(&mut page, 0);
    String::from_utf8_lossy(&page).trim_end_matches('\0').to_string()
}

/// Makes this process the guard of a rank, which starts anew as its child with the same arguments; gives the exit code that it
/// ended with. Nothing, without a launcher of several processes and in that child.
///
/// # Errors
/// The system refuses the child.
pub fn stand_guard(args: &[OsString]) -> Result<Option<ExitCode>> {
    if launched_processes() < 2 || std::env::var_os(VARIABLE).is_some() {
        return Ok(None);
    }
    let status = guard(args).context("starting the rank as a process of its own")?;
    // The launcher is to see the end that the rank had.
    if let Some(signal) = status.signal() {
        let _ = emulate_default_handler(signal);
    }
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(Some(code.map_or(ExitCode::FAILURE, ExitCode::from)))
}

/// The child's side: dies with its guard.
fn guarded(value: &str) -> Result<Note> {
    let (guard, note) = value.split_once(':').context("PID:FD is expected")?;
    system::die_with_parent()?;
    if getppid().map(|pid| pid.as_raw_nonzero().to_string()).as_deref() != Some(guard) {
        bail!("the process that started this rank is gone");
    }
    Ok(Note(Some(File::options().write(true).open(format!("{}/{note}", system::DESCRIPTORS))?)))
}

fn guard(args: &[OsString]) -> Result<ExitStatus> {
    let note = system::note()?;
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let (name, args) = args.split_first().context("a program has a name")?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg0(name).args(args).env(VARIABLE, format!("{}:{}", std::process::id(), note.as_raw_fd()));
    let mut rank = command.spawn()?;
    let process = Pid::from_child(&rank);
    std::thread::spawn(move || {
        for signal in signals.forever() {
            let signal = if signal == SIGINT { Signal::INT } else { Signal::TERM };
            let _ = kill_process(process, signal);
        }
    });
    let status = rank.wait()?;
    // With the other two, a launcher or a user ends a rank on purpose.
    if let Some(signal) = status.signal().filter(|signal| ![SIGINT, SIGTERM].contains(signal)) {
        tracing::error!("{}", obituary(&read(&note), rank.id(), signal));
    }
    Ok(status)
}

fn obituary(note: &str, process: u32, signal: i32) -> String {
    let rank = if note.is_empty() { "a rank, before it knew its number" } else { note };
    let name = signal_name(signal).unwrap_or("unknown");
    let cause = if name == "SIGKILL" { ": by hand, or because the machine ran out of memory" } else { "" };
    let host = host();
    format!("{rank}: process {process} on {host} was ended by signal {signal} ({name}{cause}); the run is ended")
}

/// This machine's name.
pub fn host() -> String {
    let name = if cfg!(target_os = "linux") {
        std::fs::read_to_string("/proc/sys/kernel/hostname")
    } else {
        Command::new("hostname").output().map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    name.unwrap_or_default().trim().to_string()
}

/// What tells this machine from others, also where several have one name, as NCCL does.
pub(super) fn machine() -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    format!("{} {}", host(), boot.trim())
}

#[cfg(target_os = "linux")]
mod system {
    use rustix::fs::{MemfdFlags, memfd_create};
    use rustix::process::{Signal, set_parent_process_death_signal};
    use std::fs::File;

    /// Folder of this process's open files, by number.
    pub const DESCRIPTORS: &str = "/proc/self/fd";

    /// A file without a name that stays open in the child.
    pub fn note() -> std::io::Result<File> {
        Ok(File::from(memfd_create("rank", MemfdFlags::empty())?))
    }

    /// Ends this process when the one that started it ends.
    pub fn die_with_parent() -> std::io::Result<()> {
        Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
    }
}

/// The same on macOS, which has neither files in memory nor a signal at a parent's death. Type-checked, not run.
#[cfg(not(target_os = "linux"))]
mod system {
    use rustix::io::{FdFlags, fcntl_setfd};
    use rustix::process::{Signal, getpid, getppid, kill_process};
    use std::fs::File;
    use std::time::Duration;

    pub const DESCRIPTORS: &str = "/dev/fd";

    pub fn note() -> std::io::Result<File> {
        let path = std::env::temp_dir().join(format!("llava-rank-{}", std::process::id()));
        let file = File::options().read(true).write(true).create_new(true).open(&path)?;
        std::fs::remove_file(&path)?;
        fcntl_setfd(&file, FdFlags::empty())?;
        Ok(file)
    }

    pub fn die_with_parent() -> std::io::Result<()> {
        let parent = getppid();
        std::thread::spawn(move || {
            while getppid() == parent {
                std::thread::sleep(Duration::from_millis(500));
            }
            let _ = kill_process(getpid(), Signal::KILL);
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_note_is_kept_and_cut_to_its_room() {
        let file = system::note().expect("a file without a name");
        let note = Note(Some(file.try_clone().expect("the same file")));
        assert_eq!(read(&file), "");
        note.write(format_args!("rank 1 of 2, {}", "é".repeat(300)));
        assert!(read(&file).starts_with("rank 1 of 2, ééé"));
        note.write(format_args!("rank {} of {}", 1, 2));
        assert_eq!(read(&file), "rank 1 of 2");
        assert!(obituary(&read(&file), 7, 9).starts_with("rank 1 of 2: process 7 on "));
        Note(None).write(format_args!("nobody reads this"));
    }
}
