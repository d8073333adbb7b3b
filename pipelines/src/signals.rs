//! SIGINT, SIGTERM and SIGHUP are passed to the program that a stage runs, and the runner waits for it: a program that goes on by
//! itself would be in the way of the one that the next run starts.

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process_group};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::low_level::emulate_default_handler;
use std::fmt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Exit code of `train` when it was stopped by a signal and has saved, and of this program then: `EX_TEMPFAIL` of sysexits.h.
pub const STOPPED: u8 = 75;

/// The run was asked to stop and has stopped. Run again, it goes on.
#[derive(Debug)]
pub struct Stopped {
    /// What stopped, and how it goes on.
    pub message: String,
    /// Exit code for this program.
    pub code: u8,
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Stopped {}

/// What signals do. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Signals(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// The program that runs: a process group of its own.
    running: Option<Pid>,
    /// The first signal.
    received: Option<i32>,
}

impl Signals {
    /// Listens from here on. While no program runs, a signal has its default effect.
    ///
    /// # Errors
    /// The system refuses the handlers.
    pub fn listen() -> Result<Self> {
        let signals = Self::default();
        let mut listened = vec![SIGINT, SIGTERM];
        // Under nohup it stays ignored.
        if !is_ignored(SIGHUP) {
            listened.push(SIGHUP);
        }
        let mut received = signal_hook::iterator::Signals::new(listened).context("listening to signals")?;
        let shared = signals.clone();
        std::thread::spawn(move || received.forever().for_each(|signal| shared.receive(signal)));
        Ok(signals)
    }

    /// The signal that has arrived first, if any has.
    pub fn received(&self) -> Option<i32> {
        self.lock().received
    }

    /// Starts a program unless a signal has arrived. It has a process group of its own, so that a signal of the terminal comes
    /// to it once: from here.
    ///
    /// # Errors
    /// The system does not start it.
    pub fn start(&self, command: &mut Command) -> std::io::Result<Option<Child>> {
        let mut state = self.lock();
        if state.received.is_some() {
            return Ok(None);
        }
        let child = command.process_group(0).spawn()?;
        state.running = Some(Pid::from_child(&child));
        Ok(Some(child))
    }

    /// The program that was started is at its end.
    pub fn ended(&self) {
        self.lock().running = None;
    }

    fn receive(&self, signal: i32) {
        let mut state = self.lock();
        state.received.get_or_insert(signal);
        match state.running {
            Some(group) => {
                // A terminal that is closed is a reason to save and stop.
                let signal = if signal == SIGINT { Signal::INT } else { Signal::TERM };
                let _ = kill_process_group(group, signal);
            }
            None => drop(emulate_default_handler(signal)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}
