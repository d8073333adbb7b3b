//! Short parallel regions for decode steps: threads that stay awake between the hundreds of small products of a step.
//!
//! rayon's threads sleep when there is nothing to do, and waking one takes a system call, longer than many of these products. Here
//! a helper thread polls for the next region for a while before it sleeps, and a region costs about a microsecond. A helper that comes late
//! is not waited for: the caller does the tasks that nobody has begun.
//!
//! Which thread runs a task does not show in results: every task has its own output.

use rayon::prelude::*;
use std::any::Any;
use std::cell::UnsafeCell;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::*};
use std::sync::{Arc, Mutex, TryLockError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long a helper polls before it sleeps: longer than sampling takes between two steps.
const AWAKE: Duration = Duration::from_micros(if cfg!(miri) { 1 } else { 500 });
/// Polls between two looks at the clock.
const POLLS: usize = 32;
/// Polls of the caller, at the end of a region, before it offers its processor to others.
const PATIENCE: usize = 4096;
/// Tasks are taken several at a time where there are many: so many turns for each thread.
const TURNS: usize = 8;

/// Runs `task` with every number below `tasks`, on as many threads as rayon's pool has. One region runs at a time in a process: a second
/// one is divided by rayon.
pub fn for_each(tasks: usize, task: impl Fn(usize) + Sync) {
    static TEAM: Mutex<Team> = Mutex::new(Team::new());
    let threads = if tasks > 1 { rayon::current_num_threads() } else { 1 };
    if threads == 1 {
        return (0..tasks).for_each(task);
    }
    let mut team = match TEAM.try_lock() {
        Ok(team) => team,
        // A task of an earlier region panicked, after which the region was closed as always.
        Err(TryLockError::Poisoned(team)) => team.into_inner(),
        Err(TryLockError::WouldBlock) => return (0..tasks).into_par_iter().for_each(&task),
    };
    team.grow(helpers(threads));
    team.run(tasks, helpers(threads), &task);
}

/// `f` of every item, in order.
pub fn map<T: Send, R: Send>(items: Vec<T>, f: impl Fn(T) -> R + Sync) -> Vec<R> {
    let len = items.len();
    // Every item is moved out by its task.
    let items = Slots(items.into_iter().map(|item| UnsafeCell::new(ManuallyDrop::new(item))).collect());
    let results: Slots<MaybeUninit<R>> = Slots((0..len).map(|_| UnsafeCell::new(MaybeUninit::uninit())).collect());
    for_each(len, |index| {
        // SAFETY: each number is given to one task, once: nobody else touches these two slots.
        let (item, result) = unsafe { (&mut *items.at(index), &mut *results.at(index)) };
        // SAFETY: the item is there, and is not used again.
        result.write(f(unsafe { ManuallyDrop::take(item) }));
    });
    // SAFETY: every task has run to its end, or `for_each` would have panicked.
    results.0.into_iter().map(|slot| unsafe { slot.into_inner().assume_init() }).collect()
}

struct Slots<T>(Vec<UnsafeCell<T>>);

// SAFETY: a slot is used by one thread at a time (`map`); its content may change threads.
unsafe impl<T: Send> Sync for Slots<T> {}

impl<T> Slots<T> {
    fn at(&self, index: usize) -> *mut T {
        self.0[index].get()
    }
}

/// Helpers beside the caller: no more threads than processors, since they poll.
fn helpers(threads: usize) -> usize {
    static PROCESSORS: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    let processors = *PROCESSORS.get_or_init(|| thread::available_parallelism().map_or(1, |count| count.get()));
    // Miri does not let a program end while threads run; its test has a team of its own.
    if cfg!(miri) { 0 } else { threads.min(processors) - 1 }
}

/// The helpers of one caller at a time.
struct Team {
    shared: Option<Arc<Shared>>,
    helpers: Vec<Helper>,
}

struct Helper {
    asleep: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

/// What the caller and the helpers read and write.
struct Shared {
    /// Twice the number of the last region, and one while it is open.
    state: AtomicU64,
    /// Helpers that may be reading `region`.
    present: AtomicUsize,
    /// The next task.
    next: AtomicUsize,
    /// Written by the caller while the region is closed and nobody is present; read by helpers that are present and have then
    /// seen an open region.
    region: UnsafeCell<Region>,
    /// What a helper's task panicked with.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// The team ends.
    done: AtomicBool,
}

/// A region's tasks; the reference is valid while the region is open or a helper is present.
#[derive(Clone, Copy)]
struct Region {
    task: Option<&'static (dyn Fn(usize) + Sync)>,
    tasks: usize,
    /// Tasks taken at a time.
    chunk: usize,
    /// Helpers with a smaller number take part.
    helpers: usize,
}

// SAFETY: all fields but `region` are atomics or locks; `region` is written and read as its comment says.
unsafe impl Sync for Shared {}

impl Team {
    const fn new() -> Self {
        Self { shared: None, helpers: Vec::new() }
    }

    /// Starts helpers until there are `count`.
    fn grow(&mut self, count: usize) {
        let shared = self.shared.get_or_insert_with(|| Arc::new(Shared::new()));
        while self.helpers.len() < count {
            let (shared, asleep, number) = (shared.clone(), Arc::new(AtomicBool::new(false)), self.helpers.len());
            let flag = asleep.clone();
            let thread = thread::Builder::new().name(format!("decode-{number}"));
            match thread.spawn(move || shared.help(number, &flag)) {
                Ok(thread) => self.helpers.push(Helper { asleep, thread }),
                // No more threads are to be had: the caller does without.
                Err(_) => return,
            }
        }
    }

    /// Runs the tasks, on this thread and at most `helpers` others. All tasks have ended when it returns or panics.
    fn run(&mut self, tasks: usize, helpers: usize, task: &(dyn Fn(usize) + Sync)) {
        let Some(shared) = &self.shared else { return (0..tasks).for_each(task) };
        let chunk = (tasks / (TURNS * (helpers + 1))).max(1);
        // SAFETY: only the lifetime changes. The reference is used by helpers that are present, and `Open` waits until nobody is before
        // this function returns or unwinds.
        let task = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(task) };
        let region = Region { task: Some(task), tasks, chunk, helpers };
        // SAFETY: the last region is closed, and was left by all helpers (`Open::drop`); a helper that becomes present now sees a
        // closed region and does not read. `&mut self`: no other caller.
        unsafe { *shared.region.get() = region };
        shared.next.store(0, Relaxed);
        let open = Open::new(shared);
        for helper in self.helpers.iter().take(helpers) {
            if helper.asleep.load(SeqCst) {
                helper.thread.thread().unpark();
            }
        }
        shared.work(&region);
        drop(open);
        if let Some(panic) = shared.panic.lock().unwrap_or_else(|error| error.into_inner()).take() {
            resume_unwind(panic);
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        if let Some(shared) = &self.shared {
            shared.done.store(true, SeqCst);
        }
        for helper in self.helpers.drain(..) {
            helper.thread.thread().unpark();
            // A helper's panics are caught.
            let _ = helper.thread.join();
        }
    }
}

/// A region that is open until this is dropped.
struct Open<'a>(&'a Shared);

impl<'a> Open<'a> {
    fn new(shared: &'a Shared) -> Self {
        shared.state.fetch_add(1, SeqCst);
        Self(shared)
    }
}

impl Drop for Open<'_> {
    /// Closes the region and waits for the helpers in it.
    ///
    /// The caller closes, then looks who is present; a helper becomes present, then looks whether the region is open. In the one order of
    /// these four operations, either the caller sees the helper, or the helper sees a closed region.
    fn drop(&mut self) {
        self.0.state.fetch_add(1, SeqCst);
        // Tasks that nobody has begun, after a panic of the caller's.
        self.0.next.store(usize::MAX / 2, Relaxed);
        let mut polls = 0;
        while self.0.present.load(SeqCst) != 0 {
            polls += 1;
            if polls > PATIENCE {
                thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
    }
}

impl Shared {
    fn new() -> Self {
        Self {
            state: AtomicU64::new(0),
            present: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            region: UnsafeCell::new(Region { task: None, tasks: 0, chunk: 1, helpers: 0 }),
            panic: Mutex::new(None),
            done: AtomicBool::new(false),
        }
    }

    /// Takes tasks until there are no more.
    fn work(&self, region: &Region) {
        let Some(task) = region.task else { return };
        loop {
            let first = self.next.fetch_add(region.chunk, Relaxed);
            if first >= region.tasks {
                return;
            }
            (first..region.tasks.min(first + region.chunk)).for_each(task);
        }
    }

    /// A helper's life.
    fn help(&self, number: usize, asleep: &AtomicBool) {
        let mut last = 0;
        while let Some(seen) = self.wait(last, asleep) {
            last = seen;
            self.present.fetch_add(1, SeqCst);
            let state = self.state.load(SeqCst);
            if is_open(state) {
                last = state;
                // SAFETY: this helper is present and has then seen an open region: it stays as it is until the helper leaves.
                let region = unsafe { *self.region.get() };
                if number < region.helpers
                    && let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.work(&region)))
                {
                    *self.panic.lock().unwrap_or_else(|error| error.into_inner()) = Some(panic);
                }
            }
            self.present.fetch_sub(1, SeqCst);
        }
    }

    /// Waits for a region that is not the `last`; `None` when the team ends.
    fn wait(&self, last: u64, asleep: &AtomicBool) -> Option<u64> {
        let is_new = |state: u64| is_open(state) && state != last;
        loop {
            let begin = Instant::now();
            while begin.elapsed() < AWAKE {
                for _ in 0..POLLS {
                    let state = self.state.load(SeqCst);
                    if is_new(state) {
                        return Some(state);
                    }
                    std::hint::spin_loop();
                }
                if self.done.load(SeqCst) {
                    return None;
                }
            }
            // The caller opens a region, then looks who is asleep; here it is the other way round.
            asleep.store(true, SeqCst);
            while !is_new(self.state.load(SeqCst)) && !self.done.load(SeqCst) {
                thread::park();
            }
            asleep.store(false, SeqCst);
        }
    }
}

fn is_open(state: u64) -> bool {
    state % 2 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn team(helpers: usize) -> Team {
        let mut team = Team::new();
        team.grow(helpers);
        team
    }

    #[test]
    fn every_task_runs_once() {
        let mut team = team(2);
        let regions = if cfg!(miri) { 4 } else { 2000 };
        for region in 0..regions {
            let tasks = if cfg!(miri) { region } else { region % 40 };
            let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
            team.run(tasks, region % 3, &|task| {
                counts[task].fetch_add(1, Relaxed);
            });
            assert!(counts.iter().all(|count| count.load(Relaxed) == 1), "region {region}");
            if !cfg!(miri) && region % 500 == 0 {
                // Helpers fall asleep, and are woken by the next region.
                thread::sleep(2 * AWAKE);
            }
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_team_goes_on() {
        let mut team = team(1);
        for failing in [0, 7, 15] {
            let failed = catch_unwind(AssertUnwindSafe(|| {
                team.run(16, 1, &|task| assert_ne!(task, failing, "this task fails"));
            }));
            assert!(failed.is_err(), "task {failing}");
            let sum = AtomicUsize::new(0);
            team.run(16, 1, &|task| {
                sum.fetch_add(task, Relaxed);
            });
            assert_eq!(sum.into_inner(), 120);
        }
    }

    #[test]
    fn results_are_in_order() {
        let items: Vec<String> = (0..100).map(|item| item.to_string()).collect();
        let found = map(items, |item| item.len() + item.parse::<usize>().unwrap_or_default());
        assert!(found.iter().enumerate().all(|(item, &found)| found == item + item.to_string().len()));
        assert!(map(Vec::<u8>::new(), |item| item).is_empty());
    }

    #[test]
    fn callers_side_by_side_all_get_their_results() {
        thread::scope(|scope| {
            for caller in 0..4 {
                scope.spawn(move || {
                    for _ in 0..if cfg!(miri) { 1 } else { 200 } {
                        let found = map((0..50).collect(), |item: usize| item * caller);
                        assert!(found.iter().enumerate().all(|(item, &found)| found == item * caller));
                    }
                });
            }
        });
    }
}
