//! Dropout where the values are: the mask of `cpu::drop_values`, bit for bit, from a counter-based hash in the kernel. The host
//! sends 16 bytes for each sequence, once for a batch.

use super::{UNITS, constant, cubes_of_units, element, empty, operand, rows_and_width, tables, vector_size};
use crate::Dropout;
use burn::tensor::{DType, Device, Tensor};
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::UIntKind;
use cubecl::prelude::{Tensor as Buffer, *};

/// A dropout's numbers on a device.
#[derive(Clone, Debug)]
pub(crate) struct DeviceDropout {
    /// A stream for each token, or two numbers for each sequence: the hash of its row; its first row in the batch, in the upper half
    /// a number, and its first token. u64.
    streams: CubeTensor,
    sequences: usize,
    by_sequence: bool,
    site: u64,
    threshold: u16,
    kept: f32,
}

impl DeviceDropout {
    /// On the device of `like`.
    pub(crate) fn new(dropout: &Dropout, like: &CubeTensor) -> Self {
        let (numbers, by_sequence, site) = match &dropout.sequences {
            Some((sequences, site)) => {
                let mut row = 0;
                let numbers = sequences.iter().flat_map(|sequence| {
                    let place = (row as u64) << 32 | sequence.tokens.start as u64;
                    row += sequence.tokens.len();
                    [sequence.hash, place]
                });
                (numbers.collect::<Vec<u64>>(), true, *site)
            }
            None => (dropout.streams.to_vec(), false, 0),
        };
        let bytes = bytemuck::cast_slice(&numbers);
        // All layers of a batch have the same sequences.
        let streams = match by_sequence {
            true => tables::kept(like, bytes, numbers.len(), DType::U64),
            false => tables::sent(like, bytes, numbers.len(), DType::U64),
        };
        let Dropout { threshold, kept, .. } = *dropout;
        Self { streams, sequences: numbers.len() / 2, by_sequence, site, threshold, kept }
    }

    /// `scale · mask ∘ x`, plus `base` if there is one. Both `[T, width]`.
    pub(crate) fn apply(&self, x: &CubeTensor, scale: f32, base: Option<&CubeTensor>) -> CubeTensor {
        let [tokens, width] = rows_and_width(x);
        let output = empty(x, [tokens, width], x.dtype);
        // Four channels share a random number.
        let size = vector_size(width, &[x, base.unwrap_or(x)]).min(4);
        let units = tokens * width / size;
        if units > 0 {
            drop_values::launch(
                &x.client,
                cubes_of_units(x, units),
                CubeDim::new_1d(UNITS),
                size,
                x.clone().into_tensor_arg(),
                base.unwrap_or(x).clone().into_tensor_arg(),
                self.streams.clone().into_tensor_arg(),
                output.clone().into_tensor_arg(),
                units as u32,
                (width / size) as u32,
                self.sequences as u32,
                // Halvings that find one of so many.
                usize::BITS - self.sequences.leading_zeros(),
                u32::from(self.threshold),
                self.kept * scale,
                self.site,
                self.by_sequence,
                base.is_some(),
                element(x),
            );
        }
        output
    }
}

/// Whether the device computes in 64 bits, as the hash does.
pub(crate) fn has_u64(like: &CubeTensor) -> bool {
    like.client.properties().supports_type(ElemType::UInt(UIntKind::U64))
}

/// See [`Dropout::mask`]; `None` on another backend.
pub(crate) fn mask(dropout: &Dropout, width: usize, device: &Device) -> Option<Tensor<2>> {
    // Whether the device is for these kernels, before anything large is made.
    operand(&Tensor::<2>::ones([1, 1], device)).filter(|ones| has_u64(&ones.values))?;
    let ones = operand(&Tensor::<2>::ones([dropout.streams.len(), width], device))?;
    let mask = DeviceDropout::new(dropout, &ones.values).apply(&ones.values, 1.0, None);
    Some(constant(ones.node, mask))
}

/// `base::splitmix`.
#[cube]
fn splitmix(value: u64) -> u64 {
    let value = value + 0x9E37_79B9_7F4A_7C15u64;
    let value = (value ^ (value >> 30u64)) * 0xBF58_476D_1CE4_E5B9u64;
    let value = (value ^ (value >> 27u64)) * 0x94D0_49BB_1331_11EBu64;
    value ^ (value >> 31u64)
}

/// The number that, with the channel, decides whether a token's value is dropped.
#[cube]
#[allow(clippy::collapsible_if)]
fn stream_of_token(
    streams: &Buffer<u64>,
    token: u32,
    sequences: u32,
    halvings: u32,
    site: u64,
    #[comptime] by_sequence: bool,
) -> u64 {
    if by_sequence {
        // The last sequence that begins at the token or before, one bit of its number at a time.
        let mut sequence = 0u32;
        for step in 0..halvings {
            let later = sequence + (1u32 << (halvings - 1u32 - step));
            if later < sequences {
                if u32::cast_from(streams[(2 * later + 1) as usize] >> 32u64) <= token {
                    sequence = later;
                }
            }
        }
        let place = streams[(2 * sequence + 1) as usize];
        let of_sequence = u64::cast_from(token) - (place >> 32u64) + (place & 0xFFFF_FFFFu64);
        splitmix(splitmix(streams[(2 * sequence) as usize] ^ site) ^ of_sequence)
    } else {
        streams[token as usize]
    }
}

/// A unit for each vector of up to four channels.
#[cube(launch)]
fn drop_values<F: Float, N: Size>(
    x: &Buffer<Vector<F, N>>,
    base: &Buffer<Vector<F, N>>,
    streams: &Buffer<u64>,
    output: &mut Buffer<Vector<F, N>>,
    units: u32,
    vectors: u32,
    sequences: u32,
    halvings: u32,
    threshold: u32,
    kept: f32,
    site: u64,
    #[comptime] by_sequence: bool,
    #[comptime] with_base: bool,
    #[define(F)] _dtype: ElemType,
) {
    let unit = ABSOLUTE_POS as u32;
    if unit < units {
        let token = unit / vectors;
        let channel = unit % vectors * N::value() as u32;
        let stream = stream_of_token(streams, token, sequences, halvings, site, by_sequence);
        let word = splitmix(stream + u64::cast_from(channel / 4));
        let mut factors = Vector::<f32, N>::new(0.0f32);
        #[unroll]
        for lane in 0..N::value() {
            let shift = 16 * ((channel + lane as u32) % 4);
            let bits = u32::cast_from(word >> u64::cast_from(shift)) & 0xFFFFu32;
            factors.insert(lane, select(bits >= threshold, kept, 0.0f32));
        }
        let at = unit as usize;
        let dropped = Vector::<f32, N>::cast_from(x[at]) * factors;
        if with_base {
            output[at] = Vector::cast_from(Vector::<f32, N>::cast_from(base[at]) + dropped);
        } else {
            output[at] = Vector::cast_from(dropped);
        }
    }
}
