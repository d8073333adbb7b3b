//! The matrix product of everything beside the CPU's kernels.

use burn::tensor::Tensor;

/// `a b`, on any device, with or without autodiff: on a CUDA device by cuBLASLt where it is there ([`product_by_cublas_lt`]), else by
/// burn's kernels.
///
/// # Shapes
/// a `[rows, inner]`, b `[inner, columns]` → `[rows, columns]`. Factors may be transposed views.
pub fn product(a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
    product_by_cublas_lt(&a, &b).unwrap_or_else(|| a.matmul(b))
}

/// As [`product`], by cuBLASLt: f32, bf16 and f16 on a CUDA device, without autodiff. `None` elsewhere, without the library, with
/// `LLAVA_CUDA_CUBLASLT=0`, and where the library has no algorithm for the product.
pub fn product_by_cublas_lt(a: &Tensor<2>, b: &Tensor<2>) -> Option<Tensor<2>> {
    #[cfg(feature = "cuda")]
    return crate::cube::cublas_lt::product(a, b);
    #[cfg(not(feature = "cuda"))]
    {
        let _ = (a, b);
        None
    }
}
