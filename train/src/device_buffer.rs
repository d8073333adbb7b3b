//! Buffers on a rank's device that ranks exchange where they are: tensors with the address of their values.

use crate::buffers::{Buffer, Buffers};
use crate::collective::{CollectiveError, Place};
use burn::tensor::{DType, Device, Tensor};
use kernels::Addressed;
use kernels::cuda::{Event, Stream};
use kernels::device::DeviceKind;
use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::Arc;

/// Where a rank's buffers are, and the stream on which they are exchanged.
pub struct DeviceMemory {
    device: Device,
    /// None where values are in the host's memory.
    stream: Option<Stream>,
}

impl DeviceMemory {
    /// Of the device that a rank computes on.
    ///
    /// # Errors
    /// What a GPU's driver says.
    pub fn new(device: &Device, kind: DeviceKind) -> Result<Arc<Self>, String> {
        let stream = match kind {
            DeviceKind::Cuda(index) => Some(Stream::new(index)?),
            _ => None,
        };
        Ok(Arc::new(Self { device: device.clone().inner(), stream }))
    }

    /// Makes the device that of the calling thread.
    pub(crate) fn enter(&self) -> Result<(), String> {
        self.stream.as_ref().map_or(Ok(()), Stream::enter)
    }

    /// The stream, whose further work waits for what computes the buffers.
    pub(crate) fn stream_after(&self, buffers: [&DeviceBuffer; 2]) -> Result<*mut c_void, String> {
        let Some(stream) = &self.stream else { return Ok(null_mut()) };
        for event in buffers.iter().filter_map(|buffer| buffer.computed.as_ref()) {
            stream.wait(event)?;
        }
        Ok(stream.raw())
    }

    /// The end of what was launched on the stream so far.
    pub(crate) fn after_stream(&self) -> Result<Option<Event>, String> {
        self.stream.as_ref().map(Stream::after_stream).transpose()
    }

    /// What is launched on the device so far.
    fn after_context(&self) -> Result<Option<Event>, String> {
        self.stream.as_ref().map(Stream::after_context).transpose()
    }
}

/// A vector on a rank's device, in f32, or in bf16 for values that nobody adds up. Made by the thread that computes, so that
/// an exchange waits for what was launched until then, and for nothing later.
pub struct DeviceBuffer {
    vector: Result<Addressed, String>,
    len: usize,
    dtype: DType,
    memory: Arc<DeviceMemory>,
    /// After the kernels that compute the values.
    computed: Option<Event>,
    /// A sum's earlier part, which the vector is added to in the end: where the rank computes, not where it exchanges.
    before: Option<Tensor<1>>,
    /// Whether a sum was put into the vector.
    is_summed: bool,
}

impl DeviceBuffer {
    /// Of a tensor that is computed, or that will be when what was launched is done.
    pub fn of(tensor: Tensor<1>, memory: &Arc<DeviceMemory>) -> Self {
        let ([len], dtype) = (tensor.dims(), tensor.dtype());
        let vector = Addressed::new(tensor).map_err(|error| error.to_string());
        let (vector, computed) = match vector.and_then(|vector| Ok((vector, memory.after_context()?))) {
            Ok((vector, computed)) => (Ok(vector), computed),
            Err(error) => (Err(error), None),
        };
        Self { vector, len, dtype, memory: Arc::clone(memory), computed, before: None, is_summed: false }
    }

    /// For a sum that is added to `before`.
    pub fn for_sum(before: Option<Tensor<1>>, len: usize, memory: &Arc<DeviceMemory>) -> Self {
        Self { before, ..Self::zeros(memory, len) }
    }

    /// Values.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Dtype.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Bytes of a value.
    pub fn value_bytes(&self) -> usize {
        self.dtype.size()
    }

    /// The values.
    ///
    /// # Errors
    /// [`CollectiveError::Gpu`] where there never were any.
    pub fn into_tensor(self) -> Result<Tensor<1>, CollectiveError> {
        let place = || Place { operation: "memory", block: "a device".into() };
        let values = self.vector.map_err(|cause| CollectiveError::Gpu { place: place(), cause })?.into_tensor();
        Ok(match self.before {
            Some(before) => before + values,
            None => values,
        })
    }

    /// Address of the first value.
    pub(crate) fn address(&self, place: &Place) -> Result<usize, CollectiveError> {
        let vector = self.vector.as_ref();
        let refused = |cause: &String| CollectiveError::Gpu { place: place.clone(), cause: cause.clone() };
        vector.map(Addressed::address).map_err(refused)
    }

    /// Address for a sum of all ranks, which is written there once.
    pub(crate) fn address_for_sum(&mut self, place: &Place) -> Result<usize, CollectiveError> {
        if std::mem::replace(&mut self.is_summed, true) {
            let cause = "a second sum in one buffer; report this".to_string();
            return Err(CollectiveError::Gpu { place: place.clone(), cause });
        }
        self.address(place)
    }
}

impl Buffer for DeviceBuffer {
    type Memory = Arc<DeviceMemory>;

    /// None is used again: parameters may still be views of it, and the device has a pool of its own.
    const SPARE: usize = 0;

    fn zeros(memory: &Arc<DeviceMemory>, len: usize) -> Self {
        Self::of(Tensor::zeros([len], (&memory.device, DType::F32)), memory)
    }

    fn room(&self) -> usize {
        0
    }

    fn with_len(self, len: usize) -> Self {
        Self::zeros(&self.memory, len)
    }

    fn add(&mut self, other: &Self) {
        if let (Ok(own), Ok(other)) = (&self.vector, &other.vector) {
            *self = Self::of(own.tensor().clone() + other.tensor().clone(), &self.memory);
        }
    }

    fn alike(&self, _: &Buffers<Self>, len: usize) -> Self {
        Self::of(Tensor::zeros([len], (&self.memory.device, self.dtype)), &self.memory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::TensorData;

    #[test]
    fn a_sum_is_added_to_what_there_was() {
        let device = kernels::device::cpu();
        let memory = DeviceMemory::new(&device, DeviceKind::Cpu).expect("the host's memory");
        let before = Tensor::from_data(TensorData::from([1.0f32, 2.0]), &device);
        let mut sum = DeviceBuffer::for_sum(Some(before), 2, &memory);
        let place = Place { operation: "reduce-scatter", block: "test".into() };
        let address = sum.address_for_sum(&place).expect("an address");
        // SAFETY: two values that nobody else holds.
        unsafe { (address as *mut f32).copy_from([10.0f32, 20.0].as_ptr(), 2) };
        assert!(sum.address_for_sum(&place).is_err(), "a second sum");
        let values = sum.into_tensor().expect("values").into_data();
        assert_eq!(values.as_slice::<f32>().expect("f32"), [11.0, 22.0]);
    }
}
