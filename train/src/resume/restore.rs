//! From a checkpoint's files into the ranks' partitions, whatever the number of ranks that wrote it.

use super::Found;
use crate::checkpoint::optimizer::{Kind, OptimizerFiles};
use crate::layout::Layout;
use crate::parameters;
use crate::partitions::Partitions;
use anyhow::{Result, bail};
use base::pulse;
use model::Llava;
use std::sync::Arc;

/// Puts the checkpoint's moments into the partitions, and into the model the f32 values of weights that the checkpoint's
/// model directory holds rounded. (The weights themselves were loaded with the model.)
///
/// # Errors
/// Files that do not fit the model.
pub fn restore(found: &Found, model: &mut Llava, layout: &Layout, partitions: &mut Partitions) -> Result<()> {
    let files = OptimizerFiles::open(&found.dir)?;
    for (index, block) in layout.blocks.iter().enumerate() {
        let (first, second) =
            (Arc::make_mut(&mut partitions.exp_avg[index]), Arc::make_mut(&mut partitions.exp_avg_sq[index]));
        for param in &block.params {
            pulse::mark();
            for (range, start) in block.owned_ranges(param, layout.rank) {
                let part = start..start + range.len();
                let of_first = files.copy(Kind::ExpAvg, &param.name, range.start, &mut first[part.clone()]);
                let of_second = files.copy(Kind::ExpAvgSq, &param.name, range.start, &mut second[part]);
                if of_first + of_second != 2 * range.len() {
                    bail!("{}: no optimizer state of {}; choose another checkpoint", found.dir.display(), param.name);
                }
            }
        }
    }
    parameters::edit(model, layout, None, |_, slot, values| {
        pulse::mark();
        files.copy(Kind::Master, &slot.name, 0, values);
    });
    Ok(())
}
