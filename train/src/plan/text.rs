//! The plan as text.

use super::disk::Disk;
use super::{Misfit, Plan};
use crate::config::TrainType;
use crate::learning_rates::LearningRates;
use crate::order::SourceRows;
use crate::setup;
use base::counted;
use clap::ValueEnum;
use std::fmt;

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.parameters(f)?;
        self.steps(f)?;
        self.memory_of_a_rank(f)?;
        self.disk(f)?;
        self.verdict(f)
    }
}

impl Plan {
    fn parameters(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { config, model_source, .. } = self;
        writeln!(f, "model: {model_source}")?;
        writeln!(f, "device: {}", self.device())?;
        writeln!(f, "train_type {}", train_type(config.train_type))?;
        if let Some(base) = &self.base {
            writeln!(f, "base in {base}: the matrices of the language model's layers")?;
        }
        writeln!(f, "\n{:<28}{:>15}{:>15}", "parameters", "all", "trained")?;
        for part in &self.parts {
            writeln!(f, "  {:<26}{:>15}{:>15}", part.part.title(), count(part.values), count(part.trained))?;
        }
        let lora: usize = self.parts.iter().filter(|part| part.is_lora()).map(|part| part.values).sum();
        writeln!(
            f,
            "  {:<26}{:>15}{:>15}",
            "together",
            count(self.model_values() + lora),
            count(self.trained_values())
        )?;
        if lora > 0 {
            writeln!(f, "  the model without LoRA has {}", count(self.model_values()))?;
        }
        let unreachable: usize = self.parts.iter().map(|part| part.unreachable).sum();
        if unreachable > 0 {
            let of = self.model.computed_vision_layers();
            writeln!(
                f,
                "  {} values cannot receive gradients and are not trained: the projector's features come from vision layer {of}",
                count(unreachable)
            )?;
        }
        Ok(())
    }

    fn steps(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { config, data, batches, max_steps, .. } = self;
        let (global, per_epoch) = (batches.global_batch_size(), batches.steps_per_epoch());
        writeln!(f, "\nsteps")?;
        writeln!(f, "  rows                {} ({})", count(data.rows), data.source)?;
        for (folder, SourceRows { rows, per_epoch }) in &data.sources {
            let (rows, per_epoch) = (count(*rows), count(*per_epoch));
            writeln!(f, "    {per_epoch} an epoch from {}: {rows} × {}", folder.dir.display(), folder.weight)?;
        }
        writeln!(
            f,
            "  a step              {global} rows = {} × {} × {}",
            counted(batches.world_size, "rank"),
            counted(batches.micro_batch_size, "row"),
            counted(batches.accumulation, "micro-step")
        )?;
        write!(f, "  an epoch            {} steps", count(per_epoch as usize))?;
        match data.rows % global {
            0 => writeln!(f, ", all of them full")?,
            rest => writeln!(
                f,
                ": {} full ones and one of the remaining {rest} rows, because every row is trained on once an epoch (rounding \
                 down to {}, as transformers did before 4.46, leaves them out)",
                count(data.rows / global),
                count(data.rows / global)
            )?,
        }
        let epochs = *max_steps as f64 / per_epoch as f64;
        writeln!(f, "  the run             {} steps, {epochs:.2} epochs", count(*max_steps as usize))?;
        writeln!(f, "  learning rate       {}", LearningRates::of(config))?;
        writeln!(f, "  warm-up             {} steps", count(config.resolved_warmup_steps(*max_steps) as usize))?;
        writeln!(
            f,
            "  tokens              {:.0} a row, {:.1} of them supervised; {} a micro-step and rank",
            data.row.tokens,
            data.row.supervised,
            count((data.row.tokens * batches.micro_batch_size.min(data.rows) as f64) as usize)
        )
    }

    fn memory_of_a_rank(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let memory = &self.memory;
        let ranks = self.batches.world_size;
        match ranks {
            _ if self.is_on_gpu() => writeln!(f, "\nmemory of each GPU")?,
            1 => writeln!(f, "\nmemory")?,
            _ => writeln!(f, "\nmemory of each of {ranks} ranks")?,
        }
        for (what, bytes) in memory.parts().into_iter().filter(|(_, bytes)| *bytes > 0.0) {
            writeln!(f, "  {what:<28}{:>12}", size(bytes))?;
        }
        writeln!(f, "  {:<28}{:>12}", "peak", size(memory.total()))
    }

    fn disk(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let disk @ Disk { weights, optimizer, checkpoints, shards, vision_features } = &self.disk;
        let what = if self.config.train_type.uses_lora() { "adapter" } else { "model" };
        let there = if self.data.is_there { "there" } else { "expected" };
        writeln!(f, "\ndisk")?;
        writeln!(
            f,
            "  a checkpoint        {} ({what} {}, optimizer state of all ranks {})",
            size(disk.checkpoint() as f64),
            size(*weights as f64),
            size(*optimizer as f64)
        )?;
        writeln!(
            f,
            "  the run's folder    {} with {} at the same time{}",
            size(disk.run() as f64),
            counted(*checkpoints as usize, "checkpoint"),
            if *checkpoints > 3 { " (--save_total_limit keeps fewer)" } else { "" }
        )?;
        writeln!(f, "  shards              {} as {} pixels, {there}", size(*shards as f64), self.data.pixels.name())?;
        if *vision_features > 0 {
            let features = size(*vision_features as f64);
            writeln!(
                f,
                "  vision features     {features} beside the shards, when all are there (cache_vision_features)"
            )?;
        }
        Ok(())
    }

    /// Where it computes, and in what.
    fn device(&self) -> String {
        let Self { config, .. } = self;
        let in_bf16 = setup::wants_bf16(config).unwrap_or(false);
        let dtype = if in_bf16 { "bf16" } else { "f32" };
        let note = match (config.bf16 && !in_bf16, self.is_on_gpu()) {
            (true, _) => " (bf16 has no effect there: the CPU is no faster at it)",
            (_, true) => ", rank r on GPU r",
            _ => "",
        };
        let device = config.device_kind().map_or_else(|_| config.device.clone(), |kind| kind.to_string());
        format!("{device}, computes in {dtype}{note}")
    }

    fn verdict(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (needed, ranks) = (size(self.memory_here()), self.ranks_here);
        writeln!(f, "\nthis machine ({} cores)", self.machine.cores)?;
        let misfits = self.misfits();
        let about = |what: &str| misfits.iter().find(|misfit| misfit.what == what);
        let fits = |what: &str| if about(what).is_some() { "DOES NOT FIT" } else { "fits" };
        let who = if ranks == 1 { "the run needs".to_string() } else { format!("all {ranks} ranks need") };
        match self.machine.available_memory {
            _ if self.is_on_gpu() => {
                let needed = size(self.memory.total());
                match self.gpu_memory {
                    Some(there) => {
                        let (fits, there) = (fits("memory"), size(there as f64));
                        writeln!(f, "  memory              {fits}: a rank needs {needed}, its GPU has {there}")?;
                    }
                    None => writeln!(
                        f,
                        "  memory              NOT CHECKED: a rank needs {needed}, and no GPU is here whose memory it could be \
                         compared with; --gpu-memory GB gives it"
                    )?,
                }
            }
            None => writeln!(f, "  memory              not known here; {who} {needed}")?,
            Some(available) => {
                let fits = fits("memory");
                writeln!(f, "  memory              {fits}: {who} {needed}, {} are available", size(available as f64))?;
            }
        }
        helps(f, about("memory"))?;
        let shards = if self.data.is_there { 0 } else { self.disk.shards };
        let features = self.disk.vision_features;
        let disk = size(self.disk_here() as f64);
        match self.machine.free_disk {
            None => writeln!(f, "  disk                not known here; {disk} are needed")?,
            Some(free) => {
                let what = match (shards, features) {
                    (0, 0) => "the run needs",
                    (0, _) => "the run and the vision features need",
                    (_, 0) => "the run and the shards need",
                    _ => "the run, the shards and the vision features need",
                };
                let (fits, free, place) = (fits("disk"), size(free as f64), self.machine.disk_of.display());
                writeln!(f, "  disk                {fits}: {what} {disk}, {free} are free at {place}")?;
            }
        }
        helps(f, about("disk"))?;
        if let Some(misfit) = about("validation rows") {
            writeln!(f, "  validation rows     NONE: {}", misfit.found)?;
            helps(f, Some(misfit))?;
        }
        match self.seconds() {
            None => write!(f, "  time                not known here"),
            Some((step, epoch)) => write!(
                f,
                "  time                about {} a step, {} an epoch (products at the {:.0} GFLOP/s measured here; reading, saving \
                 and exchange come on top)",
                duration(step),
                duration(epoch),
                self.speed.unwrap_or_default() / 1e9
            ),
        }
    }
}

/// What would fit, a line each.
fn helps(f: &mut fmt::Formatter<'_>, misfit: Option<&Misfit>) -> fmt::Result {
    let remedies = misfit.into_iter().flat_map(|misfit| &misfit.remedies);
    remedies.into_iter().try_for_each(|remedy| writeln!(f, "                      helps: {remedy}"))
}

/// Seconds for people: `3.2 h`.
pub(super) fn duration(seconds: f64) -> String {
    match seconds {
        _ if seconds < 1.0 => format!("{:.0} ms", seconds * 1e3),
        _ if seconds < 120.0 => format!("{seconds:.1} s"),
        _ if seconds < 7200.0 => format!("{:.1} min", seconds / 60.0),
        _ if seconds < 172_800.0 => format!("{:.1} h", seconds / 3600.0),
        _ => format!("{:.1} days", seconds / 86_400.0),
    }
}

/// `none (Everything)`
fn train_type(train_type: TrainType) -> String {
    let value = train_type.to_possible_value();
    let name = value.as_ref().map_or("", |value| value.get_name());
    let help = value.as_ref().and_then(|value| value.get_help());
    help.map_or_else(|| name.to_string(), |help| format!("{name} ({help})"))
}

/// `595,375`
pub fn count(value: usize) -> String {
    let digits = value.to_string();
    let groups = digits.as_bytes().rchunks(3).rev();
    groups.map(|group| String::from_utf8_lossy(group)).collect::<Vec<_>>().join(",")
}

/// Bytes for people: `68.2 GB`.
pub fn size(bytes: f64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB", "PB"];
    let (mut value, mut unit) = (bytes, 0);
    while value >= 1000.0 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{value:.0} B") } else { format!("{value:.1} {}", units[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_for_people() {
        assert_eq!((count(0), count(999), count(4_263_056_896)), ("0".into(), "999".into(), "4,263,056,896".into()));
        assert_eq!((size(999.0), size(68_200_000_000.0)), ("999 B".into(), "68.2 GB".into()));
        let durations = [0.25, 3.0, 300.0, 9000.0, 259_200.0].map(duration);
        assert_eq!(durations, ["250 ms", "3.0 s", "5.0 min", "2.5 h", "3.0 days"]);
    }
}
