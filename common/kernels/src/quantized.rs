//! Weights in few bits, and the weight of a linear layer in any form.

use crate::int8::Int8Weight;
use crate::nf4::{self, Nf4Weight};
use burn::tensor::Tensor;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// A format of rounded weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantization {
    /// 8-bit integers, one scale for each output channel.
    Int8,
    /// 4-bit NormalFloat in blocks of [`nf4::BLOCK`] values.
    Nf4 {
        /// The blocks' largest magnitudes are stored in 8 bits, too.
        double_quant: bool,
    },
}

impl Quantization {
    /// Bytes of a weight `[out, in]`.
    pub fn bytes_of(self, [rows, width]: [usize; 2]) -> usize {
        match self {
            Self::Int8 => rows * width + rows * size_of::<f32>(),
            Self::Nf4 { double_quant } => nf4::bytes_of(rows * width, double_quant),
        }
    }
}

impl fmt::Display for Quantization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Int8 => "int8",
            Self::Nf4 { double_quant: false } => "nf4",
            Self::Nf4 { double_quant: true } => "nf4 with double quantization",
        })
    }
}

/// A weight matrix `[out, in]` in few bits. It has no gradient. A clone shares the codes.
#[derive(Clone, Debug)]
pub enum QuantizedWeight {
    /// See [`Int8Weight`].
    Int8(Arc<Int8Weight>),
    /// See [`Nf4Weight`].
    Nf4(Arc<Nf4Weight>),
}

impl QuantizedWeight {
    /// Rounds a weight of any float dtype.
    pub fn quantize(weight: Tensor<2>, format: Quantization) -> Self {
        match format {
            Quantization::Int8 => Int8Weight::quantize(weight).into(),
            Quantization::Nf4 { double_quant } => Nf4Weight::quantize(weight, double_quant).into(),
        }
    }

    /// out, in.
    pub fn dims(&self) -> [usize; 2] {
        match self {
            Self::Int8(weight) => weight.codes.dims(),
            Self::Nf4(weight) => weight.shape,
        }
    }

    /// Its format.
    pub fn format(&self) -> Quantization {
        match self {
            Self::Int8(_) => Quantization::Int8,
            Self::Nf4(weight) => Quantization::Nf4 { double_quant: weight.absmax.is_nested() },
        }
    }

    /// Some rows in f32, on the device without autodiff.
    pub fn dequantized(&self, rows: Range<usize>) -> Tensor<2> {
        match self {
            Self::Int8(weight) => weight.dequantized(rows),
            Self::Nf4(weight) => weight.dequantized(rows),
        }
    }

    /// Rows `ids` in f32: `[T]` → `[T, in]`.
    pub fn rows(&self, ids: &[u32]) -> Tensor<2> {
        match self {
            Self::Int8(weight) => weight.rows(ids),
            Self::Nf4(weight) => {
                let row = |&id: &u32| weight.dequantized(id as usize..id as usize + 1);
                Tensor::cat(ids.iter().map(row).collect(), 0)
            }
        }
    }

    /// Moves the codes into huge pages where system and backend can.
    pub fn move_into_huge_pages(&self) {
        match self {
            Self::Int8(weight) => crate::cpu::move_codes_into_huge_pages(&weight.codes),
            Self::Nf4(weight) => crate::cpu::move_codes_into_huge_pages(&weight.codes),
        }
    }

    /// What it consists of, in an order that never changes: little-endian bytes, as its hash needs them.
    pub fn bytes(&self) -> Vec<Vec<u8>> {
        match self {
            Self::Int8(weight) => {
                vec![bytes(weight.codes.clone().into_data()), bytes(weight.scales.clone().into_data())]
            }
            Self::Nf4(weight) => weight.bytes(),
        }
    }
}

impl From<Int8Weight> for QuantizedWeight {
    fn from(weight: Int8Weight) -> Self {
        Self::Int8(Arc::new(weight))
    }
}

impl From<Nf4Weight> for QuantizedWeight {
    fn from(weight: Nf4Weight) -> Self {
        Self::Nf4(Arc::new(weight))
    }
}

/// The bytes of a tensor's values.
pub(crate) fn bytes(data: burn::tensor::TensorData) -> Vec<u8> {
    data.bytes().to_vec()
}

/// The weight of a linear layer, `[out, in]`.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant)] // One is made for each product and lives as long as that.
pub enum LinearWeight {
    /// In a float dtype; may be trained.
    Float(Tensor<2>),
    /// In few bits; frozen.
    Quantized(QuantizedWeight),
}

impl LinearWeight {
    /// out, in.
    pub fn dims(&self) -> [usize; 2] {
        match self {
            Self::Float(weight) => weight.dims(),
            Self::Quantized(weight) => weight.dims(),
        }
    }
}

impl From<Tensor<2>> for LinearWeight {
    fn from(weight: Tensor<2>) -> Self {
        Self::Float(weight)
    }
}

impl From<&Tensor<2>> for LinearWeight {
    fn from(weight: &Tensor<2>) -> Self {
        Self::Float(weight.clone())
    }
}

impl From<QuantizedWeight> for LinearWeight {
    fn from(weight: QuantizedWeight) -> Self {
        Self::Quantized(weight)
    }
}

impl From<&LinearWeight> for LinearWeight {
    fn from(weight: &LinearWeight) -> Self {
        weight.clone()
    }
}
