//! Linear layers: beside the products, a launch for the bias and one for its gradient. Gradients of weights are made as the weights
//! lie: those of burn's product with a transposed weight are transposed, and each reader would copy them.

use super::lora::{primitive, sum, tensor};
use super::{Backend, MOST_VALUES, matrix, record, rows_and_width, vector};
use crate::{LinearInput, LinearWeight, product};
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::tensor::Tensor;
use burn_cubecl::tensor::CubeTensor;

/// See [`crate::linear`]. Declines weights in few bits, and weights and biases in another dtype than x.
pub fn linear(x: &LinearInput, weight: &LinearWeight, bias: Option<&Tensor<1>>) -> Option<Tensor<2>> {
    let LinearWeight::Float(weight) = weight else { return None };
    let dtype = x.values.dtype();
    if weight.dtype() != dtype || bias.is_some_and(|bias| bias.dtype() != dtype) {
        return None;
    }
    let (x, weight) = (matrix(&x.values)?, matrix(weight)?);
    let ([rows, _], [out, _]) = (rows_and_width(&x.values), rows_and_width(&weight.values));
    if rows * out > MOST_VALUES {
        return None;
    }
    let bias = match bias {
        Some(bias) => Some(vector(bias, out)?),
        None => None,
    };
    let base = primitive(product(tensor(&x.values), tensor(&weight.values).transpose()))?;
    let output = match &bias {
        Some(bias) => sum(base, None, Some(&bias.values)),
        None => base,
    };
    let saved =
        Saved { x: weight.node.tracked().then_some(x.values), weight: x.node.tracked().then_some(weight.values) };
    Some(match bias {
        Some(bias) => record(LinearStep, [x.node, weight.node, bias.node], || saved, output),
        None => record(LinearStep, [x.node, weight.node], || saved, output),
    })
}

/// What the backward steps need.
#[derive(Clone, Debug)]
struct Saved {
    /// For the weight's gradient.
    x: Option<CubeTensor>,
    /// For that of x.
    weight: Option<CubeTensor>,
}

/// Parents are x, weight and the bias, if there is one.
#[derive(Debug)]
struct LinearStep;

impl<const N: usize> Backward<Backend, N> for LinearStep {
    type State = Saved;

    fn backward(self, ops: Ops<Saved, N>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let d = tensor(&super::incoming(&ops, gradients));
        let mut parents = ops.parents.into_iter();
        let mut next = || parents.next().flatten().map(|parent| parent.id);
        let (x, weight, bias) = (next(), next(), next());
        let Saved { x: input, weight: values } = ops.state;
        let of_weight = || primitive(product(d.clone().transpose(), tensor(&input?)));
        if let Some((weight, gradient)) = weight.and_then(|weight| Some((weight, of_weight()?))) {
            gradients.register::<Backend>(weight, gradient);
        }
        let of_bias = || primitive(d.clone().sum_dim(0).squeeze_dim::<1>(0));
        if let Some((bias, gradient)) = bias.and_then(|bias| Some((bias, of_bias()?))) {
            gradients.register::<Backend>(bias, gradient);
        }
        let of_x = || primitive(product(d.clone(), tensor(&values?)));
        if let Some((x, gradient)) = x.and_then(|x| Some((x, of_x()?))) {
            gradients.register::<Backend>(x, gradient);
        }
    }
}
