//! SwiGLU, GELU, QuickGELU and SiLU: one launch forward, one backward.

use super::{Backend, UNITS, cubes_of_units, element, empty, incoming, matrix, record, rows_and_width, vector_size};
use crate::LinearInput;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::tensor::Tensor;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::{Tensor as Buffer, *};
use std::fmt::Debug;
use std::marker::PhantomData;

/// See [`crate::gelu`].
pub fn gelu(x: &Tensor<2>) -> Option<LinearInput> {
    activate::<Gelu>(x).map(Into::into)
}

/// See [`crate::gelu_tanh`].
pub fn gelu_tanh(x: &Tensor<2>) -> Option<LinearInput> {
    activate::<GeluTanh>(x).map(Into::into)
}

/// See [`crate::quick_gelu`].
pub fn quick_gelu(x: &Tensor<2>) -> Option<LinearInput> {
    activate::<QuickGelu>(x).map(Into::into)
}

/// See [`crate::silu`].
pub fn silu(x: &Tensor<2>) -> Option<Tensor<2>> {
    activate::<Silu>(x)
}

/// An activation and its derivative, in f32.
#[cube]
trait Unary: 'static + Send + Sync {
    fn value<N: Size>(x: Vector<f32, N>) -> Vector<f32, N>;
    fn derivative<N: Size>(x: Vector<f32, N>) -> Vector<f32, N>;
}

#[cube]
fn sigmoid<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    Vector::new(1.0f32) / (Vector::new(1.0f32) + (-x).exp())
}

/// # Source
/// Eigen's `generic_fast_erf_float`, as in `cpu::simd`.
#[cube]
fn erf<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let x = x.clamp(Vector::new(-4.0f32), Vector::new(4.0f32));
    let y = x * x;
    let p = Vector::new(-2.726_142_3e-10f32);
    let p = p * y + Vector::new(2.770_681_4e-8f32);
    let p = p * y + Vector::new(-2.101_024e-6f32);
    let p = p * y + Vector::new(-5.692_506_5e-5f32);
    let p = p * y + Vector::new(-7.349_906_3e-4f32);
    let p = p * y + Vector::new(-2.954_6e-3f32);
    let p = p * y + Vector::new(-1.609_603_3e-2f32);
    let q = Vector::new(-1.456_607_2e-5f32);
    let q = q * y + Vector::new(-2.133_740_6e-4f32);
    let q = q * y + Vector::new(-1.682_827e-3f32);
    let q = q * y + Vector::new(-7.373_329_3e-3f32);
    let q = q * y + Vector::new(-1.426_473_9e-2f32);
    x * p / q
}

#[derive(Debug)]
struct Gelu;
#[derive(Debug)]
struct GeluTanh;
#[derive(Debug)]
struct QuickGelu;
#[derive(Debug)]
struct Silu;

/// `½ (1 + erf(x / √2))`
#[cube]
fn distribution<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    Vector::new(0.5f32) * (Vector::new(1.0f32) + erf::<N>(x * Vector::new(std::f32::consts::FRAC_1_SQRT_2)))
}

#[cube]
impl Unary for Gelu {
    fn value<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
        x * distribution::<N>(x)
    }

    fn derivative<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
        // 1 / √(2π)
        let density = Vector::new(0.398_942_3f32) * (x * x * Vector::new(-0.5f32)).exp();
        distribution::<N>(x) + x * density
    }
}

/// `sigmoid(2 √(2/π) (x + 0.044715 x³))`, which is `½ (1 + tanh(√(2/π) (x + 0.044715 x³)))`.
#[cube]
fn tanh_gate<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    sigmoid::<N>(Vector::new(1.595_769_2f32) * x * (Vector::new(1.0f32) + Vector::new(0.044_715f32) * x * x))
}

#[cube]
impl Unary for GeluTanh {
    fn value<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
        x * tanh_gate::<N>(x)
    }

    fn derivative<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
        let one = Vector::new(1.0f32);
        let s = tanh_gate::<N>(x);
        // 3 · 0.044715
        let inner = one + Vector::new(0.134_145f32) * x * x;
        s * (one + x * (one - s) * Vector::new(1.595_769_2f32) * inner)
    }
}

#[cube]
impl Unary for QuickGelu {
    fn value<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
        sigmoid::<N>(Vector::new(1.702f32) * x) * x
    }

    fn derivative<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
        let one = Vector::new(1.0f32);
        let s = sigmoid::<N>(Vector::new(1.702f32) * x);
        s * (one + Vector::new(1.702f32) * x * (one - s))
    }
}

#[cube]
impl Unary for Silu {
    fn value<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
        sigmoid::<N>(x) * x
    }

    fn derivative<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
        let one = Vector::new(1.0f32);
        let s = sigmoid::<N>(x);
        s * (one + x * (one - s))
    }
}

/// A unit for each vector.
#[cube(launch)]
fn values<F: Float, N: Size, A: Unary>(
    x: &Buffer<Vector<F, N>>,
    output: &mut Buffer<Vector<F, N>>,
    vectors: u32,
    #[define(F)] _dtype: ElemType,
) {
    let at = ABSOLUTE_POS;
    if at < vectors as usize {
        output[at] = Vector::cast_from(A::value::<N>(Vector::<f32, N>::cast_from(x[at])));
    }
}

/// A unit for each vector.
#[cube(launch)]
fn gradients<F: Float, N: Size, A: Unary>(
    x: &Buffer<Vector<F, N>>,
    gradient: &Buffer<Vector<F, N>>,
    of_x: &mut Buffer<Vector<F, N>>,
    vectors: u32,
    #[define(F)] _dtype: ElemType,
) {
    let at = ABSOLUTE_POS;
    if at < vectors as usize {
        let derivative = A::derivative::<N>(Vector::<f32, N>::cast_from(x[at]));
        of_x[at] = Vector::cast_from(Vector::<f32, N>::cast_from(gradient[at]) * derivative);
    }
}

fn activate<A: Unary + Debug>(x: &Tensor<2>) -> Option<Tensor<2>> {
    let x = matrix(x)?;
    let [rows, width] = rows_and_width(&x.values);
    let output = empty(&x.values, [rows, width], x.values.dtype);
    let size = vector_size(rows * width, &[&x.values]);
    if rows * width > 0 {
        values::launch::<A>(
            &x.values.client,
            cubes_of_units(&x.values, rows * width / size),
            CubeDim::new_1d(UNITS),
            size,
            x.values.clone().into_tensor_arg(),
            output.clone().into_tensor_arg(),
            (rows * width / size) as u32,
            element(&x.values),
        );
    }
    Some(record(UnaryStep::<A>(PhantomData), [x.node], || x.values, output))
}

#[derive(Debug)]
struct UnaryStep<A>(PhantomData<A>);

impl<A: Unary + Debug> Backward<Backend, 1> for UnaryStep<A> {
    type State = CubeTensor;

    fn backward(self, ops: Ops<CubeTensor, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let gradient = incoming(&ops, grads);
        let x = ops.state;
        let [rows, width] = rows_and_width(&x);
        let of_x = empty(&x, [rows, width], x.dtype);
        let size = vector_size(rows * width, &[&x, &gradient]);
        if rows * width > 0 {
            gradients::launch::<A>(
                &x.client,
                cubes_of_units(&x, rows * width / size),
                CubeDim::new_1d(UNITS),
                size,
                x.clone().into_tensor_arg(),
                gradient.into_tensor_arg(),
                of_x.clone().into_tensor_arg(),
                (rows * width / size) as u32,
                element(&x),
            );
        }
        if let [Some(parent)] = ops.parents {
            grads.register::<Backend>(parent.id, of_x);
        }
    }
}

/// See [`crate::swiglu`].
pub fn swiglu(gate: &Tensor<2>, up: &Tensor<2>) -> Option<LinearInput> {
    let (gate, up) = (matrix(gate)?, matrix(up)?);
    let [rows, width] = rows_and_width(&gate.values);
    if rows_and_width(&up.values) != [rows, width] || up.values.dtype != gate.values.dtype {
        return None;
    }
    let output = empty(&gate.values, [rows, width], gate.values.dtype);
    let size = vector_size(rows * width, &[&gate.values, &up.values]);
    if rows * width > 0 {
        swiglu_values::launch(
            &gate.values.client,
            cubes_of_units(&gate.values, rows * width / size),
            CubeDim::new_1d(UNITS),
            size,
            gate.values.clone().into_tensor_arg(),
            up.values.clone().into_tensor_arg(),
            output.clone().into_tensor_arg(),
            (rows * width / size) as u32,
            element(&gate.values),
        );
    }
    let output: Tensor<2> = record(SwiGlu, [gate.node, up.node], || (gate.values, up.values), output);
    Some(output.into())
}

/// A unit for each vector. As the definition: `silu(gate)` is in the activations' dtype when it is multiplied.
#[cube(launch)]
fn swiglu_values<F: Float, N: Size>(
    gate: &Buffer<Vector<F, N>>,
    up: &Buffer<Vector<F, N>>,
    output: &mut Buffer<Vector<F, N>>,
    vectors: u32,
    #[define(F)] _dtype: ElemType,
) {
    let at = ABSOLUTE_POS;
    if at < vectors as usize {
        let gate = Vector::<f32, N>::cast_from(gate[at]);
        let silu = Vector::<F, N>::cast_from(gate * sigmoid::<N>(gate));
        output[at] = Vector::cast_from(Vector::<f32, N>::cast_from(silu) * Vector::<f32, N>::cast_from(up[at]));
    }
}

/// A unit for each vector.
#[cube(launch)]
fn swiglu_gradients<F: Float, N: Size>(
    gate: &Buffer<Vector<F, N>>,
    up: &Buffer<Vector<F, N>>,
    gradient: &Buffer<Vector<F, N>>,
    of_gate: &mut Buffer<Vector<F, N>>,
    of_up: &mut Buffer<Vector<F, N>>,
    vectors: u32,
    #[define(F)] _dtype: ElemType,
) {
    let at = ABSOLUTE_POS;
    if at < vectors as usize {
        let one = Vector::new(1.0f32);
        let gate = Vector::<f32, N>::cast_from(gate[at]);
        let gradient = Vector::<f32, N>::cast_from(gradient[at]);
        let s = sigmoid::<N>(gate);
        let up = Vector::<f32, N>::cast_from(up[at]);
        of_gate[at] = Vector::cast_from(gradient * up * (s * (one + gate * (one - s))));
        of_up[at] = Vector::cast_from(gradient * gate * s);
    }
}

#[derive(Debug)]
struct SwiGlu;

impl Backward<Backend, 2> for SwiGlu {
    type State = (CubeTensor, CubeTensor);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let gradient = incoming(&ops, grads);
        let (gate, up) = ops.state;
        let [rows, width] = rows_and_width(&gate);
        let [of_gate, of_up] = [(); 2].map(|()| empty(&gate, [rows, width], gate.dtype));
        let size = vector_size(rows * width, &[&gate, &up, &gradient]);
        if rows * width > 0 {
            swiglu_gradients::launch(
                &gate.client,
                cubes_of_units(&gate, rows * width / size),
                CubeDim::new_1d(UNITS),
                size,
                gate.clone().into_tensor_arg(),
                up.into_tensor_arg(),
                gradient.into_tensor_arg(),
                of_gate.clone().into_tensor_arg(),
                of_up.clone().into_tensor_arg(),
                (rows * width / size) as u32,
                element(&gate),
            );
        }
        let [gate, up] = ops.parents;
        if let Some(gate) = gate {
            grads.register::<Backend>(gate.id, of_gate);
        }
        if let Some(up) = up {
            grads.register::<Backend>(up.id, of_up);
        }
    }
}
