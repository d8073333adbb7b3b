//! Which image files the rows of a dataset name, so that a run detects that they were replaced.

use base::files;
use crossbeam::channel::{Sender, bounded};
use images::image_files::ImageSources;
use serde::{Deserialize, Serialize};

/// Names handed to a thread at once.
const BATCH: usize = 1024;

/// The files outside images.zip that rows name, each counted as often as it is named.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageFiles {
    /// Files that are there.
    pub found: usize,
    /// Their sizes, bytes.
    pub bytes: u64,
    /// Sum of SHA-256 (its first 128 bits) over name and size: the order does not matter, so threads can share the work.
    pub names_and_sizes: String,
}

#[derive(Default)]
struct Sum {
    found: usize,
    bytes: u64,
    hashes: u128,
}

impl Sum {
    fn add(&mut self, name: &str, bytes: u64) {
        let hash = files::sha256(format!("{name}\0{bytes}").as_bytes());
        self.found += 1;
        self.bytes += bytes;
        self.hashes = self.hashes.wrapping_add(u128::from_le_bytes(std::array::from_fn(|index| hash[index])));
    }

    fn join(self, other: Self) -> Self {
        Self {
            found: self.found + other.found,
            bytes: self.bytes + other.bytes,
            hashes: self.hashes.wrapping_add(other.hashes),
        }
    }
}

/// Takes image names while `names` runs, and looks their files up on `threads` threads: a network file system answers slowly.
///
/// Sizes are compared, not contents: the census takes seconds where reading everything would take as long as the run.
pub fn take<T>(images: &ImageSources, threads: usize, names: impl FnOnce(&mut Census) -> T) -> (ImageFiles, T) {
    let (batches, received) = bounded::<Vec<String>>(threads);
    std::thread::scope(|scope| {
        let lookup = || {
            let mut sum = Sum::default();
            let names = received.clone().into_iter().flatten();
            names.for_each(|name| images.file_size(&name).into_iter().for_each(|bytes| sum.add(&name, bytes)));
            sum
        };
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(lookup)).collect();
        let mut census = Census { batch: Vec::with_capacity(BATCH), batches };
        let result = names(&mut census);
        census.send();
        drop(census);
        let sums = threads.into_iter().filter_map(|thread| thread.join().ok());
        let Sum { found, bytes, hashes } = sums.fold(Sum::default(), Sum::join);
        (ImageFiles { found, bytes, names_and_sizes: format!("{hashes:032x}") }, result)
    })
}

/// Receives the names of [`take`].
pub struct Census {
    batch: Vec<String>,
    batches: Sender<Vec<String>>,
}

impl Census {
    /// One more name.
    pub fn name(&mut self, name: String) {
        self.batch.push(name);
        if self.batch.len() == BATCH {
            self.send();
        }
    }

    fn send(&mut self) {
        // The receivers live as long as the scope.
        let _ = self.batches.send(std::mem::take(&mut self.batch));
    }
}
