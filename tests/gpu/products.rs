//! The real job's matrix products by cuBLASLt and by burn's kernels: largest error of each against the CPU in f32, and times. A line of
//! JSON for each product and dtype.

use super::{Sizes, error, milliseconds, values};
use burn::tensor::{DType, Device, Tensor, TensorData};
use kernels::device;

/// `[rows, inner] × [inner, columns]`; a transposed factor is a view of its transpose, as it lies in memory.
#[derive(Clone, Copy)]
struct Product {
    name: &'static str,
    rows: usize,
    inner: usize,
    columns: usize,
    transposed: [bool; 2],
}

/// Tokens of a chunk of the loss, rank of a LoRA.
const LOSS_ROWS: usize = 104;
const RANK: usize = 32;

fn products(sizes: Sizes) -> Vec<Product> {
    let Sizes { rows, tokens, width, inner, vocabulary, patches, vision_width, .. } = sizes;
    let (all, of_tower, vision_inner) = (rows * tokens, rows * patches, 4 * vision_width);
    let of =
        |transposed| move |name, [rows, inner, columns]: [usize; 3]| Product { name, rows, inner, columns, transposed };
    let (forward, of_input, of_weight) = (of([false, true]), of([false, false]), of([true, false]));
    let both = of([true, true]);
    vec![
        forward("x Wᵀ, q k v o", [all, width, width]),
        forward("x Wᵀ, gate up", [all, width, inner]),
        forward("x Wᵀ, down", [all, inner, width]),
        forward("x Wᵀ, head", [LOSS_ROWS, width, vocabulary]),
        forward("x Wᵀ, tower q k v o", [of_tower, vision_width, vision_width]),
        forward("x Wᵀ, tower fc1", [of_tower, vision_width, vision_inner]),
        of_input("d W, q k v o", [all, width, width]),
        of_input("d W, gate up", [all, inner, width]),
        of_input("d W, head", [LOSS_ROWS, vocabulary, width]),
        of_weight("dᵀ x, q k v o", [width, all, width]),
        of_weight("dᵀ x, gate up", [inner, all, width]),
        of_weight("dᵀ x, head", [vocabulary, LOSS_ROWS, width]),
        forward("x Aᵀ", [all, width, RANK]),
        forward("(x Aᵀ) Bᵀ", [all, RANK, width]),
        of_input("d B", [all, width, RANK]),
        of_weight("dᵀ (x Aᵀ)", [width, all, RANK]),
        // Of no part of the job: odd sizes, and both factors transposed.
        both("odd sizes, both transposed", [37, 65, 33]),
        of_input("odd sizes", [37, 65, 33]),
        forward("odd sizes, second transposed", [1, 65, 33]),
        of_weight("odd sizes, first transposed", [37, 515, 3]),
    ]
}

/// Rows of the product that are compared with the CPU's.
const COMPARED: usize = 64;

/// Values of the factors as they are stored.
fn stored(product: Product) -> [TensorData; 2] {
    let Product { rows, inner, columns, transposed: [a, b], .. } = product;
    [
        values(if a { [inner, rows] } else { [rows, inner] }, 1.0, 1),
        values(if b { [columns, inner] } else { [inner, columns] }, 1.0, 2),
    ]
}

/// The factors, as views. Values are converted on the host.
fn factors(product: Product, [a, b]: &[TensorData; 2], device: &Device, dtype: DType) -> [Tensor<2>; 2] {
    let tensor = |data: &TensorData, transposed: bool| {
        let tensor = Tensor::<2>::from_data(data.clone(), (device, dtype));
        if transposed { tensor.transpose() } else { tensor }
    };
    [tensor(a, product.transposed[0]), tensor(b, product.transposed[1])]
}

/// Of a product, in f32.
fn first_rows(values: Tensor<2>) -> Vec<f32> {
    let [rows, columns] = values.dims();
    let compared = rows.min(COMPARED);
    // Small ones are read whole: a view may take a kernel, which computes nothing beside the driver that counts.
    let values = if rows * columns > 1 << 24 { values.narrow(0, 0, compared) } else { values };
    let data = values.into_data().convert_dtype(DType::F32);
    data.try_to_vec::<f32>().expect("f32")[..compared * columns].to_vec()
}

/// All products on a device.
pub fn run(sizes: Sizes, device: &Device, repeats: usize) {
    let device = device.clone().without_autodiff();
    for product in products(sizes) {
        let Product { name, rows, inner, columns, .. } = product;
        let stored = stored(product);
        let [a, b] = factors(product, &stored, &device::cpu(), DType::F32);
        let expected = first_rows(a.narrow(0, 0, rows.min(COMPARED)).matmul(b));
        for (dtype, dtype_name) in [(DType::F32, "f32"), (DType::BF16, "bf16")] {
            let [a, b] = factors(product, &stored, &device, dtype);
            let by_library = kernels::product_by_cublas_lt(&a, &b).map(|found| {
                let time = || drop(kernels::product_by_cublas_lt(&a, &b));
                (error(&first_rows(found), &expected), milliseconds(&device, repeats, time))
            });
            let by_burn = error(&first_rows(a.clone().matmul(b.clone())), &expected);
            let burn_ms = milliseconds(&device, repeats, || drop(a.clone().matmul(b.clone())));
            // JSON has neither infinity nor NaN.
            let shown = |error: f32| if error.is_finite() { error } else { f32::MAX };
            let (library_error, library_ms) = match by_library {
                Some((error, ms)) => (shown(error).to_string(), ms.to_string()),
                None => ("null".to_owned(), "null".to_owned()),
            };
            println!(
                r#"{{"name": "{name}", "dtype": "{dtype_name}", "rows": {rows}, "inner": {inner}, "columns": {columns}, "cublas_lt_error": {library_error}, "cublas_lt_ms": {library_ms}, "burn_error": {}, "burn_ms": {burn_ms}}}"#,
                shown(by_burn),
            );
        }
    }
}
