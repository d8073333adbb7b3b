//! The dispatch table: every operation with its signature and its kernels.
//!
//! A row reads: the operation's arguments, its result, and the modules whose kernel of the same name is tried, in this order.
//! A kernel gives `None` where it does not apply (another backend, a dtype without a kernel); the definition in `reference`
//! comes last.

use crate::kv_cache::LayerCache;
use crate::{CrossEntropies, Dropout, LinearInput, LinearWeight, Mask, Rope, cpu, reference};
use burn::tensor::Tensor;

/// How an argument is shown to a kernel, which may decline it: tensors by reference, everything else as it is.
trait Argument {
    type Shown<'a>
    where
        Self: 'a;

    fn show(&mut self) -> Self::Shown<'_>;
}

macro_rules! shown {
    ($([$($generics:tt)*] $type:ty => $lifetime:lifetime $shown:ty, $self:ident $show:expr;)*) => {$(
        impl<$($generics)*> Argument for $type {
            type Shown<$lifetime> = $shown where Self: $lifetime;

            fn show(&mut $self) -> Self::Shown<'_> {
                $show
            }
        }
    )*};
}

shown! {
    [const D: usize] Tensor<D> => 'a &'a mut Tensor<D>, self self;
    [const D: usize] Option<Tensor<D>> => 'a Option<&'a Tensor<D>>, self self.as_ref();
    [] LinearInput => 'a &'a LinearInput, self self;
    [] LinearWeight => 'a &'a LinearWeight, self self;
    ['x, T: ?Sized] &'x T => 'a &'x T, self self;
    ['x, T: ?Sized] Option<&'x T> => 'a Option<&'x T>, self *self;
    [] Mask => 'a Mask, self *self;
    [] usize => 'a usize, self *self;
    [] f32 => 'a f32, self *self;
    [] f64 => 'a f64, self *self;
}

/// Makes a function of each row. `x: T as U` takes whatever becomes a `U`.
macro_rules! operations {
    ($($(#[$meta:meta])* fn $name:ident $arguments:tt -> $result:ty = $kernels:tt;)*) => {
        $(operation! { [$(#[$meta])*] $name $arguments $arguments [$result] $kernels })*
    };
}

macro_rules! operation {
    (
        [$($meta:tt)*] $name:ident ($($arg:ident: $type:ty $(as $into:ty)?),* $(,)?) $arguments:tt
        [$result:ty] [$($backend:ident::$module:ident),*]
    ) => {
        $($meta)*
        #[allow(clippy::too_many_arguments, unused_mut)]
        pub fn $name($(mut $arg: $type),*) -> $result {
            $($(let mut $arg: $into = $arg.into();)?)*
            $(if let Some(result) = kernel!($backend::$module::$name $arguments) {
                return result;
            })*
            reference::$name($($arg),*).into()
        }
    };
}

/// A call of a kernel; of one for GPUs in builds that have those.
macro_rules! kernel {
    (cube::$module:ident::$name:ident ($($arg:ident: $type:ty $(as $into:ty)?),* $(,)?)) => {
        cube!(crate::cube::$module::$name($($arg.show()),*))
    };
    ($backend:ident::$module:ident::$name:ident ($($arg:ident: $type:ty $(as $into:ty)?),* $(,)?)) => {
        $backend::$module::$name($($arg.show()),*)
    };
}

#[cfg(feature = "cube")]
macro_rules! cube {
    ($call:expr) => {
        $call
    };
}

#[cfg(not(feature = "cube"))]
macro_rules! cube {
    ($call:expr) => {
        None
    };
}

operations! {
    /// `y = x Wᵀ + b`. x `[T, in]`, weight `[out, in]`, bias `[out]` → `[T, out]`. A weight in few bits has no gradient.
    fn linear(
        x: impl Into<LinearInput> as LinearInput,
        weight: impl Into<LinearWeight> as LinearWeight,
        bias: Option<Tensor<1>>,
    ) -> Tensor<2>
        = [cpu::linear, cube::few, cube::linear];

    /// `linear` + `scale · (mask ∘ x) Aᵀ Bᵀ`. a `[r, in]`, b `[out, r]`; the mask is that of `dropout`.
    fn lora_linear(
        x: impl Into<LinearInput> as LinearInput,
        weight: impl Into<LinearWeight> as LinearWeight,
        bias: Option<Tensor<1>>,
        a: Tensor<2>,
        b: Tensor<2>,
        scale: f32,
        dropout: Option<&Dropout>,
    ) -> Tensor<2>
        = [cpu::linear, cube::few, cube::lora];

    /// DoRA: `gain ∘ (x̃ Wᵀ + scale · x̃ Aᵀ Bᵀ) + (x − x̃) Wᵀ + b` with x̃ the input after `dropout` (x without one). gain `[out]`: trained
    /// lengths of the rows of `W + scale · BA` by their [`row_norms`]; the rest as in [`lora_linear`].
    fn dora_linear(
        x: impl Into<LinearInput> as LinearInput,
        weight: impl Into<LinearWeight> as LinearWeight,
        bias: Option<Tensor<1>>,
        a: Tensor<2>,
        b: Tensor<2>,
        scale: f32,
        gain: Tensor<1>,
        dropout: Option<&Dropout>,
    ) -> Tensor<2>
        = [cpu::dora];

    /// Lengths of the rows of `W + scale · BA`, f32 without gradient. weight `[out, in]`, a `[r, in]`, b `[out, r]` → `[out]`.
    fn row_norms(
        weight: impl Into<LinearWeight> as LinearWeight,
        a: Tensor<2>,
        b: Tensor<2>,
        scale: f32,
    ) -> Tensor<1>
        = [cpu::dora];

    /// `x + y`, as residual connections add. Both `[T, D]`.
    fn add(x: Tensor<2>, y: Tensor<2>) -> Tensor<2>
        = [cpu::add];

    /// RMSNorm over the last dimension. x `[T, D]`, weight `[D]`.
    fn rms_norm(x: Tensor<2>, weight: Tensor<1>, eps: f64) -> LinearInput
        = [cpu::norm, cube::norm];

    /// LayerNorm over the last dimension. x `[T, D]`, weight and bias `[D]`.
    fn layer_norm(x: Tensor<2>, weight: Tensor<1>, bias: Tensor<1>, eps: f64) -> LinearInput
        = [cpu::norm, cube::norm];

    /// `silu(gate) ∘ up`, both `[T, F]`.
    fn swiglu(gate: Tensor<2>, up: Tensor<2>) -> LinearInput
        = [cpu::activation, cube::activation];

    /// GELU with tanh in place of erf: `½ x (1 + tanh(√(2/π) (x + 0.044715 x³)))`.
    fn gelu_tanh(x: Tensor<2>) -> LinearInput
        = [cpu::activation, cube::activation];

    /// Exact GELU.
    fn gelu(x: Tensor<2>) -> LinearInput
        = [cpu::activation, cube::activation];

    /// `x · sigmoid(1.702 x)`.
    fn quick_gelu(x: Tensor<2>) -> LinearInput
        = [cpu::activation, cube::activation];

    /// `x · sigmoid(x)`.
    fn silu(x: Tensor<2>) -> Tensor<2>
        = [cube::activation];

    /// Rotates the two halves of every head (`rotate_half`). x `[T, heads · head_dim]`.
    fn rope(x: Tensor<2>, rope: &Rope, heads: usize) -> Tensor<2>
        = [cpu::rope, cube::rope];

    /// Attention within each packed sequence, scale 1/√head_dim. q `[T, heads · head_dim]`, k and v `[T, kv_heads · head_dim]`,
    /// `seq_lens` sums to T → `[T, heads · head_dim]`. Query head h uses key/value head `h / (heads / kv_heads)`.
    fn attention(
        q: Tensor<2>,
        k: Tensor<2>,
        v: Tensor<2>,
        heads: usize,
        kv_heads: usize,
        seq_lens: &[usize],
        mask: Mask,
    ) -> Tensor<2>
        = [cpu::attention, cube::attention];

    /// Causal attention of the last tokens of each packed sequence, scale 1/√head_dim: `query_lens[i]` of the `seq_lens[i]` tokens
    /// of sequence i. q `[Σ query_lens, heads · head_dim]`, k and v `[Σ seq_lens, kv_heads · head_dim]` → as q.
    fn attention_of_last(
        q: Tensor<2>,
        k: Tensor<2>,
        v: Tensor<2>,
        heads: usize,
        kv_heads: usize,
        query_lens: &[usize],
        seq_lens: &[usize],
    ) -> Tensor<2>
        = [cpu::attention, cube::attention];

    /// Causal attention of new tokens over their sequences' caches, which already hold the new tokens' keys and values.
    /// Inference only: no gradient.
    ///
    /// # Shapes
    /// q `[T, heads · head_dim]`, the new tokens of every sequence one after another: `seq_lens[i]` of sequence i, the last
    /// positions of `caches[i]` → `[T, heads · head_dim]`.
    fn attention_cached(
        q: Tensor<2>,
        caches: &[&LayerCache],
        seq_lens: &[usize],
        heads: usize,
        kv_heads: usize,
    ) -> Tensor<2>
        = [cpu::attention, cube::attention];

    /// Rows of a table. weight `[V, D]`, ids `[T]` → `[T, D]` in the table's dtype.
    fn embedding(weight: Tensor<2>, ids: &[u32]) -> Tensor<2>
        = [cpu::rows, cube::rows];

    /// Rows `positions` of x: `[T, D]` → `[positions, D]`.
    fn select_rows(x: Tensor<2>, positions: &[usize]) -> Tensor<2>
        = [cpu::rows, cube::rows];

    /// x with rows `positions` (ascending, distinct) replaced by `rows`. x `[T, D]`, rows `[positions, D]`.
    fn replace_rows(x: Tensor<2>, positions: &[usize], rows: Tensor<2>) -> Tensor<2>
        = [cpu::rows, cube::rows];

    /// A number whose backward pass starts at `output` with this `gradient` (a tensor without autodiff, shaped like `output`).
    fn with_gradient(output: Tensor<2>, gradient: Tensor<2>) -> Tensor<1>
        = [cpu::seed, cube::seed];

    /// Cross entropy of `hidden · weightᵀ` against `targets`, summed over rows. hidden `[S, D]`, weight `[V, D]`.
    fn cross_entropy_sum(hidden: Tensor<2>, weight: Tensor<2>, targets: &[u32]) -> CrossEntropies
        = [cpu::cross_entropy, cube::cross_entropy];
}

/// `residual + x Wᵀ + b`: [`add`] and [`linear`], for few rows on a GPU in one launch.
pub fn linear_onto(
    residual: Tensor<2>,
    x: impl Into<LinearInput>,
    weight: impl Into<LinearWeight>,
    bias: Option<Tensor<1>>,
) -> Tensor<2> {
    let (x, weight) = (x.into(), weight.into());
    if let Some(sum) = cube!(crate::cube::few::linear_onto(&residual, &x, &weight, bias.as_ref())) {
        return sum;
    }
    add(residual, linear(x, weight, bias))
}

/// `silu(x Wᵀ + b) ∘ (x Uᵀ + c)`: [`swiglu`] of two [`linear`], for few rows on a GPU in one launch.
pub fn gated_linear(
    x: impl Into<LinearInput>,
    [gate, up]: [LinearWeight; 2],
    [gate_bias, up_bias]: [Option<Tensor<1>>; 2],
) -> LinearInput {
    let x = x.into();
    if let Some(output) =
        cube!(crate::cube::few::gated_linear(&x, [&gate, &up], [gate_bias.as_ref(), up_bias.as_ref()]))
    {
        return output;
    }
    let gate = linear(&x, gate, gate_bias);
    swiglu(gate, linear(x, up, up_bias))
}

/// `x Wᵀ + b` for three weights, for few rows on a GPU in one launch; the outputs' rows may lie apart. `None` where there is no such
/// kernel: then [`linear`] is as good.
pub fn joined_linears(
    x: &LinearInput,
    weights: [&LinearWeight; 3],
    biases: [Option<&Tensor<1>>; 3],
) -> Option<[Tensor<2>; 3]> {
    let _ = (x, &weights, &biases);
    cube!(crate::cube::few::joined_linears(x, weights, biases))
}

/// The index of the largest logit of each row, the first of equals; `None` for a row with a NaN or +∞. logits `[rows, V]`. Found where
/// the logits are: only the indices are read. `None` where the device has no kernel for it.
///
/// # Errors
/// A device that cannot give its values.
pub fn most_likely_tokens(logits: &Tensor<2>) -> Option<Result<Vec<Option<u32>>, String>> {
    #[cfg(feature = "cube")]
    if let Some(tokens) = crate::cube::greedy::tokens(logits) {
        let token = |id: u32| (id != crate::cube::greedy::NOT_FINITE).then_some(id);
        let data = tokens.try_into_data().map_err(|error| format!("{error:?}"));
        let ids = data.and_then(|data| data.try_into_vec::<u32>().map_err(|error| format!("{error:?}")));
        return Some(ids.map(|ids| ids.into_iter().map(token).collect()));
    }
    let _ = logits;
    None
}
