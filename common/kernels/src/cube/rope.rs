//! Rotary position embedding: one launch forward, one backward, which rotates back.

use super::{Backend, UNITS, cubes_of_units, element, empty, incoming, matrix, record, rows_and_width, vector_size};
use crate::Rope;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::tensor::Tensor;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::{Tensor as Buffer, *};

/// See [`crate::rope`].
pub fn rope(x: &Tensor<2>, rope: &Rope, heads: usize) -> Option<Tensor<2>> {
    let (x, cos, sin) = (matrix(x)?, matrix(&rope.cos)?, matrix(&rope.sin)?);
    let [tokens, width] = rows_and_width(&x.values);
    let table = [tokens, width / heads / 2];
    if rows_and_width(&cos.values) != table
        || rows_and_width(&sin.values) != table
        || cos.values.dtype != sin.values.dtype
    {
        return None;
    }
    let rotation = Rotation { cos: cos.values, sin: sin.values, heads };
    let output = rotation.apply(&x.values, 1.0);
    Some(record(RopeStep, [x.node], || rotation, output))
}

#[derive(Clone, Debug)]
struct Rotation {
    cos: CubeTensor,
    sin: CubeTensor,
    heads: usize,
}

impl Rotation {
    /// The rotated tokens; `sign` −1 rotates back.
    fn apply(&self, x: &CubeTensor, sign: f32) -> CubeTensor {
        let Self { cos, sin, heads } = self;
        let ([tokens, width], [_, half]) = (rows_and_width(x), rows_and_width(cos));
        let output = empty(x, [tokens, width], x.dtype);
        let size = vector_size(half, &[x, cos, sin]);
        let units = tokens * heads * half / size;
        if units > 0 {
            rotate::launch(
                &x.client,
                cubes_of_units(x, units),
                CubeDim::new_1d(UNITS),
                size,
                x.clone().into_tensor_arg(),
                cos.clone().into_tensor_arg(),
                sin.clone().into_tensor_arg(),
                output.clone().into_tensor_arg(),
                units as u32,
                (half / size) as u32,
                *heads as u32,
                sign,
                [element(x), element(cos)],
            );
        }
        output
    }
}

/// A unit for each vector of a head's first half, and the one of its second half that belongs to it.
#[cube(launch)]
fn rotate<F: Float, C: Float, N: Size>(
    x: &Buffer<Vector<F, N>>,
    cos: &Buffer<Vector<C, N>>,
    sin: &Buffer<Vector<C, N>>,
    output: &mut Buffer<Vector<F, N>>,
    units: u32,
    half: u32,
    heads: u32,
    sign: f32,
    #[define(F, C)] _dtypes: [ElemType; 2],
) {
    let unit = ABSOLUTE_POS as u32;
    if unit < units {
        let (at, of_head) = (unit % half, unit / half);
        let first = (of_head * 2 * half + at) as usize;
        let second = first + half as usize;
        let angle = (of_head / heads * half + at) as usize;
        let cos = Vector::<f32, N>::cast_from(cos[angle]);
        let sin = Vector::<f32, N>::cast_from(sin[angle]) * Vector::new(sign);
        let (a, b) = (Vector::<f32, N>::cast_from(x[first]), Vector::<f32, N>::cast_from(x[second]));
        output[first] = Vector::cast_from(a * cos - b * sin);
        output[second] = Vector::cast_from(b * cos + a * sin);
    }
}

#[derive(Debug)]
struct RopeStep;

impl Backward<Backend, 1> for RopeStep {
    type State = Rotation;

    fn backward(self, ops: Ops<Rotation, 1>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let gradient = incoming(&ops, gradients);
        if let [Some(x)] = ops.parents {
            gradients.register::<Backend>(x.id, ops.state.apply(&gradient, -1.0));
        }
    }
}
