//! Linear layers with LoRA. Beside the products: a launch for the masked input, made again in the backward step and never kept, and
//! one that adds the branch.

use super::dropout::{DeviceDropout, has_u64};
use super::{
    Backend, MOST_VALUES, Node, Operand, UNITS, cubes_of_units, element, empty, incoming, matrix, record,
    rows_and_width, vector, vector_size,
};
use crate::{Dropout, LinearInput, LinearWeight, QuantizedWeight, frozen, product};
use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::tensor::Tensor;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::{Tensor as Buffer, *};

/// See [`crate::lora_linear`].
#[allow(clippy::too_many_arguments)]
pub fn lora_linear(
    x: &LinearInput,
    weight: &LinearWeight,
    bias: Option<&Tensor<1>>,
    a: &Tensor<2>,
    b: &Tensor<2>,
    scale: f32,
    dropout: Option<&Dropout>,
) -> Option<Tensor<2>> {
    let (x, a, b) = (matrix(&x.values)?, matrix(a)?, matrix(b)?);
    let dtype = x.values.dtype;
    let (weight, weight_node) = match weight {
        LinearWeight::Quantized(weight) => (Weight::Quantized(weight.clone()), Node::untracked()),
        LinearWeight::Float(weight) => {
            let Operand { values, node } = matrix(weight)?;
            if values.dtype != dtype {
                return None;
            }
            (Weight::Float(Box::new(values)), node)
        }
    };
    let ([rows, _], [out, rank]) = (rows_and_width(&x.values), rows_and_width(&b.values));
    if rows * out > MOST_VALUES || dropout.is_some() && !has_u64(&x.values) {
        return None;
    }
    let bias = match bias {
        Some(bias) => Some(vector(bias, out)?),
        None => None,
    };
    if a.values.dtype != dtype
        || b.values.dtype != dtype
        || bias.as_ref().is_some_and(|bias| bias.values.dtype != dtype)
    {
        return None;
    }
    debug_assert_eq!(rows_and_width(&a.values)[0], rank, "rank");
    let dropout = dropout.map(|dropout| DeviceDropout::new(dropout, &x.values));
    let low = primitive(product(scaled_input(&x.values, scale, dropout.as_ref()), tensor(&a.values).transpose()))?;
    let branch = product(tensor(&low), tensor(&b.values).transpose());
    let base = primitive(weight.product(&x.values))?;
    let output = sum(base, Some(primitive(branch)?), bias.as_ref().map(|bias| &bias.values));
    let state = Saved { x: x.values, weight, a: a.values, b: b.values, low, dropout, scale };
    Some(match bias {
        Some(bias) => record(LoraLinear, [x.node, weight_node, a.node, b.node, bias.node], || state, output),
        None => record(LoraLinear, [x.node, weight_node, a.node, b.node], || state, output),
    })
}

/// `base + branch + bias`, in the memory of `base` where nobody else holds it.
pub(super) fn sum(base: CubeTensor, branch: Option<CubeTensor>, bias: Option<&CubeTensor>) -> CubeTensor {
    let (base, branch) = (into_contiguous(base), branch.map(into_contiguous));
    let [rows, width] = rows_and_width(&base);
    let size = vector_size(width, &[&base, branch.as_ref().unwrap_or(&base), bias.unwrap_or(&base)]);
    let units = rows * width / size;
    if units == 0 {
        return base;
    }
    let other = (!base.can_mut()).then(|| empty(&base, [rows, width], base.dtype));
    let written = match &other {
        Some(other) => other.clone().into_tensor_arg(),
        None => base.as_tensor_alias(0),
    };
    add::launch(
        &base.client,
        cubes_of_units(&base, units),
        CubeDim::new_1d(UNITS),
        size,
        base.clone().into_tensor_arg(),
        branch.as_ref().or(bias).unwrap_or(&base).clone().into_tensor_arg(),
        bias.or(branch.as_ref()).unwrap_or(&base).clone().into_tensor_arg(),
        written,
        units as u32,
        (width / size) as u32,
        branch.is_some(),
        bias.is_some(),
        element(&base),
    );
    other.unwrap_or(base)
}

/// A unit for each vector.
#[cube(launch)]
fn add<F: Float, N: Size>(
    base: &Buffer<Vector<F, N>>,
    branch: &Buffer<Vector<F, N>>,
    bias: &Buffer<Vector<F, N>>,
    output: &mut Buffer<Vector<F, N>>,
    units: u32,
    vectors: u32,
    #[comptime] with_branch: bool,
    #[comptime] with_bias: bool,
    #[define(F)] _dtype: ElemType,
) {
    let unit = ABSOLUTE_POS as u32;
    if unit < units {
        let at = unit as usize;
        let mut sum = Vector::<f32, N>::cast_from(base[at]);
        if with_branch {
            sum += Vector::<f32, N>::cast_from(branch[at]);
        }
        if with_bias {
            sum += Vector::<f32, N>::cast_from(bias[(unit % vectors) as usize]);
        }
        output[at] = Vector::cast_from(sum);
    }
}

pub(super) fn tensor(values: &CubeTensor) -> Tensor<2> {
    Tensor::from_primitive::<Backend>(values.clone())
}

pub(super) fn primitive<const D: usize>(tensor: Tensor<D>) -> Option<CubeTensor> {
    tensor.try_into_primitive::<Backend>().ok()
}

/// `scale · mask ∘ x`
fn scaled_input(x: &CubeTensor, scale: f32, dropout: Option<&DeviceDropout>) -> Tensor<2> {
    match dropout {
        Some(dropout) => tensor(&dropout.apply(x, scale, None)),
        None => tensor(x) * scale,
    }
}

#[derive(Clone, Debug)]
enum Weight {
    Float(Box<CubeTensor>),
    Quantized(QuantizedWeight),
}

impl Weight {
    /// `x Wᵀ`
    fn product(&self, x: &CubeTensor) -> Tensor<2> {
        match self {
            Self::Float(weight) => product(tensor(x), tensor(weight).transpose()),
            Self::Quantized(weight) => frozen::product(tensor(x), weight),
        }
    }

    /// `d W`
    fn input_gradient(&self, d: &Tensor<2>) -> Option<Tensor<2>> {
        match self {
            Self::Float(weight) => Some(product(d.clone(), tensor(weight))),
            Self::Quantized(weight) => frozen::input_gradient(d.clone(), weight),
        }
    }
}

#[derive(Clone, Debug)]
struct Saved {
    x: CubeTensor,
    weight: Weight,
    a: CubeTensor,
    b: CubeTensor,
    /// `scale · (mask ∘ x) Aᵀ`
    low: CubeTensor,
    dropout: Option<DeviceDropout>,
    scale: f32,
}

/// Parents are x, weight, a, b and the bias, if there is one.
#[derive(Debug)]
struct LoraLinear;

impl<const N: usize> Backward<Backend, N> for LoraLinear {
    type State = Saved;

    fn backward(self, ops: Ops<Saved, N>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let d = tensor(&incoming(&ops, gradients));
        let mut parents = ops.parents.into_iter();
        let mut next = || parents.next().flatten().map(|parent| parent.id);
        let (x, weight, a, b, bias) = (next(), next(), next(), next(), next());
        let saved = ops.state;
        let mut register = |parent: Option<NodeId>, gradient: &dyn Fn() -> Option<CubeTensor>| {
            if let Some((parent, gradient)) = parent.and_then(|parent| Some((parent, gradient()?))) {
                gradients.register::<Backend>(parent, gradient);
            }
        };
        register(weight, &|| primitive(product(d.clone().transpose(), tensor(&saved.x))));
        register(b, &|| primitive(product(d.clone().transpose(), tensor(&saved.low))));
        register(bias, &|| primitive(d.clone().sum_dim(0).squeeze_dim::<1>(0)));
        // The gradient of (mask ∘ x) Aᵀ, without the scale.
        let of_low = product(d.clone(), tensor(&saved.b));
        register(a, &|| {
            let input = scaled_input(&saved.x, saved.scale, saved.dropout.as_ref());
            primitive(product(of_low.clone().transpose(), input))
        });
        register(x, &|| {
            let of_branch = product(of_low.clone(), tensor(&saved.a));
            let of_base = saved.weight.input_gradient(&d)?;
            match &saved.dropout {
                Some(dropout) => {
                    let (branch, base) = (into_contiguous(primitive(of_branch)?), into_contiguous(primitive(of_base)?));
                    Some(dropout.apply(&branch, saved.scale, Some(&base)))
                }
                None => primitive(of_base + of_branch * saved.scale),
            }
        });
    }
}
