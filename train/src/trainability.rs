//! The manifest of trained tensors: their names, and a hash of all tensors that must not change.

use crate::config::TrainType;
use crate::parameters;
use crate::parts::Part;
use crate::trainable::{self, Choice};
use anyhow::{Result, bail};
use base::files::{hex, sha256, sha256_hex};
use base::pulse::Pulse;
use base::{json, names};
use burn::module::Param;
use burn::tensor::Tensor;
use model::Llava;
use model::config::LlavaConfig;
use model::named::{NamedVisitor, visit_named};
use model::quantized;
use rayon::prelude::*;
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::Path;

/// File of the manifest in a run's folder.
pub const TRAINABLE_FILE: &str = "trainable.json";

/// A trained tensor, or one that would be trained if a gradient could reach it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ManifestTensor {
    /// Published name.
    pub name: String,
    /// Shape.
    pub shape: Vec<usize>,
    /// Values.
    pub values: usize,
    /// Part of the model.
    pub group: Part,
    /// Weight decay applies.
    pub weight_decay: bool,
}

/// The frozen tensors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Frozen {
    /// Tensors.
    pub tensors: usize,
    /// Values.
    pub values: usize,
    /// SHA-256 over (name, SHA-256 of the values in memory) of every tensor, in the model's order.
    pub sha256: String,
}

/// `trainable.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Trainability {
    /// As configured.
    pub train_type: TrainType,
    /// Values trained.
    pub trained_values: usize,
    /// Tensors trained.
    pub trained: Vec<ManifestTensor>,
    /// Everything else.
    pub frozen: Frozen,
    /// Tensors that the train type covers and no gradient can reach: they stay as they are.
    pub cannot_receive_gradients: Vec<ManifestTensor>,
}

impl Trainability {
    /// Lists and hashes a model's tensors.
    pub fn of(model: &Llava, choice: Choice<'_>, config: &LlavaConfig) -> Self {
        let mut lister = Lister { choice, config, trained: Vec::new(), unreachable: Vec::new() };
        visit_named(model, &mut lister);
        let Lister { trained, unreachable, .. } = lister;
        Self {
            train_type: choice.train_type,
            trained_values: trained.iter().map(|tensor| tensor.values).sum(),
            frozen: frozen(model, &trained),
            trained,
            cannot_receive_gradients: unreachable,
        }
    }

    /// Writes `dir/trainable.json`.
    ///
    /// # Errors
    /// What the operating system refuses.
    pub fn write(&self, dir: &Path) -> base::Result<()> {
        json::write(&dir.join(TRAINABLE_FILE), self)
    }

    /// What a user should know before the run starts.
    pub fn warning(&self) -> Option<String> {
        let (first, last) = (self.cannot_receive_gradients.first()?, self.cannot_receive_gradients.last()?);
        let values: usize = self.cannot_receive_gradients.iter().map(|tensor| tensor.values).sum();
        Some(format!(
            "{} tensors ({values} values, {} … {}) cannot receive gradients, because the projector takes its features from an \
             earlier layer: they are not trained and stay as they are",
            self.cannot_receive_gradients.len(),
            first.name,
            last.name
        ))
    }

    /// Compares the frozen tensors with their hash at the start.
    ///
    /// # Errors
    /// They have changed: what the run made cannot be trusted.
    pub fn check_frozen(&self, model: &Llava) -> Result<()> {
        let now = frozen(model, &self.trained);
        if now != self.frozen {
            bail!(
                "frozen parts of the model have changed: SHA-256 of {} tensors is {}, expected {}; do not use this run's \
                 output, and report this",
                now.tensors,
                now.sha256,
                self.frozen.sha256
            );
        }
        Ok(())
    }
}

struct Lister<'a> {
    choice: Choice<'a>,
    config: &'a LlavaConfig,
    trained: Vec<ManifestTensor>,
    unreachable: Vec<ManifestTensor>,
}

impl NamedVisitor for Lister<'_> {
    fn visit<const D: usize>(&mut self, name: String, param: &Param<Tensor<D>>) {
        let (true, Some(group)) = (self.choice.is_covered(&name), Part::of(&name)) else { return };
        let shape = param.val().dims().to_vec();
        let reachable = trainable::receives_gradient(&name, self.config);
        let (values, weight_decay) = (shape.iter().product(), names::decays(&name));
        let list = if reachable { &mut self.trained } else { &mut self.unreachable };
        list.push(ManifestTensor { name, shape, values, group, weight_decay });
    }
}

/// Hashes every tensor that is not trained, tensors side by side on all cores.
fn frozen(model: &Llava, trained: &[ManifestTensor]) -> Frozen {
    struct Collector<'a> {
        trained: BTreeSet<&'a str>,
        found: Vec<(String, usize, Hash)>,
    }
    type Hash = Box<dyn Fn() -> [u8; 32] + Send + Sync>;
    impl NamedVisitor for Collector<'_> {
        fn visit<const D: usize>(&mut self, name: String, param: &Param<Tensor<D>>) {
            if !self.trained.contains(name.as_str()) {
                let tensor = param.val();
                let values = tensor.dims().iter().product();
                let hash = move || parameters::with_bytes(tensor.clone(), sha256);
                self.found.push((name, values, Box::new(hash)));
            }
        }
    }
    let trained = trained.iter().map(|tensor| tensor.name.as_str()).collect();
    let mut collector = Collector { trained, found: Vec::new() };
    visit_named(model, &mut collector);
    // What stands for a weight is hashed in its place.
    for (name, weight) in quantized::weights(model) {
        collector.found.retain(|(found, ..)| *found != name);
        let values = weight.dims().iter().product();
        let hash = move || sha256(&weight.bytes().concat());
        collector.found.push((name, values, Box::new(hash)));
    }
    let pulse = Pulse::of_this_thread();
    let line = |(name, _, hash): &(String, usize, Hash)| {
        let line = format!("{name} {}\n", hex(&hash()));
        pulse.mark();
        line
    };
    let lines: Vec<String> = collector.found.par_iter().map(line).collect();
    Frozen {
        tensors: lines.len(),
        values: collector.found.iter().map(|(_, values, _)| values).sum(),
        sha256: sha256_hex(lines.concat().as_bytes()),
    }
}
