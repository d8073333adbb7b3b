//! The plan as text.

use super::Plan;
use super::disk::Disk;
use crate::config::TrainType;
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
        writeln!(f, "train_type {}", train_type(config.train_type))?;
        if let Some(base) = self.base {
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
        writeln!(
            f,
            "  a step              {global} rows = {} ranks × {} rows × {} micro-steps",
            batches.world_size, batches.micro_batch_size, batches.accumulation
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
        writeln!(f, "\nmemory of each of {} ranks", self.config.nproc)?;
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
            "  the run's folder    {} with {checkpoints} checkpoint(s) at the same time",
            size(disk.run() as f64)
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

    fn verdict(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (needed, ranks) = (self.memory.total() * self.config.nproc as f64, self.config.nproc);
        writeln!(f, "\nthis machine ({} cores)", self.machine.cores)?;
        match self.machine.available_memory {
            None => writeln!(f, "  memory              not known here; all {ranks} ranks need {}", size(needed))?,
            Some(available) => {
                let fits = if needed <= available as f64 { "fits" } else { "DOES NOT FIT" };
                writeln!(
                    f,
                    "  memory              {fits}: all {ranks} ranks need {}, {} are available",
                    size(needed),
                    size(available as f64)
                )?;
                if needed > available as f64 {
                    writeln!(f, "                      {}", self.remedy(available as f64))?;
                }
            }
        }
        let shards = if self.data.is_there { 0 } else { self.disk.shards };
        let features = self.disk.vision_features;
        let disk = (self.disk.run() + shards + features) as f64;
        match self.machine.free_disk {
            None => writeln!(f, "  disk                not known here; {} are needed", size(disk)),
            Some(free) => {
                let fits = if disk <= free as f64 { "fits" } else { "DOES NOT FIT" };
                let what = match (shards, features) {
                    (0, 0) => "the run needs",
                    (0, _) => "the run and the vision features need",
                    (_, 0) => "the run and the shards need",
                    _ => "the run, the shards and the vision features need",
                };
                let place = self.machine.disk_of.display();
                writeln!(
                    f,
                    "  disk                {fits}: {what} {}, {} are free at {place}",
                    size(disk),
                    size(free as f64)
                )
            }
        }
    }

    /// What would help most.
    fn remedy(&self, available: f64) -> String {
        let memory = &self.memory;
        let per_rank = available / self.config.nproc as f64;
        let held = memory.weights + memory.gradients + memory.moments;
        if held > per_rank {
            return format!(
                "weights, gradients and moments alone are {} a rank: spread the ranks over machines with more memory, or train \
                 less (use_lora, projector), on a base in few bits (--load_in_4bit)",
                size(held)
            );
        }
        "--gradient_checkpointing true or a smaller --per_device_train_batch_size (with more \
         --gradient_accumulation_steps) takes less"
            .to_string()
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
    }
}
