//! A rank that has waited for a while tells the others in which exchange it does, by a message that nobody waits for.

use super::super::guard::Note;
use super::super::roll_call::RollCall;
use super::super::{Place, Result};
use super::library::{Handle, Mpi};
use std::ffi::c_int;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Waits that are shorter are told to nobody, unless the deadline is near.
const LONG: Duration = Duration::from_secs(1);
/// How often others are listened to in a longer one.
const LISTEN: Duration = Duration::from_millis(100);
/// How often more when it counts: a library may need several calls until a message that came is seen.
const TRIES: usize = 20;

/// Roll calls of processes under MPI.
pub(super) struct MpiRollCall {
    mpi: &'static Mpi,
    /// Of its messages alone.
    tag: c_int,
    rank: usize,
    world_size: usize,
    note: Arc<Note>,
    /// The first exchange whose arrival was not reported yet.
    told: u64,
    /// Messages under way: MPI reads the numbers until a request is complete.
    sending: Vec<(Handle, Box<[f32; 2]>)>,
    /// Of each rank, the next exchange after the last that it told.
    heard: Vec<u64>,
    listened: Instant,
    /// After which a wait is told.
    long: Duration,
}

impl MpiRollCall {
    pub(super) fn new(
        mpi: &'static Mpi,
        tag: c_int,
        ranks: (usize, usize),
        timeout: Duration,
        note: Arc<Note>,
    ) -> Self {
        let (rank, world_size) = ranks;
        let (sending, heard, listened) = (Vec::new(), vec![0; world_size], Instant::now());
        Self { mpi, tag, rank, world_size, note, told: 0, sending, heard, listened, long: LONG.min(timeout / 4) }
    }

    fn tell(&mut self, next: u64) -> Result<()> {
        let mpi = self.mpi;
        for peer in (0..self.world_size).filter(|&peer| peer != self.rank) {
            // A u64 travels as two f32 bit patterns; nothing computes with them.
            let mut number: Box<[f32; 2]> = Box::new(bytemuck::cast(next));
            let (buffer, mut request) = (number.as_mut_ptr(), 0);
            // SAFETY: the two values stay where they are until the request is complete: for ever, if it never is.
            let code =
                unsafe { (mpi.isend)(buffer.cast(), 2, mpi.float, peer as c_int, self.tag, mpi.world, &mut request) };
            mpi.check(code, "MPI_Isend")?;
            self.sending.push((request, number));
        }
        self.told = next;
        Ok(())
    }

    /// Other ranks that have not told of this exchange.
    fn silent(&self, exchange: u64) -> impl Iterator<Item = usize> {
        (0..self.world_size).filter(move |&rank| rank != self.rank && self.heard[rank] <= exchange)
    }

    fn hear(&mut self) -> Result<()> {
        let mpi = self.mpi;
        for peer in (0..self.world_size).filter(|&peer| peer != self.rank) {
            loop {
                let mut is_there = 0;
                let (source, tag) = (peer as c_int, self.tag);
                // SAFETY: writes one int; the status is ignored.
                let code = unsafe { (mpi.iprobe)(source, tag, mpi.world, &mut is_there, mpi.status_ignore) };
                mpi.check(code, "MPI_Iprobe")?;
                if is_there == 0 {
                    break;
                }
                let mut number = [0f32; 2];
                let buffer = number.as_mut_ptr().cast();
                // SAFETY: a message of two values is there, and the buffer has room for them.
                let code = unsafe { (mpi.recv)(buffer, 2, mpi.float, source, tag, mpi.world, mpi.status_ignore) };
                mpi.check(code, "MPI_Recv")?;
                self.heard[peer] = self.heard[peer].max(bytemuck::cast(number));
            }
        }
        Ok(())
    }
}

impl RollCall for MpiRollCall {
    fn begins(&mut self, place: &Place) {
        let (rank, world_size) = (self.rank, self.world_size);
        self.note.write(format_args!("rank {rank} of {world_size}, whose last exchange was {place}"));
        // A rank that never waits for long would leave all that it is told in MPI's memory. What cannot be heard is missed at a
        // deadline only.
        if self.listened.elapsed() > LONG {
            let _ = self.hear();
            self.listened = Instant::now();
        }
    }

    fn waits(&mut self, _: &Place, exchange: u64, since: Instant) -> Result<()> {
        let mpi = self.mpi;
        let is_long = since.elapsed() > self.long;
        if is_long && self.told <= exchange {
            self.tell(exchange + 1)?;
        }
        if is_long && self.listened.elapsed() > LISTEN {
            self.hear()?;
            self.listened = Instant::now();
        }
        self.sending.retain_mut(|(request, _)| {
            let mut done = 0;
            // SAFETY: the request was started by `tell` and is not complete.
            unsafe { (mpi.test)(request, &mut done, mpi.status_ignore) };
            done == 0
        });
        Ok(())
    }

    fn absent(&mut self, exchange: u64) -> Vec<usize> {
        for _ in 0..TRIES {
            // Where nothing can be heard, nobody is known to be absent.
            if self.hear().is_err() {
                return Vec::new();
            }
            if self.silent(exchange).next().is_none() {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.silent(exchange).collect()
    }
}

impl Drop for MpiRollCall {
    fn drop(&mut self) {
        // MPI may still read what is not complete.
        std::mem::take(&mut self.sending).into_iter().for_each(|(_, number)| std::mem::forget(number));
    }
}
