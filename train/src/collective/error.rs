//! Why ranks cannot go on together.

use super::Place;
use std::time::Duration;
use thiserror::Error;

/// Result of everything that ranks do together.
pub type Result<T, E = CollectiveError> = std::result::Result<T, E>;

/// What failed, at which exchange, and on which ranks.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CollectiveError {
    /// Another rank has failed by itself.
    #[error("{place}: rank {rank} failed: {cause}")]
    RankFailed {
        /// The exchange in which this rank waited for it.
        place: Place,
        /// The rank that failed.
        rank: usize,
        /// Its error.
        cause: String,
    },
    /// Ranks did not take part in an exchange.
    #[error(
        "{place}: ranks {ranks:?} did not come within {} s ({bytes} bytes; --collective_timeout_seconds sets the limit)",
        timeout.as_secs()
    )]
    Missing {
        /// The exchange.
        place: Place,
        /// The absent ranks.
        ranks: Vec<usize>,
        /// How long they were waited for.
        timeout: Duration,
        /// What each rank was to give.
        bytes: usize,
    },
    /// Ranks take part in different exchanges at the same time.
    #[error("{place}: rank {rank} is at another place: {other}; report this")]
    OutOfStep {
        /// This rank's exchange.
        place: Place,
        /// A rank that is elsewhere.
        rank: usize,
        /// Its exchange.
        other: Place,
    },
    /// Ranks would sum in different orders.
    #[error("--ranks_per_host: that of ranks {ranks:?} differs from that of rank 0; give every rank the same flags")]
    OtherHosts {
        /// Ranks that were given another number.
        ranks: Vec<usize>,
    },
    /// Work that all ranks wait for hangs.
    #[error("{what}: no progress of ranks {ranks:?} within {} s (--collective_timeout_seconds sets the limit)", timeout.as_secs())]
    NoProgress {
        /// The work.
        what: &'static str,
        /// The ranks on which it hangs.
        ranks: Vec<usize>,
        /// Time without a sign of progress.
        timeout: Duration,
    },
    /// This rank panicked in an exchange.
    #[error("panicked while exchanging: {message}")]
    ExchangePanicked {
        /// The panic's message.
        message: String,
    },
    /// This rank panicked in work that all ranks wait for.
    #[error("{what}: panicked: {message}")]
    WorkPanicked {
        /// The work.
        what: &'static str,
        /// The panic's message.
        message: String,
    },
    /// The thread that exchanges has ended.
    #[error("the exchanging thread is gone")]
    ThreadGone,
    /// The operating system gives no thread.
    #[error("no thread for {what}: {cause}")]
    NoThread {
        /// What it was for.
        what: &'static str,
        /// The system's reason.
        cause: String,
    },
    /// There are several processes and no MPI.
    #[error(
        "the launcher started several processes, but no MPI library could be loaded:{}\nset LD_LIBRARY_PATH to the folder of \
         the launcher's MPI, or LLAVA_MPI_LIBRARY to its file",
        tried.iter().map(|(file, reason)| format!("\n  {file}: {reason}")).collect::<String>()
    )]
    NoMpi {
        /// Files, and why each could not be loaded.
        tried: Vec<(String, String)>,
    },
    /// The MPI library is not whole.
    #[error("{file}: MPI has no {symbol}")]
    NoMpiSymbol {
        /// The library.
        file: String,
        /// What is missing in it.
        symbol: &'static str,
    },
    /// The MPI library was built without threads.
    #[error("{file}: thread support {provided}, expected MPI_THREAD_MULTIPLE ({expected})")]
    NoMpiThreads {
        /// The library.
        file: String,
        /// The level that it has.
        provided: i32,
        /// The level that is needed.
        expected: i32,
    },
    /// A function of MPI failed.
    #[error("{function}: MPI error {code}: {text}")]
    Mpi {
        /// The function.
        function: &'static str,
        /// Its error code.
        code: i32,
        /// MPI's text for the code.
        text: String,
    },
    /// NCCL is missing, too old, or not for what it is to be used for.
    #[error("{reason}")]
    NoNccl {
        /// What was found, what is expected and what to do.
        reason: String,
    },
    /// A function of NCCL failed, or an exchange that it had begun.
    #[error("{place}: {function}: NCCL error {code}: {text}")]
    Nccl {
        /// The exchange.
        place: Place,
        /// The function that told it.
        function: &'static str,
        /// Its error code.
        code: i32,
        /// NCCL's text for the code, and for the cause.
        text: String,
    },
    /// All ranks came to an exchange through NCCL, and it does not come to its end.
    #[error(
        "{place}: did not complete within {} s though every rank takes part ({bytes} bytes; --collective_timeout_seconds sets the \
         limit): a GPU or a link between them hangs; NCCL_DEBUG=INFO says more",
        timeout.as_secs()
    )]
    Stuck {
        /// The exchange.
        place: Place,
        /// How long it was waited for.
        timeout: Duration,
        /// What each rank was to give.
        bytes: usize,
    },
    /// The driver of a GPU refuses what an exchange needs.
    #[error("{place}: the GPU's driver: {cause}")]
    Gpu {
        /// The exchange.
        place: Place,
        /// What it says.
        cause: String,
    },
    /// Ranks cannot exchange through NCCL on the GPUs that they were given.
    #[error("{found}; {remedy}")]
    Gpus {
        /// Which ranks, and which GPUs.
        found: String,
        /// What helps.
        remedy: &'static str,
    },
    /// The library is another MPI than the launcher.
    #[error(
        "the launcher started {launched} processes, but MPI sees {found}: the library that was loaded is not the launcher's; \
         set LLAVA_MPI_LIBRARY to the launcher's own libmpi (under Slurm, also choose its interface: srun --mpi=pmix for \
         Open MPI, --mpi=pmi2 for MPICH)"
    )]
    OtherMpi {
        /// Processes of the launcher.
        launched: usize,
        /// Ranks of MPI.
        found: usize,
    },
}

impl CollectiveError {
    pub(super) fn no_thread(what: &'static str, error: &std::io::Error) -> Self {
        Self::NoThread { what, cause: error.to_string() }
    }
}
