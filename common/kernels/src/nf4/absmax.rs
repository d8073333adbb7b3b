//! The largest magnitudes of NF4's blocks, as f32 or, with double quantization, as 8-bit codes around their mean.

use crate::quantized::bytes;
use burn::tensor::{DType, Device, Int, IntDType, Tensor, TensorData};
use std::ops::Range;

/// Magnitudes in a block of their own, unless a file says otherwise.
pub const ABSMAX_BLOCK: usize = 256;

/// Largest magnitudes, one for each block of values.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant)] // A model has some hundreds of them, each beside megabytes of codes.
pub enum Absmax {
    /// f32 `[blocks]`.
    Plain(Tensor<1>),
    /// `map[codes[i]] · absmax[i / block] + offset`.
    Nested {
        /// u8 `[blocks]`.
        codes: Tensor<1, Int>,
        /// f32 `[256]`, ascending: what the codes stand for.
        map: Tensor<1>,
        /// f32 `[⌈blocks / block⌉]`.
        absmax: Tensor<1>,
        /// Magnitudes in a block.
        block: usize,
        /// Their mean.
        offset: f32,
    },
}

/// Bytes of so many magnitudes.
pub(super) fn bytes_of(blocks: usize, double_quant: bool) -> usize {
    const F32: usize = size_of::<f32>();
    if double_quant { blocks + F32 * (blocks.div_ceil(ABSMAX_BLOCK) + 256) } else { F32 * blocks }
}

impl Absmax {
    /// Holds magnitudes, in 8 bits with `double_quant`.
    pub(super) fn new(absmax: Vec<f32>, double_quant: bool, device: &Device) -> Self {
        if double_quant { Self::nested(&absmax, device) } else { Self::Plain(floats(absmax, device)) }
    }

    /// Rounds magnitudes to 8 bits.
    ///
    /// # Source
    /// bitsandbytes `functional.quantize_4bit` with `compress_statistics`, and `quantize_blockwise` on a CPU.
    /// # Differs
    /// The mean is that of f64 sums; torch's f32 sums depend on the machine's vectors and may differ in the last digit.
    fn nested(absmax: &[f32], device: &Device) -> Self {
        let mean = absmax.iter().map(|&value| f64::from(value)).sum::<f64>() / absmax.len().max(1) as f64;
        let (offset, map) = (mean as f32, dynamic_map());
        let (mut codes, mut nested) = (Vec::with_capacity(absmax.len()), Vec::new());
        for block in absmax.chunks(ABSMAX_BLOCK) {
            let centred = block.iter().map(|value| value - offset);
            let largest = centred.clone().fold(0f32, |largest, value| largest.max(value.abs()));
            let inverse = 1.0 / largest;
            codes.extend(centred.map(|value| if largest == 0.0 { 0 } else { nearest(&map, value * inverse) }));
            nested.push(largest);
        }
        let map = floats(map.to_vec(), device);
        Self::Nested {
            codes: codes_of(codes, device),
            map,
            absmax: floats(nested, device),
            block: ABSMAX_BLOCK,
            offset,
        }
    }

    /// Of a file's parts.
    pub fn of_codes(
        (codes, map): (Vec<u8>, Vec<f32>),
        absmax: Vec<f32>,
        block: usize,
        offset: f32,
        device: &Device,
    ) -> Self {
        let (map, absmax) = (floats(map, device), floats(absmax, device));
        Self::Nested { codes: codes_of(codes, device), map, absmax, block, offset }
    }

    /// Of a file's values.
    pub fn of_values(absmax: Vec<f32>, device: &Device) -> Self {
        Self::Plain(floats(absmax, device))
    }

    /// Stored in 8 bits.
    pub fn is_nested(&self) -> bool {
        matches!(self, Self::Nested { .. })
    }

    /// The magnitudes of some blocks, f32, on any backend.
    pub(super) fn values(&self, blocks: Range<usize>) -> Tensor<1> {
        let len = blocks.len();
        match self {
            Self::Plain(absmax) => absmax.clone().narrow(0, blocks.start, len),
            Self::Nested { codes, map, absmax, block, offset } => {
                let codes = codes.clone().narrow(0, blocks.start, len).cast(IntDType::I32);
                let outer: Vec<i32> = blocks.map(|index| (index / block) as i32).collect();
                let outer = Tensor::<1, Int>::from_data(TensorData::new(outer, [len]), (&absmax.device(), DType::I32));
                map.clone().select(0, codes) * absmax.clone().select(0, outer) + *offset
            }
        }
    }

    pub(super) fn bytes(&self) -> Vec<Vec<u8>> {
        match self {
            Self::Plain(absmax) => vec![bytes(absmax.clone().into_data())],
            Self::Nested { codes, map, absmax, offset, .. } => vec![
                bytes(codes.clone().into_data()),
                bytes(map.clone().into_data()),
                bytes(absmax.clone().into_data()),
                offset.to_le_bytes().to_vec(),
            ],
        }
    }
}

fn floats(values: Vec<f32>, device: &Device) -> Tensor<1> {
    let len = values.len();
    Tensor::from_data(TensorData::new(values, [len]), (device, DType::F32))
}

fn codes_of(codes: Vec<u8>, device: &Device) -> Tensor<1, Int> {
    let len = codes.len();
    Tensor::from_data(TensorData::new(codes, [len]), (device, DType::U8))
}

/// The index of the value in an ascending table that is nearest; halfway the lower one.
fn nearest(map: &[f32; 256], value: f32) -> u8 {
    let below = map.partition_point(|entry| *entry <= value).saturating_sub(1);
    match map.get(below + 1) {
        Some(above) if (value - above).abs() < (value - map[below]).abs() => (below + 1) as u8,
        _ => below as u8,
    }
}

/// The 256 values of an 8-bit code: magnitudes from 10⁻⁶ to 1, the larger the finer.
///
/// # Source
/// bitsandbytes `functional.create_dynamic_map`.
pub fn dynamic_map() -> [f32; 256] {
    const EXPONENTS: usize = 7;
    let mut values = Vec::with_capacity(256);
    for exponent in 0..EXPONENTS {
        let scale = 10f64.powi(exponent as i32 - (EXPONENTS as i32 - 1)) as f32;
        let steps = 1usize << exponent;
        let step = (1.0f32 - 0.1) / steps as f32;
        // As torch.linspace does it: each half from its own end, rounded once.
        let bound = |index: usize| match index < steps.div_ceil(2) {
            true => step.mul_add(index as f32, 0.1),
            false => (-step).mul_add((steps - index) as f32, 1.0),
        };
        let means = (0..steps).map(|index| (bound(index) + bound(index + 1)) / 2.0);
        values.extend(means.flat_map(|mean| [scale * mean, -scale * mean]));
    }
    values.extend([0.0, 1.0]);
    values.sort_by(f32::total_cmp);
    std::array::from_fn(|index| values[index])
}
