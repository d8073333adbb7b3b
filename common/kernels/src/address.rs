//! Addresses of tensors' values, for a library that reads and writes them itself: NCCL.

use base::{Error, Result};
use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::tensor::{DType, Element, Tensor};
use bytemuck::Pod;
use half::bf16;
use std::any::Any;

/// A vector in f32 or bf16 whose values lie one behind the other at an address: of the host's memory on the CPU, of a GPU's with CUDA.
pub struct Addressed {
    tensor: Tensor<1>,
    address: usize,
    len: usize,
    /// Keeps the values where they are.
    _hold: Option<Box<dyn Any + Send>>,
}

impl Addressed {
    /// Finds the address. On a GPU, kernels that compute the values may still be running.
    ///
    /// # Errors
    /// [`Error::Invalid`] on a device whose memory has no addresses here, and for another dtype.
    pub fn new(tensor: Tensor<1>) -> Result<Self> {
        let [len] = tensor.dims();
        let invalid = |found: String| {
            Error::invalid(
                "memory of a device",
                found,
                "values in f32 or bf16 on the CPU or on a CUDA device",
                "report this",
            )
        };
        if ![DType::F32, DType::BF16].contains(&tensor.dtype()) || tensor.device().is_autodiff() {
            return Err(invalid(format!("a vector of {:?} on {:?}", tensor.dtype(), tensor.device())));
        }
        if tensor.device() == crate::device::cpu() {
            let dtype = tensor.dtype();
            let mut flex = tensor.try_into_primitive::<Flex>().map_err(|error| invalid(format!("{error:?}")))?;
            let found =
                if dtype == DType::F32 { on_host::<f32>(&mut flex, len) } else { on_host::<bf16>(&mut flex, len) };
            let address = found.ok_or_else(|| invalid("values apart from each other".into()))?;
            return Ok(Self { tensor: Tensor::from_primitive::<Flex>(flex), address, len, _hold: None });
        }
        #[cfg(feature = "cuda")]
        {
            let (address, hold) = on_cuda(&tensor).map_err(invalid)?;
            Ok(Self { tensor, address, len, _hold: Some(hold) })
        }
        #[cfg(not(feature = "cuda"))]
        Err(invalid(format!("device {:?} in a build without CUDA", tensor.device())))
    }

    /// Address of the first value. Values may be written there as long as nobody else holds the tensor.
    pub fn address(&self) -> usize {
        self.address
    }

    /// Values.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The values as they are now.
    pub fn tensor(&self) -> &Tensor<1> {
        &self.tensor
    }

    /// The same, without the address.
    pub fn into_tensor(self) -> Tensor<1> {
        self.tensor
    }
}

/// Address in the host's memory; none, where the values are apart from each other.
fn on_host<E: Element + Pod>(flex: &mut FlexTensor, len: usize) -> Option<usize> {
    // Where nobody else holds the values, they may be written, too.
    match flex.try_storage_mut::<E>().filter(|storage| storage.len() == len) {
        Some(values) => Some(values.as_mut_ptr() as usize),
        None => flex.as_slice::<E>().map(|values| values.as_ptr() as usize),
    }
}

/// Address on a CUDA device, and what keeps the memory in its place.
#[cfg(feature = "cuda")]
fn on_cuda(tensor: &Tensor<1>) -> std::result::Result<(usize, Box<dyn Any + Send>), String> {
    use crate::cube::Backend;
    use cubecl::__private::Runtime;

    let values = tensor.clone().try_into_primitive::<Backend>().map_err(|error| format!("{error:?}"))?;
    if values.meta.strides().iter().any(|&stride| stride != 1) {
        return Err("values apart from each other".into());
    }
    // The device's thread answers when all kernels that were launched before are on their stream.
    let memory = values.client.get_resource::<<cubecl_cuda::CudaRuntime as Runtime>::Server>(values.handle.clone());
    let memory = memory.map_err(|error| format!("{error:?}"))?;
    Ok((memory.resource().ptr as usize, Box::new(memory)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::TensorData;

    #[test]
    fn values_are_read_and_written_at_their_address() {
        let device = crate::device::cpu();
        let values = Tensor::<1>::from_data(TensorData::from([1.0f32, 2.0, 3.0, 4.0]), &device);
        let part = Addressed::new(values.clone().slice(1..3)).expect("an address");
        assert_eq!((part.len(), part.is_empty()), (2, false));
        // SAFETY: two values of a tensor that is alive.
        assert_eq!(unsafe { std::slice::from_raw_parts(part.address() as *const f32, 2) }, [2.0, 3.0]);
        let own = Addressed::new(Tensor::<1>::zeros([3], (&device, DType::F32))).expect("an address");
        // SAFETY: three values of a tensor that nobody else holds.
        unsafe { (own.address() as *mut f32).copy_from(part.address() as *const f32, 2) };
        assert_eq!(own.into_tensor().into_data().as_slice::<f32>().expect("f32"), [2.0, 3.0, 0.0]);
        assert_eq!(part.tensor().clone().into_data().as_slice::<f32>().expect("f32"), [2.0, 3.0]);
        let rounded = Tensor::<1>::from_data(TensorData::from([1.5f32, -2.0]), &device).cast(DType::BF16);
        let rounded = Addressed::new(rounded).expect("an address");
        // SAFETY: two values of a tensor that is alive.
        let values = unsafe { std::slice::from_raw_parts(rounded.address() as *const bf16, 2) };
        assert_eq!(values, [1.5, -2.0].map(bf16::from_f32));
        assert!(Addressed::new(Tensor::<1>::zeros([3], (&device, DType::F64))).is_err());
    }
}
