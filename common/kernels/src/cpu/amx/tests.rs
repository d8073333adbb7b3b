use super::*;
use crate::cpu::gemm::gemm;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// A weight in a format, in both orders, and its values.
struct Weight {
    name: &'static str,
    /// `[out, in]`
    values: Vec<f32>,
    columns: Box<dyn for<'w> Fn(&'w Weight) -> Right<'w>>,
    rows: Box<dyn for<'w> Fn(&'w Weight) -> Right<'w>>,
    bf16: Vec<bf16>,
    codes: Vec<i8>,
    scales: Vec<f32>,
}

fn random(len: usize, seed: u64) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..len).map(|_| rng.random_range(-1.0..1.0)).collect()
}

fn weights(out: usize, inputs: usize) -> [Weight; 2] {
    let bf16: Vec<bf16> = random(out * inputs, 2).into_iter().map(bf16::from_f32).collect();
    let codes: Vec<i8> = random(out * inputs, 3).into_iter().map(|value| (value * 127.0) as i8).collect();
    let scales: Vec<f32> = (0..out).map(|channel| 0.01 / (1 + channel % 5) as f32).collect();
    let of_codes = codes.iter().enumerate().map(|(index, &code)| f32::from(code) * scales[index / inputs]).collect();
    let of_bf16 = bf16.iter().map(|value| value.to_f32()).collect();
    [
        Weight {
            name: "bf16",
            values: of_bf16,
            columns: Box::new(move |w| Right::new(Lines::Bf16(&w.bf16, out, inputs))),
            rows: Box::new(move |w| Right::new(Lines::Bf16Across(&w.bf16, inputs, out))),
            bf16,
            codes: Vec::new(),
            scales: Vec::new(),
        },
        Weight {
            name: "int8",
            values: of_codes,
            columns: Box::new(move |w| Right {
                column_scales: Some(&w.scales),
                ..Right::new(Lines::Int8(&w.codes, out, inputs))
            }),
            rows: Box::new(move |w| Right {
                row_scales: Some(&w.scales),
                ..Right::new(Lines::Int8Across(&w.codes, inputs, out))
            }),
            bf16: Vec::new(),
            codes,
            scales,
        },
    ]
}

fn product(right: Right, a: Matrix, mut start: Vec<f32>, how: Start) -> Vec<f32> {
    let columns = start.len() / a.rows;
    let c = MatrixMut::new(&mut start, a.rows, columns);
    // SAFETY: C has values, and gets values.
    unsafe { right.product(a, c.into_places(), how) };
    start
}

/// Largest differences from the f64 product: of the tiles', and of the fused f32 operations'.
fn differences(a: Matrix, b: Matrix, start: impl Fn(usize) -> f32, found: &[f32]) -> (f64, f64) {
    let mut fused: Vec<f32> = (0..a.rows * b.columns).map(|index| start(index % b.columns)).collect();
    gemm(a, b, MatrixMut::new(&mut fused, a.rows, b.columns), Start::Keep);
    let (mut tiles, mut other) = (0f64, 0f64);
    for (index, (&found, fused)) in found.iter().zip(fused).enumerate() {
        let (row, column) = (index / b.columns, index % b.columns);
        let products = (0..a.columns).map(|k| f64::from(a.at(row, k)) * f64::from(b.at(k, column)));
        let exact = f64::from(start(column)) + products.sum::<f64>();
        tiles = tiles.max((f64::from(found) - exact).abs());
        other = other.max((f64::from(fused) - exact).abs());
    }
    (tiles, other)
}

#[test]
fn products_are_as_exact_as_fused_f32_operations() {
    if !available() {
        return println!("not run: no AMX");
    }
    // Whole tiles, parts of tiles, several slices of the inner dimension.
    let sizes = [(32, 64, 32), (1, 16, 16), (9, 33, 50), (17, 577, 31), (47, 1536, 576), (33, 2050, 65)];
    for (tokens, inputs, out) in sizes {
        let (x, d) = (random(tokens * inputs, 1), random(tokens * out, 5));
        let bias = random(out, 4);
        for weight in weights(out, inputs) {
            let w = Matrix::new(&weight.values, out, inputs);
            let x = Matrix::new(&x, tokens, inputs);
            let found = product((weight.columns)(&weight), x, vec![7.0; tokens * out], Start::Bias(&bias));
            let (forward, fused) = differences(x, w.transposed(), |column| bias[column], &found);
            let d = Matrix::new(&d, tokens, out);
            let kept = product((weight.rows)(&weight), d, vec![0.5; tokens * inputs], Start::Keep);
            let (backward, fused_backward) = differences(d, w, |_| 0.5, &kept);
            println!(
                "{} {tokens} × {inputs} × {out}: largest difference {forward:.2e} (fused f32: {fused:.2e}), \
                 backward {backward:.2e} ({fused_backward:.2e})",
                weight.name
            );
            let enough = |depth: usize| 2e-7 * (depth as f64).sqrt() + 3e-7;
            assert!(forward < fused.max(enough(inputs)) && backward < fused_backward.max(enough(out)));
            let alone = Matrix::new(x.row(tokens - 1), 1, inputs);
            let alone = product((weight.columns)(&weight), alone, vec![0.0; out], Start::Bias(&bias));
            assert_eq!(alone, found[(tokens - 1) * out..], "a row alone has the same bits");
        }
    }
}

#[test]
fn large_small_infinite_and_missing_values_come_through() {
    if !available() {
        return println!("not run: no AMX");
    }
    let (inputs, out) = (32, 16);
    let mut weight = vec![bf16::ZERO; out * inputs];
    (0..out).for_each(|channel| weight[channel * inputs] = bf16::from_f32(0.5));
    let right = Right::new(Lines::Bf16(&weight, out, inputs));
    for (value, expected) in [
        (f32::MAX, f32::MAX / 2.0),
        (1.000_000_1, 0.500_000_06),
        (3e-30, 1.5e-30),
        (f32::INFINITY, f32::INFINITY),
        (f32::NEG_INFINITY, f32::NEG_INFINITY),
        (f32::NAN, f32::NAN),
        (f32::from_bits(0x7F80_0001), f32::NAN),
        (1e-40, 0.0),
    ] {
        let mut x = vec![0.0; inputs];
        x[0] = value;
        for found in product(right, Matrix::new(&x, 1, inputs), vec![0.0; out], Start::Zero) {
            assert!(found == expected || found.is_nan() && expected.is_nan(), "{value:e}: {found:e}, not {expected:e}");
        }
    }
}
