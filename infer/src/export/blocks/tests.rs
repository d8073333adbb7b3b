use super::*;
use serde_json::Value;

/// What ggml's own quantiser makes of [`values`], which `tests/reference/record_ggml_blocks.py` has recorded.
const RECORDED: &str = include_str!("../../../../tests/data/ggml_blocks.json");

/// Sums of four numbers of a linear congruential generator; each block of 64 is of another size; zeros, an outlier.
fn values(count: usize) -> Vec<f32> {
    let mut state = 1u32;
    let mut number = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) as f32 - 32768.0
    };
    let value = |index: usize| (0..4).map(|_| number()).sum::<f32>() / 65536.0 / (1 << (index / 64 % 5)) as f32;
    let mut values: Vec<f32> = (0..count).map(value).collect();
    values[100] = 8.0;
    values[512..544].fill(0.0);
    values
}

#[test]
fn blocks_are_those_of_ggml() {
    let recorded: Value = serde_json::from_str(RECORDED).expect("JSON");
    let values = values(recorded["values"].as_u64().expect("a number") as usize);
    for kind in [TensorType::Q8_0, TensorType::Q5_0, TensorType::Q4K, TensorType::Q6K] {
        let recorded = &recorded[kind.name().to_uppercase().as_str()];
        let hex = recorded["bytes"].as_str().expect("hexadecimal").as_bytes().as_chunks::<2>().0;
        let expected =
            hex.iter().map(|pair| u8::from_str_radix(str::from_utf8(pair).expect("ASCII"), 16).expect("hex"));
        let (expected, found) = (expected.collect::<Vec<u8>>(), kind.encode(&values));
        let different = found.iter().zip(&expected).position(|(a, b)| a != b);
        assert_eq!((different, found.len()), (None, expected.len()), "{}: the first byte that differs", kind.name());
        // What is stored is read as gguf reads it.
        let read = kind.decode(&expected);
        let sum: f64 = read.iter().map(|&value| f64::from(value)).sum();
        let error: f64 = read.iter().zip(&values).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        let recorded = |key: &str| recorded[key].as_f64().expect("a number");
        let differences = [(sum - recorded("sum_of_values")).abs(), (error - recorded("squared_error")).abs()];
        println!(
            "{}: {} bytes equal; sums of values and squared errors differ by {differences:?}",
            kind.name(),
            found.len()
        );
        assert!(differences.iter().all(|&difference| difference <= 1e-5), "{}", kind.name());
    }
}

#[test]
fn zeros_stay_zeros() {
    for kind in TensorType::ALL {
        assert_eq!(kind.decode(&kind.encode(&[0.0; 512])), [0.0; 512], "{}", kind.name());
    }
}

#[test]
fn floats_are_kept() {
    let values = values(544);
    assert_eq!(TensorType::F32.decode(&TensorType::F32.encode(&values)), values);
    let halves: Vec<f32> = values.iter().map(|&value| f16::from_f32(value).to_f32()).collect();
    assert_eq!(TensorType::F16.decode(&TensorType::F16.encode(&values)), halves);
}
