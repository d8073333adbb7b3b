//! Which tensors a configuration has: names and shapes, without weights. They are those of the model's own modules.

use crate::Llava;
use crate::config::{LlavaConfig, TextConfig, VisionConfig};
use crate::multi_modal_projector::MultiModalProjector;
use crate::named::{NamedVisitor, visit_named_below};
use crate::text::LanguageModel;
use crate::vision::VisionTower;
use base::names::PROJECTOR;
use burn::module::{Module, Param};
use burn::tensor::Tensor;
use kernels::device;

/// A tensor of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpectedTensor {
    /// Published name.
    pub name: String,
    /// Shape, Hugging Face's layout.
    pub shape: Vec<usize>,
}

impl ExpectedTensor {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// No values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Every tensor of a LLaVA, in the model's order; the head is absent when tied.
pub fn expected_tensors(config: &LlavaConfig) -> Vec<ExpectedTensor> {
    listed(&Llava::zeros(config, &device::cpu()), None)
}

/// The vision tower's tensors.
pub fn expected_vision(config: &VisionConfig) -> Vec<ExpectedTensor> {
    listed(&VisionTower::zeros(config, &device::cpu()), Some("vision_tower"))
}

/// The projector's tensors.
pub fn expected_projector(config: &LlavaConfig) -> Vec<ExpectedTensor> {
    listed(&MultiModalProjector::zeros(config, &device::cpu()), Some(PROJECTOR))
}

/// The language model's tensors; the head is absent when tied.
pub fn expected_text(config: &TextConfig) -> Vec<ExpectedTensor> {
    listed(&LanguageModel::zeros(config, &device::cpu()), Some("language_model"))
}

/// The parameters of a module whose place in the model is `root`; none of them is made.
fn listed(module: &impl Module, root: Option<&str>) -> Vec<ExpectedTensor> {
    struct List(Vec<ExpectedTensor>);
    impl NamedVisitor for List {
        fn visit<const D: usize>(&mut self, name: String, param: &Param<Tensor<D>>) {
            self.0.push(ExpectedTensor { name, shape: param.lazy_shape().to_vec() });
        }
    }
    let mut list = List(Vec::new());
    visit_named_below(module, root, &mut list);
    list.0
}
