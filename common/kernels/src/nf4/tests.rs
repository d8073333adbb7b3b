//! Rounding and reading back, on each backend; values against bitsandbytes are in `tests/tests/nf4.rs`.

use super::*;
use burn::tensor::Distribution;

fn values(tensor: Tensor<2>) -> Vec<f32> {
    tensor.try_into_vec_as::<f32>().expect("f32 values")
}

#[test]
fn rows_by_operations_have_the_bits_of_the_kernels() {
    for (shape, double_quant) in
        [([5, 70], true), ([5, 70], false), ([3, 33], true), ([300, 192], true), ([1, 1], true)]
    {
        let weight = Tensor::<2>::random(shape, Distribution::Normal(0.0, 0.02), &Device::flex());
        let nf4 = Nf4Weight::quantize(weight.clone(), double_quant);
        let [rows, width] = shape;
        for range in [0..rows, rows - 1..rows, rows / 2..rows] {
            let found = crate::cpu::nf4_rows(&nf4, range.clone()).expect("the CPU backend");
            assert_eq!(values(found), values(nf4.dequantized_by_operations(range.clone())), "{shape:?} {range:?}");
        }
        // Half the widest gap between two values, of the block's magnitude; its rounding to 8 bits comes on top.
        let largest = values(weight.clone()).iter().fold(0f32, |largest, value| largest.max(value.abs()));
        let found = values(nf4.dequantized(0..rows));
        let error = found.iter().zip(values(weight)).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        println!("{shape:?}: largest difference {error:e}, largest value {largest:e}");
        assert!(found.len() == rows * width && error <= 0.17 * largest);
        assert_eq!(
            bytes_of(rows * width, double_quant),
            nf4.bytes().iter().map(Vec::len).sum::<usize>() - if double_quant { 4 } else { 0 }
        );
    }
}

#[test]
fn zeros_stay_zeros() {
    let nf4 = Nf4Weight::quantize(Tensor::zeros([2, 100], &Device::flex()), true);
    assert_eq!(values(nf4.dequantized(0..2)), [0.0; 200]);
}

#[test]
fn the_map_is_ascending_from_end_to_end() {
    let map = dynamic_map();
    assert!(map.is_sorted() && map[255] == 1.0 && map[127] == 0.0);
}
