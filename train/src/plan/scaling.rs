//! How a run grows: the time of a step on more ranks and hosts, from rates of computing, memory and links.

use super::Plan;
use super::memory::{Memory, Rows, Setting};
use super::operations::BlockWork;
use super::text::{count, duration, size};
use crate::base_format;
use crate::config::Accumulate;
use crate::layout::MAX_BUCKET_VALUES;
use crate::setup;
use anyhow::{Result, ensure};
use clap::ValueEnum;
use std::fmt::Write;

/// Bytes of a value that ranks add up, and of a new one; NCCL gathers new ones as the model holds them.
const F32: f64 = 4.0;
const BF16: f64 = 2.0;
/// Bytes that AdamW reads and writes for a value: gradient, master weight and two moments, of which three are written.
const ADAMW_BYTES: f64 = 28.0;

/// Options of the table of ranks.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ScalingArgs {
    /// Add a table: the time of a step, exposed communication, memory and loader's rate on more ranks.
    #[arg(long)]
    pub scaling: bool,
    /// Numbers of ranks in the table.
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', default_values_t = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512])]
    pub ranks: Vec<usize>,
    /// Rates to compute with; the options below replace single ones [default: h200 with --device cuda, else cpu].
    #[arg(long, value_enum)]
    pub hardware: Option<Hardware>,
    /// How a block's exchange is done: `hierarchy` is what MPI ranks do, `ring` what NCCL does
    /// [default: that of the hardware].
    #[arg(long, value_enum)]
    pub exchange: Option<Exchange>,
    /// Rows a second that one rank by itself was measured to train, in place of FLOP/s.
    #[arg(long, value_name = "ROWS/S")]
    pub rows_per_second: Option<f64>,
    /// Sustained floating-point operations a second of a rank (of a host, for `cpu`).
    #[arg(long, value_name = "FLOP/S")]
    pub flops: Option<f64>,
    /// Bytes a second that AdamW gets from memory, for a rank (for a host, with `cpu`).
    #[arg(long, value_name = "BYTES/S")]
    pub memory_bandwidth: Option<f64>,
    /// Bytes a second that a rank sends to ranks of its host.
    #[arg(long, value_name = "BYTES/S")]
    pub link_bandwidth: Option<f64>,
    /// Bytes a second that a host sends to other hosts.
    #[arg(long, value_name = "BYTES/S")]
    pub network_bandwidth: Option<f64>,
    /// Seconds until a message begins to arrive.
    #[arg(long, value_name = "SECONDS")]
    pub latency: Option<f64>,
    /// Bytes a second that the file system of checkpoints takes from all hosts together.
    #[arg(long, value_name = "BYTES/S")]
    pub disk_bandwidth: Option<f64>,
}

/// Known hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Hardware {
    /// This machine's CPU, whose product is measured; 10 Gbit/s Ethernet between such hosts.
    Cpu,
    /// Hosts of eight H200: 989 TFLOP/s in bf16 at 45 %, 4.8 TB/s, NVLink 450 GB/s, 8 × 400 Gbit/s.
    H200,
    /// Hosts of eight A100 80 GB: 312 TFLOP/s in bf16 at 45 %, 2.0 TB/s, NVLink 300 GB/s, 8 × 200 Gbit/s.
    A100,
}

/// How a block's values get to the ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Exchange {
    /// Every rank sends its part to every other one, as MPI ranks do that are all on one host or one on each.
    Direct,
    /// Around a ring of all ranks, as NCCL does; hosts are neighbours once.
    Ring,
    /// Within the hosts first, then once between each two of them, as MPI ranks do.
    Hierarchy,
}

/// Rates of a rank and its links.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Rates {
    /// FLOP/s of a rank; of a host, where its ranks share it.
    flops: f64,
    /// Bytes/s of memory, likewise.
    memory: f64,
    /// Ranks of a host share its FLOP/s and memory.
    shared: bool,
    /// Bytes/s of a rank to its host's other ranks.
    link: f64,
    /// Bytes/s of a host to the others.
    network: f64,
    /// Seconds a message.
    latency: f64,
    /// Bytes/s of all hosts together.
    disk: f64,
}

impl Hardware {
    fn rates(self, measured_flops: f64) -> Rates {
        match self {
            Self::Cpu => Rates {
                flops: measured_flops,
                memory: 10e9,
                shared: true,
                link: 2e9,
                network: 1.25e9,
                latency: 30e-6,
                disk: 0.5e9,
            },
            Self::H200 => Rates {
                flops: 0.45 * 989e12,
                memory: 0.8 * 4.8e12,
                shared: false,
                link: 450e9,
                network: 400e9,
                latency: 10e-6,
                disk: 5e9,
            },
            Self::A100 => Rates {
                flops: 0.45 * 312e12,
                memory: 0.8 * 2.0e12,
                shared: false,
                link: 300e9,
                network: 200e9,
                latency: 10e-6,
                disk: 5e9,
            },
        }
    }
}

/// Where ranks are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ranks {
    all: usize,
    per_host: usize,
}

impl Ranks {
    fn new(all: usize, per_host: usize) -> Self {
        Self { all, per_host: per_host.min(all) }
    }

    fn hosts(self) -> usize {
        self.all.div_ceil(self.per_host)
    }
}

/// What an exchange of a block moves.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Moved {
    /// Messages of a rank, one after another.
    messages: f64,
    /// Bytes of a rank to its host's other ranks.
    within: f64,
    /// Bytes of a host to the others.
    between: f64,
}

impl Exchange {
    /// A reduce-scatter or an all-gather of `values`, of so many bytes each.
    fn moved(self, values: usize, value_bytes: f64, ranks: Ranks) -> Moved {
        if ranks.all == 1 || values == 0 {
            return Moved::default();
        }
        let bytes = value_bytes * values as f64;
        let (all, here, hosts) = (ranks.all as f64, ranks.per_host as f64, ranks.hosts() as f64);
        // Each bucket is waited for; around a ring the buckets of a block follow each other.
        let buckets = values.div_ceil(MAX_BUCKET_VALUES) as f64;
        match self {
            Self::Direct => Moved {
                messages: buckets * (all - 1.0),
                within: bytes * (here - 1.0) / all,
                between: here * bytes * (all - here) / all,
            },
            Self::Ring => Moved {
                messages: all - 1.0,
                within: bytes * (all - 1.0) / all,
                between: if hosts > 1.0 { bytes * (all - 1.0) / all } else { 0.0 },
            },
            Self::Hierarchy => Moved {
                messages: buckets * (here - 1.0 + hosts - 1.0),
                within: bytes * (here - 1.0) / here,
                between: bytes * (hosts - 1.0) / hosts,
            },
        }
    }

    /// Seconds of it: a hierarchy has its two rounds one after another.
    fn seconds(self, values: usize, value_bytes: f64, ranks: Ranks, rates: &Rates) -> f64 {
        let Moved { messages, within, between } = self.moved(values, value_bytes, ranks);
        let (within, between) = (within / rates.link, between / rates.network);
        let bytes = if self == Self::Hierarchy { within + between } else { within.max(between) };
        bytes + messages * rates.latency
    }
}

/// Seconds of an optimizer step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct StepTime {
    /// Forward and backward passes.
    compute: f64,
    /// Exchanges that no computation hides.
    exposed: f64,
    /// AdamW.
    update: f64,
}

impl StepTime {
    fn total(&self) -> f64 {
        self.compute + self.exposed + self.update
    }
}

/// A step as the trainer runs it.
struct Step<'a> {
    /// Blocks in the order of the forward pass.
    work: &'a [BlockWork],
    micro_batch_size: f64,
    accumulation: usize,
    accumulate: Accumulate,
    /// The model's dtype.
    in_bf16: bool,
}

impl Step<'_> {
    /// Rows of a rank.
    fn rows(&self) -> f64 {
        self.micro_batch_size * self.accumulation as f64
    }

    /// What a step's exchanges of blocks move: a sum for each micro-step or the last, and the new values.
    fn moved(&self, ranks: Ranks, exchange: Exchange) -> Moved {
        let sums = if self.accumulate == Accumulate::Shard { self.accumulation as f64 } else { 1.0 };
        let mut all = Moved::default();
        for block in self.work {
            for (times, value_bytes) in [(sums, F32), (1.0, self.gathered_bytes(exchange))] {
                let Moved { messages, within, between } = exchange.moved(block.trained, value_bytes, ranks);
                all.messages += times * messages;
                all.within += times * within;
                all.between += times * between;
            }
        }
        all
    }

    /// Bytes of a new value.
    fn gathered_bytes(&self, exchange: Exchange) -> f64 {
        if self.in_bf16 && exchange == Exchange::Ring { BF16 } else { F32 }
    }

    /// Walks the blocks: a block's sum begins when its backward pass is done and the exchange before it is, a block's forward pass when
    /// its new values are there.
    fn time(&self, ranks: Ranks, exchange: Exchange, rates: &Rates) -> StepTime {
        let sharing = if rates.shared { ranks.per_host as f64 } else { 1.0 };
        let seconds = |operations: f64| operations * self.micro_batch_size * sharing / rates.flops;
        let of_block = |block: &BlockWork, value_bytes| exchange.seconds(block.trained, value_bytes, ranks, rates);
        let (mut clock, mut line, mut compute) = (0.0_f64, 0.0_f64, 0.0);
        for micro_step in 0..self.accumulation {
            // New values of the update before: their exchange began with the first block.
            let mut gathered = if micro_step == 0 { clock } else { f64::NEG_INFINITY };
            for block in self.work {
                if micro_step == 0 {
                    gathered += of_block(block, self.gathered_bytes(exchange));
                }
                clock = clock.max(gathered) + seconds(block.forward);
                compute += seconds(block.forward);
            }
            let reduces = self.accumulate == Accumulate::Shard || micro_step + 1 == self.accumulation;
            for block in self.work.iter().rev() {
                clock += seconds(block.backward);
                compute += seconds(block.backward);
                if reduces {
                    line = line.max(clock) + of_block(block, F32);
                }
            }
        }
        // The norm of all gradients is known when the last sum is.
        let end = clock.max(line) + if ranks.all > 1 { 2.0 * (ranks.all as f64).log2() * rates.latency } else { 0.0 };
        let trained: usize = self.work.iter().map(|block| block.trained).sum();
        let update = ADAMW_BYTES * trained as f64 / ranks.all as f64 * sharing / rates.memory;
        StepTime { compute, exposed: end - compute, update }
    }
}

impl Plan {
    /// The table of ranks, and what stands above and below it.
    ///
    /// # Errors
    /// Rates and numbers that are not positive; settings that contradict each other.
    pub(super) fn scaling(&self, args: &ScalingArgs, measured_flops: f64) -> Result<String> {
        let work = self.work_of_a_row();
        let rates = self.rates(args, &work, measured_flops)?;
        let all_here = args.ranks.iter().copied().max().unwrap_or(1);
        let per_host = self.config.ranks_per_host.unwrap_or(if rates.shared { all_here } else { 8 });
        let exchange = args.exchange.unwrap_or(if rates.shared { Exchange::Hierarchy } else { Exchange::Ring });
        let step = Step {
            work: &work,
            micro_batch_size: self.batches.micro_batch_size as f64,
            accumulation: self.batches.accumulation,
            accumulate: self.config.accumulate,
            in_bf16: setup::wants_bf16(&self.config)?,
        };
        let mut text = String::new();
        let Rates { flops, memory, link, network, latency, disk, shared } = rates;
        let of = if shared { "a host" } else { "a rank" };
        writeln!(text, "more ranks: {} rows a rank and step; {exchange:?} exchanges", step.rows())?;
        writeln!(
            text,
            "  {:.3e} FLOP/s and {:.3e} B/s of memory {of}, {link:.3e} B/s between ranks of a host,",
            flops, memory
        )?;
        writeln!(text, "  {network:.3e} B/s from a host, {latency:.1e} s a message, {disk:.3e} B/s to disk")?;
        writeln!(
            text,
            "\n{:>6} {:>6} {:>9} {:>9} {:>9} {:>9} {:>9} {:>10} {:>8} {:>10} {:>10}",
            "ranks", "hosts", "rows", "compute", "exposed", "update", "step", "rows/s", "of ideal", "memory", "loader"
        )?;
        let alone = step.time(Ranks::new(1, per_host), exchange, &Rates { shared: false, ..rates }).total();
        let (mut dominated, mut better) = (None, None);
        for &all in &args.ranks {
            let ranks = Ranks::new(all, per_host);
            let time = step.time(ranks, exchange, &rates);
            let rows = step.rows() * all as f64;
            let rate = rows / time.total();
            // Ranks that share a host cannot be faster than it.
            let ideal = step.rows() / alone * if shared { ranks.hosts() as f64 } else { all as f64 };
            if time.exposed > time.compute && dominated.is_none() {
                dominated = Some(all);
            }
            let other = |other: Exchange| step.time(ranks, other, &rates).total() < 0.98 * time.total();
            if exchange == Exchange::Direct && better.is_none() && (other(Exchange::Ring) || other(Exchange::Hierarchy))
            {
                better = Some(all);
            }
            writeln!(
                text,
                "{all:>6} {:>6} {:>9} {:>9} {:>9} {:>9} {:>9} {rate:>10.2} {:>7.0}% {:>10} {:>6.1} /s",
                ranks.hosts(),
                count(rows as usize),
                duration(time.compute),
                duration(time.exposed),
                duration(time.update),
                duration(time.total()),
                100.0 * rate / ideal,
                size(self.memory_at(all)?.total()),
                rate / ranks.hosts() as f64,
            )?;
        }
        writeln!(text, "\n  memory: of a rank; loader: rows a second that a host has to read")?;
        let checkpoint = self.disk.checkpoint() as f64;
        writeln!(text, "  a checkpoint: {} in {}, beside training", size(checkpoint), duration(checkpoint / disk))?;
        match dominated {
            Some(all) => writeln!(text, "  exposed communication is more than computing from {all} ranks on")?,
            None => writeln!(text, "  communication is less than computing on all of these")?,
        }
        if let Some(all) = better {
            writeln!(text, "  a ring or a hierarchy would be faster than direct exchanges from {all} ranks on")?;
        }
        let most = Ranks::new(all_here, per_host);
        if most.hosts() > 1 {
            let describe = |exchange: Exchange| {
                let Moved { messages, between, .. } = step.moved(most, exchange);
                (count(messages.round() as usize), size(between))
            };
            let ((messages, bytes), (of_direct, bytes_of_direct)) = (describe(exchange), describe(Exchange::Direct));
            write!(
                text,
                "  with {all_here} ranks, a rank sends {messages} messages a step and a host {bytes} to others; "
            )?;
            writeln!(text, "directly: {of_direct} and {bytes_of_direct}")?;
        }
        Ok(text.trim_end().to_string())
    }

    fn rates(&self, args: &ScalingArgs, work: &[BlockWork], measured_flops: f64) -> Result<Rates> {
        let operations: f64 = work.iter().map(|block| block.forward + block.backward).sum();
        let of_device = if self.is_on_gpu() { Hardware::H200 } else { Hardware::Cpu };
        let mut rates = args.hardware.unwrap_or(of_device).rates(measured_flops);
        let measured = args.rows_per_second.map(|rows| rows * operations);
        for (rate, given) in [
            (&mut rates.flops, args.flops.or(measured)),
            (&mut rates.memory, args.memory_bandwidth),
            (&mut rates.link, args.link_bandwidth),
            (&mut rates.network, args.network_bandwidth),
            (&mut rates.latency, args.latency),
            (&mut rates.disk, args.disk_bandwidth),
        ] {
            *rate = given.unwrap_or(*rate);
            ensure!(rate.is_finite() && *rate > 0.0, "train plan --scaling: a rate of {rate}; rates are above 0");
        }
        ensure!(
            !args.ranks.is_empty() && !args.ranks.contains(&0),
            "train plan --scaling: 0 ranks; give --ranks from 1 on"
        );
        Ok(rates)
    }

    /// Memory of a rank of `world_size`.
    fn memory_at(&self, world_size: usize) -> Result<Memory> {
        let (config, model, lora) = (&self.config, &self.model, self.lora.as_ref());
        let in_bf16 = setup::wants_bf16(config)?;
        let base = base_format::of_run(config, model, lora)?;
        let setting = Setting { config, model, lora, world_size, in_bf16, base: base.as_ref() };
        Ok(Memory::estimate(setting, Rows { count: self.data.all_rows, mean: self.data.row }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATES: Rates =
        Rates { flops: 1e9, memory: 1e12, shared: false, link: 1e6, network: 1e6, latency: 1e-9, disk: 1e6 };

    fn work(trained: usize) -> Vec<BlockWork> {
        vec![BlockWork { forward: 1e9, backward: 2e9, trained }; 3]
    }

    fn time(work: &[BlockWork], ranks: usize, accumulation: usize, accumulate: Accumulate) -> StepTime {
        let step = Step { work, micro_batch_size: 1.0, accumulation, accumulate, in_bf16: false };
        step.time(Ranks::new(ranks, ranks), Exchange::Direct, &RATES)
    }

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-3 * b.abs().max(1e-3), "{a} instead of {b}");
    }

    #[test]
    fn one_rank_only_computes() {
        let time = time(&work(1_000_000), 1, 2, Accumulate::Shard);
        close(time.compute, 18.0);
        close(time.exposed, 0.0);
    }

    /// A block of 500,000 values takes a second each way between two ranks. Backward: sums are done 2, 4, 6 seconds after its start and
    /// each takes one more: one stands out. Forward: blocks' values come after 1, 2, 3 seconds, the passes of a second each begin there: one
    /// second more.
    #[test]
    fn exchanges_are_hidden_behind_other_blocks() {
        let time = time(&work(500_000), 2, 1, Accumulate::Shard);
        close(time.compute, 9.0);
        close(time.exposed, 2.0);
    }

    /// Blocks that take longer to exchange than to compute: 3 × 4 seconds each way, of which the first block's backward pass (2), and the
    /// last one's forward pass (1) are computed alone.
    #[test]
    fn slow_exchanges_stand_out() {
        let time = time(&work(2_000_000), 2, 1, Accumulate::Shard);
        close(time.compute + time.exposed, 2.0 + 12.0 + 12.0 + 1.0);
    }

    #[test]
    fn sums_of_every_micro_step_or_of_the_last() {
        let shard = time(&work(2_000_000), 2, 4, Accumulate::Shard);
        let local = time(&work(2_000_000), 2, 4, Accumulate::Local);
        assert!(local.total() < shard.total(), "{local:?} {shard:?}");
        close(shard.compute, local.compute);
    }

    /// Bytes that cross a host's border: of a direct exchange, those of each of its ranks; of the others, once.
    #[test]
    fn ring_and_hierarchy_spare_the_network() {
        let rates = Rates { link: 1e12, latency: 1e-12, ..RATES };
        let seconds = |exchange: Exchange| exchange.seconds(1_000_000, F32, Ranks::new(16, 8), &rates);
        close(seconds(Exchange::Direct), 8.0 * 4.0 / 2.0);
        close(seconds(Exchange::Ring), 4.0 * 15.0 / 16.0);
        close(seconds(Exchange::Hierarchy), 4.0 / 2.0);
    }

    /// One host, or one rank on each: a hierarchy is the direct exchange.
    #[test]
    fn a_hierarchy_of_one_level_is_direct() {
        for (all, per_host) in [(8, 8), (8, 1)] {
            let moved = |exchange: Exchange| exchange.moved(8_000_000, F32, Ranks::new(all, per_host));
            assert_eq!(moved(Exchange::Hierarchy), moved(Exchange::Direct), "{all} ranks, {per_host} a host");
        }
        // Two buckets of 8 ranks on 2 hosts.
        let moved = Exchange::Hierarchy.moved(4_000_000, F32, Ranks::new(8, 4));
        assert_eq!(moved, Moved { messages: 8.0, within: 12e6, between: 8e6 });
    }

    #[test]
    fn messages_count() {
        let rates = Rates { latency: 1.0, link: 1e15, network: 1e15, ..RATES };
        let seconds = |exchange: Exchange| exchange.seconds(10, F32, Ranks::new(16, 8), &rates);
        close(seconds(Exchange::Direct), 15.0);
        close(seconds(Exchange::Hierarchy), 8.0);
    }
}
