//! From burn's tensors to slices and back: inputs and outputs of kernels, and the record of the backward step.

use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, NodeGuard, OpsKind};
use burn::backend::flex::{FlexTensor, Layout};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Flex};
use burn::tensor::{Bytes, DType, Int, Shape, Tensor};
use half::{bf16, f16};

type Differentiable = Autodiff<Flex>;

/// A tensor of the CPU backend, in one piece of memory.
pub struct Operand {
    /// The values.
    pub values: FlexTensor,
    /// Its place in the graph, on a device with autodiff.
    pub node: Node,
}

/// A tensor's place in the graph.
pub struct Node {
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

    /// An output on the same device that has no gradient.
    pub fn constant<const D: usize>(self, output: FlexTensor) -> Tensor<D> {
        match self.guard {
            None => Tensor::from_primitive::<Flex>(output),
            Some(_) => Tensor::from_primitive::<Differentiable>(FloatTensor::<Differentiable>::new(output)),
        }
    }
}

/// The tensor as f32 operand; `None` on another backend or in another dtype.
pub fn operand<const D: usize>(tensor: &Tensor<D>) -> Option<Operand> {
    if tensor.dtype() == DType::F32 { any_operand(tensor) } else { None }
}

/// A weight or bias vector as f32 operand: in half precision it is widened if it is frozen. `None` on another backend.
pub fn vector(tensor: &Tensor<1>) -> Option<Operand> {
    let Operand { values, node } = any_operand(tensor)?;
    let widened = match values.dtype() {
        DType::F32 => return Some(Operand { values, node }),
        _ if node.tracked() => return None,
        DType::BF16 => values.as_slice::<bf16>()?.iter().map(|value| value.to_f32()).collect(),
        DType::F16 => values.as_slice::<f16>()?.iter().map(|value| value.to_f32()).collect(),
        _ => return None,
    };
    Some(Operand { values: self::tensor::<1>(widened, tensor.dims()), node })
}

/// The tensor as operand in whatever dtype; `None` on another backend.
pub fn any_operand<const D: usize>(tensor: &Tensor<D>) -> Option<Operand> {
    if !tensor.device().is_autodiff() {
        let values = tensor.clone().try_into_primitive::<Flex>().ok()?;
        return Some(Operand { values: contiguous(values), node: Node { guard: None, tracked: false } });
    }
    let tensor = tensor.clone().try_into_primitive::<Differentiable>().ok()?;
    let tracked = tensor.is_tracked();
    let (values, guard) = tensor.into_parts();
    Some(Operand { values: contiguous(values), node: Node { guard: Some(guard), tracked } })
}

fn contiguous(tensor: FlexTensor) -> FlexTensor {
    if tensor.is_contiguous() { tensor } else { tensor.to_contiguous() }
}

/// See [`crate::move_into_huge_pages`].
pub fn move_into_huge_pages<const D: usize>(weight: &Tensor<D>) {
    if let Some(operand) = any_operand(weight) {
        crate::memory::move_into_huge_pages(operand.values.bytes());
    }
}

/// The same for the codes of a rounded weight.
pub fn move_codes_into_huge_pages<const D: usize>(codes: &Tensor<D, Int>) {
    if let Ok(codes) = codes.clone().try_into_primitive::<Flex>() {
        crate::memory::move_into_huge_pages(codes.bytes());
    }
}

/// The values of an f32 operand.
pub fn floats(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice().expect("operands are contiguous f32")
}

/// Bytes of so many f32 values.
pub fn bytes_of(values: usize) -> usize {
    values * size_of::<f32>()
}

/// The sizes of a matrix.
pub fn dims(tensor: &FlexTensor) -> [usize; 2] {
    let shape = tensor.layout().shape();
    [shape[0], shape[1]]
}

/// A tensor that owns `values`.
pub fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> FlexTensor {
    FlexTensor::new(Bytes::from_elems(values), Layout::contiguous(Shape::new(shape)), DType::F32)
}

/// Memory for a result that is added to.
pub fn zeros(len: usize) -> Vec<f32> {
    vec![0.0; len]
}

/// The output as tensor, with `op` as the backward step when a gradient is wanted for one of the inputs.
pub fn record<const N: usize, const D: usize, B: Backward<Flex, N>>(
    op: B,
    inputs: [Node; N],
    state: impl FnOnce() -> B::State,
    output: FlexTensor,
) -> Tensor<D> {
    if inputs.iter().all(|input| input.guard.is_none()) {
        return Tensor::from_primitive::<Flex>(output);
    }
    if !inputs.iter().any(Node::tracked) {
        return Tensor::from_primitive::<Differentiable>(FloatTensor::<Differentiable>::new(output));
    }
    // An input without autodiff is a constant beside those with it.
    let constant = || FloatTensor::<Differentiable>::new(tensor(Vec::new(), [0])).node();
    let guards = inputs.map(|input| input.guard.unwrap_or_else(constant));
    let recorded = match op.prepare::<NoCheckpointing>(guards).compute_bound().stateful() {
        OpsKind::Tracked(prepared) => prepared.finish(state(), output),
        OpsKind::UnTracked(prepared) => prepared.finish(output),
    };
    Tensor::from_primitive::<Differentiable>(recorded)
}

/// The incoming gradient of a step's output.
pub fn incoming<S, const N: usize>(
    ops: &burn::backend::autodiff::ops::Ops<S, N>,
    gradients: &mut Gradients,
) -> FlexTensor {
    contiguous(gradients.consume::<Flex>(&ops.node))
}

/// Writable memory with the tensor's values: its own if nobody else holds it, else a copy.
pub fn own(tensor: FlexTensor) -> Vec<f32> {
    match tensor.into_data().try_into_vec() {
        Ok(values) => values,
        Err(error) => unreachable!("operands are f32: {error}"),
    }
}
