//! Weights in 8-bit integers: one scale for each row (output channel), activations in f32.

use burn::tensor::{DType, Int, Tensor, TensorData};
use std::ops::Range;

/// Rows rounded at a time.
const ROUNDED_ROWS: usize = 1024;

/// A weight matrix in 8-bit integers: `codes[n, k] · scales[n]` stands for `W[n, k]`.
#[derive(Clone, Debug)]
pub struct Int8Weight {
    /// i8 `[out, in]`, −127..=127.
    pub codes: Tensor<2, Int>,
    /// f32 `[out]`.
    pub scales: Tensor<1>,
}

impl Int8Weight {
    /// Rounds a weight `[out, in]` of any float format: each row's largest magnitude becomes ±127.
    pub fn quantize(weight: Tensor<2>) -> Self {
        let ([rows, width], device) = (weight.dims(), weight.device().without_autodiff());
        let (mut codes, mut scales) = (Vec::with_capacity(rows * width), Vec::with_capacity(rows));
        for start in (0..rows).step_by(ROUNDED_ROWS) {
            let part = weight.clone().narrow(0, start, ROUNDED_ROWS.min(rows - start)).cast(DType::F32);
            let values = part.into_data();
            for row in values.as_slice::<f32>().unwrap_or_default().chunks_exact(width.max(1)) {
                let scale = row.iter().fold(0f32, |largest, value| largest.max(value.abs())) / 127.0;
                let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
                codes.extend(row.iter().map(|value| (value * inverse).round() as i8));
                scales.push(scale);
            }
        }
        Self {
            codes: Tensor::from_data(TensorData::new(codes, [rows, width]), (&device, DType::I8)),
            scales: Tensor::from_data(TensorData::new(scales, [rows]), (&device, DType::F32)),
        }
    }

    /// Some rows in f32: `[rows, in]`, on the device without autodiff.
    pub fn dequantized(&self, rows: Range<usize>) -> Tensor<2> {
        crate::cpu::int8_rows(self, rows.clone()).unwrap_or_else(|| {
            let scales = self.scales.clone().narrow(0, rows.start, rows.len()).unsqueeze_dim(1);
            self.codes.clone().narrow(0, rows.start, rows.len()).float().cast(DType::F32) * scales
        })
    }

    /// Rows `ids` in f32: `[T]` → `[T, in]`.
    pub fn rows(&self, ids: &[u32]) -> Tensor<2> {
        let ids: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
        let count = ids.len();
        let ids = Tensor::<1, Int>::from_data(TensorData::new(ids, [count]), &self.scales.device());
        let scales = self.scales.clone().select(0, ids.clone()).unsqueeze_dim(1);
        self.codes.clone().select(0, ids).float().cast(DType::F32) * scales
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LinearWeight;
    use burn::tensor::{Device, Distribution};

    fn random(shape: [usize; 2]) -> Tensor<2> {
        Tensor::random(shape, Distribution::Normal(0.0, 1.0), &Device::flex())
    }

    fn values(tensor: Tensor<2>) -> Vec<f32> {
        tensor.try_into_vec_as::<f32>().expect("f32 values")
    }

    #[test]
    fn a_weight_is_kept_to_half_a_step() {
        let weight = random([5, 70]);
        let int8 = Int8Weight::quantize(weight.clone());
        let (found, expected) = (values(int8.rows(&[0, 1, 2, 3, 4])), values(weight));
        for (row, (found, expected)) in found.chunks(70).zip(expected.chunks(70)).enumerate() {
            let largest = expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
            let difference = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            println!("row {row}: largest difference {difference:e} (half a step: {:e})", largest / 254.0);
            assert!(difference <= largest / 254.0 * 1.001);
        }
    }

    #[test]
    fn a_row_of_zeros_stays_zeros() {
        let int8 = Int8Weight::quantize(Tensor::zeros([2, 3], &Device::flex()));
        assert_eq!(values(int8.rows(&[1])), [0.0; 3]);
        let weight = LinearWeight::Quantized(int8.into());
        assert_eq!(values(crate::linear(random([1, 3]), weight, None)), [0.0; 2]);
    }
}
