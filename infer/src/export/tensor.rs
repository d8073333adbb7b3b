//! A tensor on its way from a checkpoint to a GGUF file: its name there, and how its data are rearranged.

use super::gguf::{GgufTensor, TensorType};
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
    fn apply(&self, shape: &[usize], bytes: Vec<u8>) -> Vec<u8> {
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

    /// The tensor to write, in llama.cpp's dtypes: matrices in f16, everything else in f32.
    pub fn write_as(self, Target { name, order }: Target) -> GgufTensor<'static> {
        // Positions are added to activations, which llama.cpp does in f32.
        let is_matrix = self.f16.shape.len() > 1 && !name.contains("position_embd");
        let (kind, source) = if is_matrix { (TensorType::F16, self.f16) } else { (TensorType::F32, self.f32) };
        let TensorSource { shape, bytes, .. } = source;
        let (checked, dims) = (name.clone(), shape.clone());
        let bytes = Box::new(move || Ok(order.apply(&dims, finite(&checked, kind, bytes()?)?)));
        GgufTensor { name, shape, kind, bytes }
    }
}

/// A tensor that the checkpoint does not have, in f32.
pub fn vector(name: impl Into<String>, values: Vec<f32>) -> GgufTensor<'static> {
    let bytes = from_f32(&values, WeightDtype::F32);
    GgufTensor { name: name.into(), shape: vec![values.len()], kind: TensorType::F32, bytes: Box::new(|| Ok(bytes)) }
}

/// Refuses values that f16 cannot hold.
fn finite(name: &str, kind: TensorType, bytes: Vec<u8>) -> Result<Vec<u8>> {
    let bits = |pair: &[u8; 2]| f16::from_bits(u16::from_le_bytes(*pair));
    if kind == TensorType::F16 && bytes.as_chunks::<2>().0.iter().any(|pair| !bits(pair).is_finite()) {
        let expected = "values within ±65504";
        return Err(Error::invalid(format!("tensor {name}"), "a value that f16 cannot hold", expected, "report this"));
    }
    Ok(bytes)
}
