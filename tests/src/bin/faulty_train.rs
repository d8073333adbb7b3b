//! `train` with a fault at a chosen place: `FAULT=<kind>:<rank>:<exchange>` makes a rank panic, be killed or hang when
//! it comes to that exchange. Takes the options of `train`.

use anyhow::{Context, Result, bail};
use clap::{Args, Command, FromArgMatches};
use std::process::ExitCode;
use std::time::Duration;
use train::buffers::HostBuffer;
use train::collective::launch::run_ranks;
use train::collective::roll_call::RollCall;
use train::collective::{self, Collective, Place, guard};
use train::config::Config;
use train::signals::StopRequest;
use train::{recipe, trainer};

/// What happens to a rank.
#[derive(Clone, Copy)]
enum Kind {
    Panic,
    Kill,
    StandStill,
}

/// Exchanges as usual, until it comes to the place of the fault.
struct Faulty {
    inner: Box<dyn Collective>,
    kind: Kind,
    rank: usize,
    exchanges_left: usize,
}

impl Faulty {
    fn count(&mut self, place: &Place) {
        if self.inner.rank() != self.rank {
            return;
        }
        if self.exchanges_left > 0 {
            self.exchanges_left -= 1;
            return;
        }
        match self.kind {
            Kind::Panic => panic!("on purpose, before {place}"),
            Kind::Kill => {
                let killed = std::process::Command::new("kill").args(["-9", &std::process::id().to_string()]).status();
                eprintln!("kill: {killed:?}");
            }
            Kind::StandStill => std::thread::sleep(Duration::from_secs(3600)),
        }
    }
}

impl Collective for Faulty {
    fn rank(&self) -> usize {
        self.inner.rank()
    }

    fn world_size(&self) -> usize {
        self.inner.world_size()
    }

    fn reduce_scatter(
        &mut self,
        place: &Place,
        parts: &[usize],
        flat: HostBuffer,
        own: &mut HostBuffer,
    ) -> collective::Result<HostBuffer> {
        self.count(place);
        self.inner.reduce_scatter(place, parts, flat, own)
    }

    fn all_gather(
        &mut self,
        place: &Place,
        parts: &[usize],
        own: HostBuffer,
        full: &mut HostBuffer,
    ) -> collective::Result<HostBuffer> {
        self.count(place);
        self.inner.all_gather(place, parts, own, full)
    }

    fn host(&mut self) -> &mut dyn Collective {
        self
    }

    fn bytes_sent(&self) -> u64 {
        self.inner.bytes_sent()
    }

    fn timeout(&self) -> Duration {
        self.inner.timeout()
    }

    fn roll_call(&self) -> Box<dyn RollCall> {
        self.inner.roll_call()
    }
}

fn fault() -> Result<(Kind, usize, usize)> {
    let text = std::env::var("FAULT").context("FAULT=<panic|kill|stand_still>:<rank>:<exchange>")?;
    let parts: Vec<&str> = text.split(':').collect();
    let [kind, rank, exchange] = parts[..] else { bail!("FAULT={text}: three parts are expected") };
    let kind = match kind {
        "panic" => Kind::Panic,
        "kill" => Kind::Kill,
        "stand_still" => Kind::StandStill,
        other => bail!("FAULT: {other} is no kind of fault"),
    };
    Ok((kind, rank.parse()?, exchange.parse()?))
}

fn main() -> Result<ExitCode> {
    cli::log::start();
    let words = cli::args::with_dashes(std::env::args_os());
    if let Some(code) = guard::stand_guard(&words)? {
        return Ok(code);
    }
    let matches = Config::augment_args(Command::new("faulty_train")).get_matches_from(words);
    let config = recipe::resolve(Config::from_arg_matches(&matches)?, &matches, None)?;
    let (kind, rank, exchange) = fault()?;
    let timeout = Duration::from_secs(config.collective_timeout_seconds);
    let device = kernels::device::cpu_autodiff();
    run_ranks(config.nproc, config.ranks_per_host, timeout, |inner| {
        let faulty = Faulty { inner, kind, rank, exchanges_left: exchange };
        trainer::run(&config, Box::new(faulty), &device, &StopRequest::default())
    })?;
    Ok(ExitCode::SUCCESS)
}
