//! A small product on a GPU before any work: a device that computes nothing, or wrongly, is refused.

use base::{Error, Result};
use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};

/// Multiplies two small matrices on the device, in bf16 where it has that. All sums are whole numbers below 256, which bf16 has
/// exactly, so the result is known bit for bit.
///
/// # Errors
/// [`Error::Invalid`] when the result is another.
pub(crate) fn self_test(device: &Device, place: &str) -> Result<()> {
    const SIZE: usize = 32;
    if std::env::var_os(UNCHECKED).is_some_and(|value| value == "1") {
        tracing::warn!("{place} is not tested: {UNCHECKED} is 1, results may be anything");
        return Ok(());
    }
    let dtype = if device.supports_dtype(FloatDType::BF16) { DType::BF16 } else { DType::F32 };
    let value = |i: usize, by: usize| ((i * by) % 5) as f32 - 2.0;
    let (a, b): (Vec<f32>, Vec<f32>) = (0..SIZE * SIZE).map(|i| (value(i, 7), value(i, 3))).unzip();
    let expected: Vec<f32> =
        (0..SIZE * SIZE).map(|i| (0..SIZE).map(|k| a[i / SIZE * SIZE + k] * b[k * SIZE + i % SIZE]).sum()).collect();
    let on_device = |values| Tensor::<2>::from_data(TensorData::new(values, [SIZE, SIZE]), (device, dtype));
    let product = crate::product(on_device(a), on_device(b)).cast(DType::F32).try_into_data();
    let found = match product.map(|data| data.try_to_vec::<f32>()) {
        Ok(Ok(values)) if values == expected => return Ok(()),
        Ok(Ok(values)) => {
            let wrong = values.iter().zip(&expected).filter(|(value, expected)| value != expected).count();
            format!("a {} product of which {wrong} of {} values are wrong", dtype.name(), expected.len())
        }
        Ok(Err(error)) => format!("a {} product that cannot be read: {error:?}", dtype.name()),
        Err(error) => format!("a {} product that failed: {error:?}", dtype.name()),
    };
    let remedy = "look at the lines above and at `train devices` for what is missing; set LLAVA_CUDA_CUBLASLT=0 to leave cuBLASLt \
                  out, or use --device cpu";
    Err(Error::invalid(place, found, "the CPU's result", remedy))
}

/// With the value 1, leaves the test out, for a driver that counts and computes nothing.
const UNCHECKED: &str = "LLAVA_CUDA_UNCHECKED";
