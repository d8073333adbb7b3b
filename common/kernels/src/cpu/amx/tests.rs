use super::*;
use crate::cpu::gemm::gemm;
use crate::cpu::nf4::Nf4Operand;
use crate::cpu::weights::Weight as AnyWeight;
use crate::nf4::{Absmax, Nf4Weight};
use burn::tensor::{Device, Tensor, TensorData};
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

/// Of a weight `[out, in]`, and its values.
fn nf4(values: Vec<f32>, out: usize, inputs: usize, nested: bool) -> (Nf4Operand, Vec<f32>) {
    let weight = Tensor::from_data(TensorData::new(values, [out, inputs]), &Device::flex());
    let operand = Nf4Operand::new(&Nf4Weight::quantize(weight, nested)).expect("the CPU backend");
    let values = operand.rows().expect("codes").widened(0..out);
    (operand, values)
}

/// What two rounded planes of both factors keep: each is off by 2^-18 at most, and the product of the second planes is left out; besides the
/// rounding of sums.
const ROUNDED: f64 = 3.0 / (1 << 18) as f64 + 5e-7;

/// Largest differences from the f64 product and from the product by fused f32 operations, and the mean difference from the former, which is
/// signed; all relative to the sum of the magnitudes.
fn relative_differences(a: Matrix, b: Matrix, start: impl Fn(usize) -> f32, found: &[f32]) -> [f64; 3] {
    let mut fused: Vec<f32> = (0..a.rows * b.columns).map(|index| start(index % b.columns)).collect();
    gemm(a, b, MatrixMut::new(&mut fused, a.rows, b.columns), Start::Keep);
    let [mut largest, mut beside_fused, mut sum] = [0f64; 3];
    for (index, (&value, fused)) in found.iter().zip(fused).enumerate() {
        let (row, column) = (index / b.columns, index % b.columns);
        let (mut exact, mut magnitudes) = (f64::from(start(column)), f64::from(start(column)).abs());
        for k in 0..a.columns {
            let product = f64::from(a.at(row, k)) * f64::from(b.at(k, column));
            exact += product;
            magnitudes += product.abs();
        }
        let relative = |other: f64| (f64::from(value) - other) / magnitudes;
        largest = largest.max(relative(exact).abs());
        beside_fused = beside_fused.max(relative(f64::from(fused)).abs());
        sum += relative(exact);
    }
    [largest, beside_fused, sum / found.len() as f64]
}

/// Also of rows that are not whole blocks, and that begin within a byte.
#[test]
fn products_with_nf4_differ_by_a_hundred_thousandth_of_the_magnitudes() {
    if !available() {
        return println!("not run: no AMX");
    }
    let sizes = [(32, 64, 32), (1, 16, 16), (9, 33, 50), (17, 577, 31), (10, 96, 160), (47, 1536, 576), (33, 2050, 65)];
    for ((tokens, inputs, out), nested) in sizes.into_iter().flat_map(|sizes| [(sizes, true), (sizes, false)]) {
        let (x, d, bias) = (random(tokens * inputs, 1), random(tokens * out, 5), random(out, 4));
        let (operand, values) = nf4(random(out * inputs, 6), out, inputs, nested);
        let (rows, w) = (operand.rows().expect("codes"), Matrix::new(&values, out, inputs));
        let (x, d) = (Matrix::new(&x, tokens, inputs), Matrix::new(&d, tokens, out));
        let [columns, rows] = [Right::new(Lines::Nf4(rows)), Right::new(Lines::Nf4Across(rows))];
        let found = product(columns, x, vec![7.0; tokens * out], Start::Bias(&bias));
        let forward = relative_differences(x, w.transposed(), |column| bias[column], &found);
        let kept = product(rows, d, vec![0.5; tokens * inputs], Start::Keep);
        let backward = relative_differences(d, w, |_| 0.5, &kept);
        println!(
            "{tokens} × {inputs} × {out}: largest difference {:.2e}, beside fused f32 {:.2e}, mean {:.2e}; backward {:.2e}, {:.2e}, {:.2e}",
            forward[0], forward[1], forward[2], backward[0], backward[1], backward[2]
        );
        assert!(forward.iter().chain(&backward).all(|difference| difference.abs() < ROUNDED));
        let alone = Matrix::new(x.row(tokens - 1), 1, inputs);
        let alone = product(columns, alone, vec![0.0; out], Start::Bias(&bias));
        assert_eq!(alone, found[(tokens - 1) * out..], "a row alone has the same bits");
        let alone = product(rows, Matrix::new(d.row(tokens - 1), 1, out), vec![0.5; inputs], Start::Keep);
        assert_eq!(alone, kept[(tokens - 1) * inputs..], "a row alone has the same bits, backward");
    }
}

/// Planes that are cut off instead of rounded would make every one of these sums too small, by 1e-5.
#[test]
fn sums_of_positive_products_with_nf4_are_not_biased() {
    if !available() {
        return println!("not run: no AMX");
    }
    let (tokens, inputs, out) = (32, 2048, 64);
    let positive = |len: usize, seed: u64| random(len, seed).into_iter().map(|value| value.abs() + 0.1).collect();
    let (x, (operand, values)): (Vec<f32>, _) =
        (positive(tokens * inputs, 1), nf4(positive(out * inputs, 6), out, inputs, true));
    let (x, w) = (Matrix::new(&x, tokens, inputs), Matrix::new(&values, out, inputs));
    let right = Right::new(Lines::Nf4(operand.rows().expect("codes")));
    let found = product(right, x, vec![0.0; tokens * out], Start::Zero);
    let [largest, _, mean] = relative_differences(x, w.transposed(), |_| 0.0, &found);
    println!("mean {mean:.2e}, largest {largest:.2e}");
    assert!(mean.abs() < 3e-7 && largest < 2e-6);
}

/// The weight's products are those of the tiles, in training and in prefill, but for so few tokens that it is read where it lies.
#[test]
fn weights_in_nf4_use_the_tiles() {
    if !available() {
        return println!("not run: no AMX");
    }
    let (tokens, inputs, out) = (9, 128, 48);
    let (operand, _) = nf4(random(out * inputs, 6), out, inputs, true);
    let rows = operand.rows().expect("codes");
    let (x, d) = (random(tokens * inputs, 1), random(tokens * out, 5));
    let (x, d, weight) = (Matrix::new(&x, tokens, inputs), Matrix::new(&d, tokens, out), AnyWeight::Nf4(rows));
    let tiles = product(Right::new(Lines::Nf4(rows)), x, vec![0.0; tokens * out], Start::Zero);
    assert_eq!(weight.forward(x, None), tiles);
    let few = tokens - 1;
    assert_eq!(weight.forward(x.block(0..few, 0..inputs), None), rows.few(x.block(0..few, 0..inputs), None));
    let tiles = product(Right::new(Lines::Nf4Across(rows)), d, vec![0.0; tokens * inputs], Start::Zero);
    assert_eq!(weight.backward(d), tiles);
    let tiles = product(Right::new(Lines::Nf4Across(rows)), d, vec![0.5; tokens * inputs], Start::Keep);
    let mut sums = vec![0.5; tokens * inputs];
    weight.add_backward(d, &mut sums);
    assert_eq!(sums, tiles);
}

#[test]
fn with_nf4_large_small_and_missing_values_come_through_and_infinite_ones_stay_not_finite() {
    if !available() {
        return println!("not run: no AMX");
    }
    let (inputs, out) = (32, 16);
    // The first value of each row is its magnitude, and the others are 0.
    let product_of = |x: f32, magnitude: f32| {
        let mut codes = vec![0x77; out * inputs / 2];
        (0..out).for_each(|row| codes[row * inputs / 2] = 0xF7);
        let absmax = Absmax::Plain(Tensor::from_data(TensorData::new(vec![magnitude; out], [out]), &Device::flex()));
        let weight = Nf4Weight::from_parts(codes, absmax, inputs, [out, inputs], &Device::flex());
        let operand = Nf4Operand::new(&weight).expect("the CPU backend");
        let mut values = vec![0.0; inputs];
        values[0] = x;
        let right = Right::new(Lines::Nf4(operand.rows().expect("codes")));
        let found = product(right, Matrix::new(&values, 1, inputs), vec![0.0; out], Start::Zero);
        assert!(found.iter().all(|value| value.to_bits() == found[0].to_bits()));
        found[0]
    };
    for (value, other) in [
        (f32::MAX, 1.0),
        (f32::MIN, 1.0),
        (f32::MAX, 0.3),
        (f32::from_bits(0x7EFF_FFFF), 1.9),
        (f32::from_bits(0x7F00_0000), 1.9),
        (1.000_000_1, 0.5),
        (3e-30, 0.7),
        (-3e-30, 1e-3),
    ] {
        let expected = f64::from(value) * f64::from(other);
        for found in [product_of(value, other), product_of(other, value)] {
            let difference = (f64::from(found) - expected).abs() / expected.abs();
            // The largest values are cut off, to 2^-16.
            let enough = if value.abs() < 1e38 { ROUNDED } else { ROUNDED + 2f64.powi(-16) };
            assert!(difference < enough, "{value:e} × {other:e}: {found:e}, off by {difference:e}");
        }
    }
    for value in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::from_bits(0x7F80_0001)] {
        for found in [product_of(value, 0.5), product_of(0.5, value)] {
            assert!(!found.is_finite() && (!value.is_nan() || found.is_nan()), "{value:e}: {found:e}");
        }
    }
    assert_eq!([product_of(1e-40, 0.5), product_of(0.5, 1e-40)], [0.0; 2], "denormal values");
}
