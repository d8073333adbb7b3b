//! From burn's tensors to buffers and back: inputs and outputs of kernels, and the record of the backward step. As `cpu::operand`.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward as Step, NodeGuard, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::tensor::{DType, Shape, Tensor};
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;

/// burn's backend on all devices that cubecl knows; which device is the tensor's affair.
pub(crate) type Backend = CubeBackend;
type Differentiable = Autodiff<Backend>;

/// Kernels count values in 32 bits; burn's operations take larger tensors.
pub(crate) const MOST_VALUES: usize = i32::MAX as usize;

/// A tensor on a GPU whose values lie one behind the other.
#[derive(Debug)]
pub(crate) struct Operand {
    /// The values, f32, bf16 or f16.
    pub values: CubeTensor,
    /// Its place in the graph, on a device with autodiff.
    pub node: Node,
}

/// A tensor's place in the graph.
#[derive(Debug)]
pub(crate) struct Node {
    guard: Option<NodeGuard>,
    tracked: bool,
}

impl Node {
    /// Whether a gradient will be wanted for this tensor.
    pub fn tracked(&self) -> bool {
        self.tracked
    }

    /// Of what is no part of any graph.
    pub fn untracked() -> Self {
        Self { guard: None, tracked: false }
    }
}

/// The tensor as operand; `None` on another backend, in a dtype that kernels do not read, and of more than [`MOST_VALUES`].
pub(crate) fn operand<const D: usize>(tensor: &Tensor<D>) -> Option<Operand> {
    if !is_read(tensor) {
        return None;
    }
    if !tensor.device().is_autodiff() {
        let values = tensor.clone().try_into_primitive::<Backend>().ok()?;
        return Some(Operand { values: into_contiguous(values), node: Node::untracked() });
    }
    let tensor = tensor.clone().try_into_primitive::<Differentiable>().ok()?;
    let tracked = tensor.is_tracked();
    let (values, guard) = tensor.into_parts();
    Some(Operand { values: into_contiguous(values), node: Node { guard: Some(guard), tracked } })
}

fn is_read<const D: usize>(tensor: &Tensor<D>) -> bool {
    let is_read = matches!(tensor.dtype(), DType::F32 | DType::BF16 | DType::F16);
    is_read && tensor.shape().num_elements() <= MOST_VALUES
}

/// Whether the tensor is without autodiff and an [`operand`], which copies what does not lie one behind the other.
pub(crate) fn is_operand<const D: usize>(tensor: &Tensor<D>) -> bool {
    is_read(tensor) && !tensor.device().is_autodiff() && tensor.clone().try_into_primitive::<Backend>().is_ok()
}

/// The values where they lie, rows possibly apart from each other; `None` as [`operand`], and where values of a row are apart.
pub(crate) fn strided<const D: usize>(tensor: &Tensor<D>) -> Option<CubeTensor> {
    let values = match tensor.device().is_autodiff() {
        true => tensor.clone().try_into_primitive::<Differentiable>().ok()?.into_parts().0,
        false => tensor.clone().try_into_primitive::<Backend>().ok()?,
    };
    (values.meta.strides().last() == Some(&1)).then_some(values)
}

/// Whether this is an f32 vector of this backend without autodiff, of at most [`MOST_VALUES`].
pub(crate) fn is_float_vector(tensor: &Tensor<1>) -> bool {
    tensor.dtype() == DType::F32 && is_operand(tensor)
}

/// The tensor's memory, without another reference to it.
pub(crate) fn into_values(tensor: Tensor<1>) -> Option<CubeTensor> {
    tensor.try_into_primitive::<Backend>().ok().map(into_contiguous)
}

/// A matrix as operand, `[rows, columns]`.
pub(crate) fn matrix(tensor: &Tensor<2>) -> Option<Operand> {
    operand(tensor)
}

/// A vector of `len` values as operand.
pub(crate) fn vector(tensor: &Tensor<1>, len: usize) -> Option<Operand> {
    operand(tensor).filter(|operand| operand.values.meta.num_elements() == len)
}

/// The sizes of a matrix.
pub(crate) fn rows_and_width(tensor: &CubeTensor) -> [usize; 2] {
    tensor.meta.shape().dims()
}

/// Memory for a result on the device of `like`.
pub(crate) fn empty(like: &CubeTensor, shape: impl Into<Shape>, dtype: DType) -> CubeTensor {
    empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), shape.into(), dtype)
}

/// The output as tensor that has no gradient, beside an input at this place.
pub(crate) fn constant<const D: usize>(beside: Node, output: CubeTensor) -> Tensor<D> {
    match beside.guard {
        None => Tensor::from_primitive::<Backend>(output),
        Some(_) => Tensor::from_primitive::<Differentiable>(FloatTensor::<Differentiable>::new(output)),
    }
}

/// The output as tensor, with `op` as the backward step when a gradient is wanted for one of the inputs.
pub(crate) fn record<const N: usize, const D: usize, B: Step<Backend, N>>(
    op: B,
    inputs: [Node; N],
    state: impl FnOnce() -> B::State,
    output: CubeTensor,
) -> Tensor<D> {
    if inputs.iter().all(|input| input.guard.is_none()) {
        return Tensor::from_primitive::<Backend>(output);
    }
    let constant = |output: CubeTensor| FloatTensor::<Differentiable>::new(output);
    if !inputs.iter().any(Node::tracked) {
        return Tensor::from_primitive::<Differentiable>(constant(output));
    }
    // An input without autodiff is a constant beside those with it.
    let guards = inputs.map(|input| input.guard.unwrap_or_else(|| constant(output.clone()).node()));
    let recorded = match op.prepare::<NoCheckpointing>(guards).compute_bound().stateful() {
        OpsKind::Tracked(prepared) => prepared.finish(state(), output),
        OpsKind::UnTracked(prepared) => prepared.finish(output),
    };
    Tensor::from_primitive::<Differentiable>(recorded)
}

/// The incoming gradient of a step's output.
pub(crate) fn incoming<S, const N: usize>(ops: &Ops<S, N>, gradients: &mut Gradients) -> CubeTensor {
    into_contiguous(gradients.consume::<Backend>(&ops.node))
}
