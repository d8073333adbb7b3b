//! A tensor on its way from a checkpoint to a GGUF file: its name there, and how its data are rearranged.

use super::blocks::TensorType;
use super::gguf::GgufTensor;
use base::{Error, Result};
use half::f16;
use model::config::WeightDtype;
use store::checkpoint::{TensorSource, from_f32};

/// Name and rearrangement of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// llama.cpp's name.
    pub name: String,
    /// What is done with the data.
    pub order: Order,
}

/// How the data are rearranged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// As they are.
    Kept,
    /// The two halves of the rows of each head are interleaved: llama.cpp rotates neighbouring channels of a Llama.
    InterleavedHalves {
        /// Heads of the projection.
        heads: usize,
    },
    /// The inverse: of each head's interleaved rows, the even ones come first.
    SeparatedHalves {
        /// Rows in a half.
        pairs: usize,
    },
    /// A row's equally wide blocks are put in this order.
    Blocks(Vec<usize>),
}

impl Target {
    /// A tensor that is kept as it is.
    pub fn kept(name: impl Into<String>) -> Self {
        Self { name: name.into(), order: Order::Kept }
    }
}

impl Order {
    /// The data of a tensor of this shape in the new order.
    pub fn apply(&self, shape: &[usize], bytes: Vec<u8>) -> Vec<u8> {
        let rows = shape[0];
        let row = bytes.len() / rows.max(1);
        match self {
            Self::Kept => bytes,
            Self::InterleavedHalves { heads } => {
                let pairs = rows / heads / 2;
                let source = |head: usize, pair: usize, half: usize| (2 * head + half) * pairs + pair;
                let of_head = |head| (0..pairs).flat_map(move |pair| [0, 1].map(|half| source(head, pair, half)));
                (0..*heads).flat_map(of_head).flat_map(|from| &bytes[from * row..][..row]).copied().collect()
            }
            Self::SeparatedHalves { pairs } => {
                let head =
                    |start: usize| (0..2).flat_map(move |half| (0..*pairs).map(move |pair| start + 2 * pair + half));
                let from = (0..rows).step_by(2 * pairs).flat_map(head);
                from.flat_map(|from| &bytes[from * row..][..row]).copied().collect()
            }
            Self::Blocks(order) => {
                let block = row / order.len();
                let of_row = |start: usize| {
                    order.iter().flat_map(move |from| (start + from * block)..(start + (from + 1) * block))
                };
                (0..rows).flat_map(|index| of_row(index * row)).map(|index| bytes[index]).collect()
            }
        }
    }
}

impl Order {
    /// The order that gives back the data that this one has rearranged.
    pub fn inverse(&self, shape: &[usize]) -> Self {
        match self {
            Self::Kept => Self::Kept,
            Self::Blocks(order) => {
                let mut inverse = vec![0; order.len()];
                order.iter().enumerate().for_each(|(to, &from)| inverse[from] = to);
                Self::Blocks(inverse)
            }
            Self::InterleavedHalves { heads } => Self::SeparatedHalves { pairs: shape[0] / heads / 2 },
            Self::SeparatedHalves { pairs } => Self::InterleavedHalves { heads: shape[0] / pairs / 2 },
        }
    }
}

/// A parameter in both dtypes; neither is read before it is written.
pub struct Source {
    f16: TensorSource<'static>,
    f32: TensorSource<'static>,
}

impl Source {
    /// Both dtypes of all parameters, in the same order.
    pub fn pairs(f16: Vec<TensorSource<'static>>, f32: Vec<TensorSource<'static>>) -> impl Iterator<Item = Self> {
        f16.into_iter().zip(f32).map(|(f16, f32)| Self { f16, f32 })
    }

    /// Its published name.
    pub fn name(&self) -> &str {
        &self.f16.name
    }

    /// The tensor to write: a matrix in the type that `kind_of` gives for its name in the file and its width, everything else in f32.
    pub fn write_as(
        self,
        Target { name, order }: Target,
        kind_of: impl Fn(&str, usize) -> TensorType,
    ) -> GgufTensor<'static> {
        // Positions are added to activations, which llama.cpp does in f32.
        let is_matrix = self.f16.shape.len() > 1 && !name.contains("position_embd");
        let width = self.f16.shape.last().copied().unwrap_or_default();
        let kind = if is_matrix { kind_of(&name, width) } else { TensorType::F32 };
        let TensorSource { shape, bytes, .. } = if kind == TensorType::F16 { self.f16 } else { self.f32 };
        let (checked, dims) = (name.clone(), shape.clone());
        let bytes = Box::new(move || {
            let bytes = order.apply(&dims, bytes()?);
            match kind {
                TensorType::F16 => finite_f16(&checked, bytes),
                TensorType::F32 => Ok(bytes),
                quantized => quantize(&checked, quantized, &bytes),
            }
        });
        GgufTensor { name, shape, kind, bytes }
    }
}

/// A tensor that the checkpoint does not have, in f32.
pub fn vector(name: impl Into<String>, values: Vec<f32>) -> GgufTensor<'static> {
    let bytes = from_f32(&values, WeightDtype::F32);
    GgufTensor { name: name.into(), shape: vec![values.len()], kind: TensorType::F32, bytes: Box::new(|| Ok(bytes)) }
}

/// Blocks of f32 values; refuses values whose scales f16 cannot hold.
fn quantize(name: &str, kind: TensorType, bytes: &[u8]) -> Result<Vec<u8>> {
    /// Scales are the largest magnitude of a block divided by at least this.
    const DIVISOR: f32 = 16.0;
    let values = TensorType::F32.decode(bytes);
    let limit = f16::MAX.to_f32() * DIVISOR;
    match values.iter().find(|value| !value.is_finite() || value.abs() > limit) {
        Some(value) => Err(unstorable(name, &value.to_string(), kind.name(), limit)),
        None => Ok(kind.encode(&values)),
    }
}

/// Refuses values that f16 cannot hold.
fn finite_f16(name: &str, bytes: Vec<u8>) -> Result<Vec<u8>> {
    let bits = |pair: &[u8; 2]| f16::from_bits(u16::from_le_bytes(*pair));
    match bytes.as_chunks::<2>().0.iter().any(|pair| !bits(pair).is_finite()) {
        true => Err(unstorable(name, "a larger or missing value", "f16", f16::MAX.to_f32())),
        false => Ok(bytes),
    }
}

fn unstorable(name: &str, found: &str, kind: &str, limit: f32) -> Error {
    let expected = format!("values within ±{limit}, which {kind} can hold");
    Error::invalid(
        format!("tensor {name}"),
        found,
        expected,
        "look for the divergence in training; keep the safetensors",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_have_inverses() {
        let shape = [24, 6];
        let bytes: Vec<u8> = (0..24 * 6 * 2).map(|index| (index % 251) as u8).collect();
        for order in [Order::Kept, Order::InterleavedHalves { heads: 3 }, Order::Blocks(vec![2, 0, 1])] {
            let changed = order.apply(&shape, bytes.clone());
            assert_eq!(order == Order::Kept, changed == bytes, "{order:?}");
            assert_eq!(order.inverse(&shape).apply(&shape, changed), bytes, "{order:?}");
            assert_eq!(order.inverse(&shape).inverse(&shape), order);
        }
    }
}
