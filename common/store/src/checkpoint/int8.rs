//! Weights in 8-bit integers as bitsandbytes stores them: the codes under the weight's name, beside it each row's largest
//! magnitude, which 127 stands for.
//!
//! # Source
//! bitsandbytes 0.50, `nn/modules.py`, `Linear8bitLt._save_to_state_dict`; `functional.int8_vectorwise_dequant`.

use super::read::TensorFiles;
use super::write::{TensorDtype, TensorSource};
use base::names::int8::{FORMAT, SCB};
use base::{Error, Result};
use burn::tensor::{DType, Device, Tensor, TensorData};
use kernels::int8::Int8Weight;
use model::config::WeightDtype;
use safetensors::tensor::Dtype;

/// The largest code.
const LARGEST: f32 = 127.0;
/// Codes row by row; others are of kernels that bitsandbytes does not have any more.
const ROWS: [u8; 1] = [0];

/// A weight's end of name, which the other tensors have not.
const WEIGHT: &str = ".weight";

/// The weight whose magnitudes a tensor has, by its name.
pub(super) fn weight_of(name: &str) -> Option<String> {
    Some(format!("{}{WEIGHT}", name.strip_suffix(SCB)?))
}

/// The names of the tensors beside a weight.
pub(super) fn parts_of(weight: &str) -> [String; 2] {
    let layer = weight.strip_suffix(WEIGHT).unwrap_or(weight);
    [SCB, FORMAT].map(|end| format!("{layer}{end}"))
}

fn wrong(files: &TensorFiles, name: &str, found: impl ToString, expected: impl ToString) -> Error {
    let path = files.path_of(name).map(|path| path.display().to_string()).unwrap_or_default();
    let remedy = "save the model again with bitsandbytes, or take the original one with --load_in_8bit";
    Error::invalid(format!("{path}: tensor {name}"), found, expected, remedy)
}

/// The shape of a weight's codes.
///
/// # Errors
/// No codes, or codes in another order than row by row.
pub(super) fn shape(files: &TensorFiles, weight: &str) -> Result<Vec<usize>> {
    let [_, format] = parts_of(weight);
    match files.part(weight) {
        Some((Dtype::I8, shape, _)) if shape.len() == 2 => {
            // Older versions write no format.
            let found = files.part(&format).map_or(&ROWS[..], |(.., bytes)| bytes);
            if found != ROWS {
                return Err(wrong(files, &format, format!("{found:?}"), "0 (codes row by row)"));
            }
            Ok(shape.to_vec())
        }
        Some((dtype, shape, _)) => Err(wrong(files, weight, format!("{dtype:?} {shape:?}"), "a matrix of I8")),
        None => Err(wrong(files, weight, "none", "the codes of the magnitudes beside them")),
    }
}

/// The weight itself.
pub(super) fn weight(files: &TensorFiles, name: &str, device: &Device) -> Result<Int8Weight> {
    let device = &device.clone().without_autodiff();
    let ([scb, _], shape) = (parts_of(name), shape(files, name)?);
    let [rows, width] = [shape[0], shape[1]];
    let codes = files.part(name).map_or(&[][..], |(.., bytes)| bytes);
    let magnitudes = match files.part(&scb) {
        Some((Dtype::F32, _, bytes)) if bytes.len() == rows * size_of::<f32>() => bytes.as_chunks::<4>().0,
        Some((dtype, shape, _)) => {
            return Err(wrong(files, &scb, format!("{dtype:?} {shape:?}"), format!("F32 [{rows}]")));
        }
        None => return Err(wrong(files, &scb, "none", format!("F32 [{rows}]"))),
    };
    let codes: Vec<i8> = codes.iter().map(|&code| code.cast_signed()).collect();
    let scales: Vec<f32> = magnitudes.iter().map(|four| f32::from_le_bytes(*four) / LARGEST).collect();
    Ok(Int8Weight {
        codes: Tensor::from_data(TensorData::new(codes, [rows, width]), (device, DType::I8)),
        scales: Tensor::from_data(TensorData::new(scales, [rows]), (device, DType::F32)),
    })
}

/// A weight's tensors, to be written.
pub(super) fn sources(name: &str, weight: &Int8Weight) -> Vec<TensorSource<'static>> {
    let ([scb, format], [rows, width]) = (parts_of(name), weight.codes.dims());
    let (codes, scales) = (weight.codes.clone(), weight.scales.clone());
    let magnitudes = move || -> Result<Vec<u8>> {
        let data = scales.into_data();
        let scales = data.as_slice::<f32>().unwrap_or_default();
        Ok(scales.iter().flat_map(|&scale| magnitude(scale).to_le_bytes()).collect())
    };
    vec![
        source(name, TensorDtype::I8, vec![rows, width], Box::new(move || Ok(codes.into_data().bytes().to_vec()))),
        source(&scb, WeightDtype::F32.into(), vec![rows], Box::new(magnitudes)),
        source(&format, TensorDtype::U8, Vec::new(), Box::new(|| Ok(ROWS.to_vec()))),
    ]
}

type Bytes = Box<dyn FnOnce() -> Result<Vec<u8>>>;

fn source(name: &str, dtype: TensorDtype, shape: Vec<usize>, bytes: Bytes) -> TensorSource<'static> {
    TensorSource { name: name.to_string(), dtype, shape, bytes }
}

/// What 127 stands for: a value that gives the same scale when it is read.
fn magnitude(scale: f32) -> f32 {
    let near = scale * LARGEST;
    let (up, down) = (near.next_up(), near.next_down());
    let candidates = [near, up, down, up.next_up(), down.next_down()];
    candidates.into_iter().find(|magnitude| magnitude / LARGEST == scale).unwrap_or(near)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_read_as_they_were_written() {
        // A scale is the 127th part of a magnitude; other numbers need not be.
        let scales = (0..100_000u32).map(|index| ((index as f32 * 0.37).sin().abs() + 1e-4) / LARGEST);
        let bad = scales.filter(|&scale| magnitude(scale) / LARGEST != scale).count();
        assert_eq!(bad, 0);
        assert_eq!(magnitude(0.0), 0.0);
    }
}
