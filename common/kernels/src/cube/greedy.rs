//! The most likely tokens, found where the logits are: two launches, and four bytes a row for the host.

use super::{Backend, UNITS, cubes, element, empty, rows_and_width, strided, vector_size};
use burn::tensor::{DType, Int, Tensor};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::{Tensor as Buffer, *};

/// Cubes that a row is divided among.
const PARTS: usize = 32;
const PARTS_OF_ROW: u32 = PARTS as u32;
/// In place of a token: a logit that is NaN or +∞.
pub(crate) const NOT_FINITE: u32 = u32::MAX;
/// In place of a token: no logits.
const NONE: u32 = u32::MAX - 1;

/// The index of the largest logit of each row, the first of equals, or [`NOT_FINITE`]: `[rows, V]` → u32 `[rows]`. `None` on another
/// backend, with autodiff, and where rows have no values.
pub(crate) fn tokens(logits: &Tensor<2>) -> Option<Tensor<1, Int>> {
    let is_read = matches!(logits.dtype(), DType::F32 | DType::BF16 | DType::F16);
    if !is_read || logits.device().is_autodiff() {
        return None;
    }
    let logits = strided(logits).filter(|logits| !logits.meta.is_tiled())?;
    let [rows, vocabulary] = rows_and_width(&logits);
    let stride = if rows > 1 { logits.meta.strides()[0] } else { vocabulary };
    if rows * vocabulary == 0 || rows * stride > super::MOST_VALUES {
        return None;
    }
    let size = vector_size(vocabulary, &[&logits]);
    let size = if stride.is_multiple_of(size) { size } else { 1 };
    let part = (vocabulary / size).div_ceil(PARTS);
    let (largest, first) = (empty(&logits, [rows, PARTS], DType::F32), empty(&logits, [rows, PARTS], DType::U32));
    let found: CubeTensor = empty(&logits, [rows], DType::U32);
    largest_of_parts::launch(
        &logits.client,
        cubes(&logits, rows * PARTS),
        CubeDim::new_1d(UNITS),
        size,
        logits.clone().into_tensor_arg(),
        largest.clone().into_tensor_arg(),
        first.clone().into_tensor_arg(),
        rows as u32,
        (stride / size) as u32,
        (vocabulary / size) as u32,
        part as u32,
        element(&logits),
    );
    largest_of_rows::launch(
        &logits.client,
        cubes(&logits, rows),
        CubeDim::new_1d(1),
        largest.into_tensor_arg(),
        first.into_tensor_arg(),
        found.clone().into_tensor_arg(),
        rows as u32,
    );
    Some(Tensor::from_primitive::<Backend>(found))
}

/// A cube for each part of a row: its largest logit and where the first of those is, or [`NOT_FINITE`].
#[cube(launch)]
fn largest_of_parts<F: Float, N: Size>(
    logits: &Buffer<Vector<F, N>>,
    largest: &mut Buffer<f32>,
    first: &mut Buffer<u32>,
    rows: u32,
    stride: u32,
    vectors: u32,
    part: u32,
    #[define(F)] _dtype: ElemType,
) {
    let place = CUBE_POS as u32;
    let row = place / PARTS_OF_ROW;
    if row < rows {
        let start = place % PARTS_OF_ROW * part;
        let end = min(start + part, vectors);
        let lanes = N::value();
        let mut most = 0.0f32;
        // [`NONE`]: a name would be a number known when the kernel is compiled.
        let mut token = 0xFFFF_FFFEu32;
        let mut not_finite = false;
        let mut at = start + UNIT_POS;
        while at < end {
            let vector = Vector::<f32, N>::cast_from(logits[(row * stride + at) as usize]);
            #[unroll]
            for lane in 0..lanes {
                let logit = vector.extract(lane);
                // By their bits: a compiler may take comparisons with NaN for false.
                let bits = u32::reinterpret(logit);
                if bits == 0x7F80_0000u32 || (bits & 0x7FFF_FFFFu32) > 0x7F80_0000u32 {
                    not_finite = true;
                }
                // Later ones of a unit stand behind the earlier.
                if token == NONE || logit > most {
                    most = logit;
                    token = at * lanes as u32 + lane as u32;
                }
            }
            at += CUBE_DIM;
        }
        if not_finite {
            token = NOT_FINITE;
        }
        let mut values = Shared::<[f32]>::new_slice(UNITS as usize);
        let mut tokens = Shared::<[u32]>::new_slice(UNITS as usize);
        values[UNIT_POS as usize] = most;
        tokens[UNIT_POS as usize] = token;
        sync_cube();
        let mut others = CUBE_DIM / 2;
        while others > 0 {
            if UNIT_POS < others {
                let (mine, other) = (UNIT_POS as usize, (UNIT_POS + others) as usize);
                if is_before(values[other], tokens[other], values[mine], tokens[mine]) {
                    values[mine] = values[other];
                    tokens[mine] = tokens[other];
                }
            }
            sync_cube();
            others /= 2;
        }
        if UNIT_POS == 0 {
            largest[place as usize] = values[0];
            first[place as usize] = tokens[0];
        }
    }
}

/// Whether the first of two logits with their tokens is the answer: one that is not finite, else the larger, else the first.
#[cube]
fn is_before(a: f32, token: u32, b: f32, other: u32) -> bool {
    other != NOT_FINITE && token != NONE && (token == NOT_FINITE || other == NONE || a > b || (a == b && token < other))
}

/// A unit for each row: the best of its parts.
#[cube(launch)]
fn largest_of_rows(largest: &Buffer<f32>, first: &Buffer<u32>, found: &mut Buffer<u32>, rows: u32) {
    let row = CUBE_POS;
    if row < rows as usize {
        let base = row * PARTS;
        let mut most = largest[base];
        let mut token = first[base];
        for part in 1..PARTS {
            if is_before(largest[base + part], first[base + part], most, token) {
                most = largest[base + part];
                token = first[base + part];
            }
        }
        found[row] = token;
    }
}

#[cfg(all(test, feature = "wgpu"))]
mod tests {
    use crate::cpu::tests::values;
    use crate::cube::tests::compare::gpu;
    use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};

    /// As `model::sampling::argmax`, with the check of `model::generate`.
    fn expected(row: &[f32]) -> Option<u32> {
        if row.iter().any(|logit| logit.is_nan() || *logit == f32::INFINITY) {
            return None;
        }
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        Some(row.iter().position(|&logit| logit == largest).unwrap_or(0) as u32)
    }

    fn check(name: &str, rows: &[Vec<f32>], device: &Device) {
        let shape = [rows.len(), rows[0].len()];
        let logits = Tensor::<2>::from_data(TensorData::new(rows.concat(), shape), device);
        let found = crate::most_likely_tokens(&logits).expect("the kernel applies").expect("ids");
        assert_eq!(found, rows.iter().map(|row| expected(row)).collect::<Vec<_>>(), "{name}");
        // Rows apart from each other.
        let wide = Tensor::cat(vec![logits.clone(), logits.clone() * 100.0], 1).narrow(1, 0, shape[1]);
        assert_eq!(crate::most_likely_tokens(&wide), Some(Ok(found.clone())), "{name}: a part of the columns");
        if device.supports_dtype(FloatDType::F16) && rows.concat().iter().all(|x| x.abs() < 1e4 || !x.is_finite()) {
            let half = logits.cast(DType::F16);
            let rounded = half.clone().cast(DType::F32).into_data().try_into_vec::<f32>().expect("f32");
            let expected = rounded.chunks(shape[1]).map(expected).collect::<Vec<_>>();
            assert_eq!(crate::most_likely_tokens(&half), Some(Ok(expected)), "{name} in f16");
        }
    }

    #[test]
    fn the_token_is_that_of_the_host() {
        let Some(device) = gpu() else { return };
        for vocabulary in [1, 2, 7, 64, 1000, 8193, 151_936] {
            let row = |seed| values(seed, vocabulary);
            check("random", &[row(1), row(2), row(3)], &device);
            let last = vocabulary - 1;
            let with = |changes: &[(usize, f32)]| {
                let mut row = row(4);
                changes.iter().for_each(|&(at, value)| row[at] = value);
                row
            };
            let places = [0, vocabulary / 3, vocabulary / 2, last];
            check("ties", &places.map(|at| with(&[(at, 5.0), (last, 5.0)])), &device);
            check("all equal", &[vec![2.5; vocabulary], vec![-0.0; vocabulary]], &device);
            check("−∞", &[vec![f32::NEG_INFINITY; vocabulary], with(&[(0, f32::NEG_INFINITY)])], &device);
            let mut one = vec![f32::NEG_INFINITY; vocabulary];
            one[last] = -3e38;
            check("one that is finite", &[one], &device);
            for special in [f32::NAN, -f32::NAN, f32::INFINITY] {
                check("not finite", &places.map(|at| with(&[(at, special)])), &device);
            }
            check("one row of three", &[row(1), with(&[(last, f32::NAN), (0, 9.0)]), row(3)], &device);
        }
    }

    #[test]
    fn the_cpu_has_none() {
        assert!(crate::most_likely_tokens(&Tensor::<2>::ones([1, 3], &Device::flex())).is_none());
    }
}
