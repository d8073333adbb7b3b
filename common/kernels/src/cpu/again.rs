//! Values that are computed again in the backward step, in place of keeping them.

use burn::backend::flex::FlexTensor;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// How to compute values again. What several steps want is computed for the first of them and freed after the last.
#[derive(Clone)]
pub struct Again(Arc<Shared>);

struct Shared {
    compute: Box<dyn Fn() -> FlexTensor + Send + Sync>,
    values: Mutex<Option<FlexTensor>>,
}

impl Again {
    /// `compute` gives the bits of the forward pass. The tensors it captures are kept.
    pub fn new(compute: impl Fn() -> FlexTensor + Send + Sync + 'static) -> Self {
        Self(Arc::new(Shared { compute: Box::new(compute), values: Mutex::default() }))
    }

    fn values(&self) -> FlexTensor {
        let mut values = self.0.values.lock().unwrap_or_else(PoisonError::into_inner);
        values.get_or_insert_with(&self.0.compute).clone()
    }
}

impl fmt::Debug for Again {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Again")
    }
}

/// The input of a step for its backward step.
#[derive(Clone, Debug)]
pub enum Kept {
    /// As it is.
    Values(FlexTensor),
    /// As instructions.
    Again(Again),
}

impl Kept {
    /// Keeps `values` unless they can be computed again.
    pub fn new(values: &FlexTensor, again: Option<&Again>) -> Self {
        again.map_or_else(|| Self::Values(values.clone()), |again| Self::Again(again.clone()))
    }

    /// The values.
    pub fn values(&self) -> FlexTensor {
        match self {
            Self::Values(values) => values.clone(),
            Self::Again(again) => again.values(),
        }
    }
}
