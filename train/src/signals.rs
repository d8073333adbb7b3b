//! SIGINT and SIGTERM: the first asks the run to stop after its step, the second ends the program at once.

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::iterator::Signals;
use std::ffi::OsString;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Exit code of a run that was asked to stop and has saved a checkpoint to go on from: `EX_TEMPFAIL` of sysexits.h. 0 is kept
/// for runs that came to their end.
pub const STOPPED: u8 = 75;

/// What comes sooner after the first signal is that signal once more: a terminal, a launcher and the rank's guard may each
/// deliver it.
const ECHO: Duration = Duration::from_secs(1);

/// Whether the run has been asked to stop. Clones share the answer: all ranks of a process see the same.
#[derive(Clone, Debug, Default)]
pub struct StopRequest(Arc<AtomicBool>);

impl StopRequest {
    /// Listens to SIGINT and SIGTERM from here on.
    ///
    /// # Errors
    /// The system refuses the handlers.
    pub fn listen() -> std::io::Result<Self> {
        let request = Self::default();
        let second_counts = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&second_counts))?;
            flag::register(signal, Arc::clone(&request.0))?;
        }
        let mut signals = Signals::new([SIGINT, SIGTERM])?;
        std::thread::spawn(move || {
            if signals.forever().next().is_some() {
                std::thread::sleep(ECHO);
                second_counts.store(true, Ordering::SeqCst);
            }
        });
        Ok(request)
    }

    /// Asks for it without a signal.
    pub fn set(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Asked to stop?
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// The command line that resumes a run: the same one, with `--resume_from_checkpoint true`, and nothing is overwritten.
pub fn resume_command(args: impl IntoIterator<Item = OsString>, processes: usize) -> String {
    const RESUME: &str = "--resume_from_checkpoint";
    const BEGINNINGS: [&str; 2] = ["__resume_from_checkpoint", "__overwrite_output_dir"];
    let mut words: Vec<String> = Vec::new();
    if processes > 1 {
        words.extend(["mpirun", "-np"].map(String::from));
        words.push(processes.to_string());
    }
    let mut skip_value = false;
    for arg in args {
        let word = arg.to_string_lossy().into_owned();
        let name = word.split('=').next().unwrap_or_default().replace('-', "_");
        if std::mem::take(&mut skip_value) && !word.starts_with("--") {
            continue;
        }
        if BEGINNINGS.contains(&name.as_str()) {
            skip_value = !word.contains('=');
            continue;
        }
        words.push(word);
    }
    words.extend([RESUME, "true"].map(String::from));
    shell_words::join(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(words: &[&str], processes: usize) -> String {
        resume_command(words.iter().map(OsString::from), processes)
    }

    #[test]
    fn the_same_command_line_resumes() {
        assert_eq!(
            command(&["train", "--output_dir", "my run", "--bf16"], 1),
            "train --output_dir 'my run' --bf16 --resume_from_checkpoint true"
        );
        assert_eq!(command(&["train", "r.toml"], 4), "mpirun -np 4 train r.toml --resume_from_checkpoint true");
    }

    #[test]
    fn an_older_resume_option_is_replaced() {
        for words in [
            &["train", "--resume-from-checkpoint", "runs/x/checkpoint-5", "--seed", "1"][..],
            &["train", "--resume_from_checkpoint=true", "--seed", "1"],
            &["train", "--resume_from_checkpoint", "--seed", "1"],
            &["train", "--overwrite-output-dir", "--seed", "1"],
            &["train", "--seed", "1", "--overwrite_output_dir", "true", "--resume_from_checkpoint", "a"],
        ] {
            assert_eq!(command(words, 1), "train --seed 1 --resume_from_checkpoint true");
        }
    }
}
