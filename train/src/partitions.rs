//! What a rank owns of the optimizer's state.

use crate::layout::Layout;
use crate::parameters;
use anyhow::Result;
use model::Llava;
use std::ops::Range;
use std::sync::Arc;

/// A vector per block of the layout (padding included); a clone shares them, until one of the two changes.
#[derive(Clone)]
pub struct Partitions {
    /// Master weights, where the model computes with rounded ones; otherwise they are the model's own values.
    pub masters: Option<Vec<Arc<Vec<f32>>>>,
    /// AdamW's first moment.
    pub exp_avg: Vec<Arc<Vec<f32>>>,
    /// AdamW's second moment.
    pub exp_avg_sq: Vec<Arc<Vec<f32>>>,
}

impl Partitions {
    /// Moments of zero, and no masters.
    pub fn new(layout: &Layout) -> Self {
        // Memory that is never written takes none: rows of a table without a gradient cost nothing.
        let zeros = || layout.zero_partitions().into_iter().map(Arc::new).collect();
        Self { masters: None, exp_avg: zeros(), exp_avg_sq: zeros() }
    }

    /// Nothing: they are elsewhere.
    pub fn none() -> Self {
        Self { masters: None, exp_avg: Vec::new(), exp_avg_sq: Vec::new() }
    }

    /// Keeps the model's values (f32) as masters from here on: the model may be rounded then.
    ///
    /// # Errors
    /// As [`parameters::owned`].
    pub fn keep_masters(&mut self, model: &Llava, layout: &Layout) -> Result<()> {
        let owned = |block| Ok(Arc::new(parameters::owned(model, layout, block)?));
        self.masters = Some((0..layout.blocks.len()).map(owned).collect::<Result<_>>()?);
        Ok(())
    }

    /// Both moments of a part of a block, to be changed: a clone keeps the old ones.
    pub fn moments(&mut self, block: usize, part: Range<usize>) -> [&mut [f32]; 2] {
        [&mut self.exp_avg[block], &mut self.exp_avg_sq[block]].map(|moment| &mut Arc::make_mut(moment)[part.clone()])
    }
}
