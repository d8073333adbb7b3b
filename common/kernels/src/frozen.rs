//! Products with weights in few bits by burn's operations, on any backend: a slice of rows at a time becomes float, in the
//! forward pass and again in the backward step, so that a graph holds no float copy of a weight.

use crate::products::product as matrix_product;
use crate::quantized::QuantizedWeight;
use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::tensor::{DType, Tensor};
use std::ops::Range;

/// Rows that are float at a time.
const ROWS: usize = 1024;

/// `x Wᵀ`: x `[T, in]` → `[T, out]`.
pub fn product(x: Tensor<2>, weight: &QuantizedWeight) -> Tensor<2> {
    if !x.device().is_autodiff() {
        return forward(x, weight);
    }
    let recorded = on_flex(&x, weight);
    #[cfg(feature = "ndarray")]
    let recorded = recorded.or_else(|| on_ndarray(&x, weight));
    #[cfg(feature = "cube")]
    let recorded = recorded.or_else(|| on_gpu(&x, weight));
    // A backend without a step of its own keeps the float rows in its graph.
    recorded.unwrap_or_else(|| {
        let dtype = x.dtype();
        let rows = slices(weight).map(|range| Tensor::from_inner(rows_in(weight, range, dtype)));
        Tensor::cat(rows.map(|rows| matrix_product(x.clone(), rows.transpose())).collect(), 1)
    })
}

fn slices(weight: &QuantizedWeight) -> impl Iterator<Item = Range<usize>> + use<> {
    let [out, _] = weight.dims();
    (0..out).step_by(ROWS).map(move |start| start..out.min(start + ROWS))
}

fn rows_in(weight: &QuantizedWeight, rows: Range<usize>, dtype: DType) -> Tensor<2> {
    weight.dequantized(rows).cast(dtype)
}

/// Without autodiff.
fn forward(x: Tensor<2>, weight: &QuantizedWeight) -> Tensor<2> {
    let dtype = x.dtype();
    let parts = slices(weight).map(|range| matrix_product(x.clone(), rows_in(weight, range, dtype).transpose()));
    Tensor::cat(parts.collect(), 1)
}

/// `d W`, without autodiff: d `[T, out]` → `[T, in]`.
pub(crate) fn input_gradient(d: Tensor<2>, weight: &QuantizedWeight) -> Option<Tensor<2>> {
    let dtype = d.dtype();
    let part = |range: Range<usize>| {
        let d = d.clone().narrow(1, range.start, range.len());
        matrix_product(d, rows_in(weight, range, dtype))
    };
    slices(weight).map(part).reduce(|sum, part| sum + part)
}

/// `x Wᵀ`, with its backward step: the gradient of x.
#[derive(Debug)]
struct Product;

/// A function that records the product in the graph of a backend; it gives `None` for tensors of another one.
macro_rules! recorded_on {
    ($(#[$meta:meta])* $name:ident, $backend:ty) => {
        $(#[$meta])*
        fn $name(x: &Tensor<2>, weight: &QuantizedWeight) -> Option<Tensor<2>> {
            type Differentiable = Autodiff<$backend>;
            let (values, guard) = x.clone().try_into_primitive::<Differentiable>().ok()?.into_parts();
            let output = forward(Tensor::from_primitive::<$backend>(values), weight);
            let output = output.try_into_primitive::<$backend>().ok()?;
            let prepared = Backward::<$backend, 1>::prepare::<NoCheckpointing>(Product, [guard]).compute_bound().stateful();
            let recorded = match prepared {
                OpsKind::Tracked(prepared) => prepared.finish(weight.clone(), output),
                OpsKind::UnTracked(prepared) => prepared.finish(output),
            };
            Some(Tensor::from_primitive::<Differentiable>(recorded))
        }

        $(#[$meta])*
        impl Backward<$backend, 1> for Product {
            type State = QuantizedWeight;

            fn backward(self, ops: Ops<QuantizedWeight, 1>, gradients: &mut Gradients, _: &mut Checkpointer) {
                let gradient = Tensor::from_primitive::<$backend>(gradients.consume::<$backend>(&ops.node));
                let of_input = input_gradient(gradient, &ops.state);
                let of_input = of_input.and_then(|gradient| gradient.try_into_primitive::<$backend>().ok());
                if let ([Some(x)], Some(gradient)) = (ops.parents, of_input) {
                    gradients.register::<$backend>(x.id, gradient);
                }
            }
        }
    };
}

recorded_on!(on_flex, burn::backend::Flex);
recorded_on!(
    #[cfg(feature = "ndarray")]
    #[allow(deprecated)] // As in `device`: it is the second opinion here.
    on_ndarray,
    burn::backend::NdArray
);
recorded_on!(
    #[cfg(feature = "cube")]
    on_gpu,
    burn_cubecl::CubeBackend
);
