//! Values of the trained parameters: read where they are and changed in place, on the CPU without a copy; or, where the model
//! computes in bf16, replaced by the rounded values of masters that are kept elsewhere.

use crate::layout::{Layout, ParamSlot};
use anyhow::{Result, anyhow};
use base::names;
use burn::backend::Flex;
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{DType, Device, Tensor, TensorData};
use model::Llava;
use model::named::{NamedMapper, map_named};
use replace_with::replace_with_or_abort;

/// Shows the values of a block's parameters, one parameter after another.
///
/// # Errors
/// A backend that cannot give its values as f32.
pub fn read(model: &Llava, layout: &Layout, block: usize, look: impl FnMut(&ParamSlot, &[f32])) -> Result<()> {
    let mut reader = Reader { layout, block, look, error: None };
    model.visit(&mut reader);
    reader.error.map_or(Ok(()), Err)
}

/// Lets `change` change the values (f32) of the parameters of one block, or of all. A parameter whose values somebody else holds
/// too (a checkpoint that is being written) gets values of its own; theirs do not change.
pub fn edit(
    model: &mut Llava,
    layout: &Layout,
    block: Option<usize>,
    change: impl FnMut(usize, &ParamSlot, &mut [f32]),
) {
    // The model is moved out and in again: a second handle of a tensor would turn every change in place into a copy.
    replace_with_or_abort(model, |model| model.map(&mut Editor { layout, block, change }));
}

/// Puts the values of a block's parameters, one after another, into the model, in its dtype.
pub fn set(model: &mut Llava, layout: &Layout, block: usize, flat: &[f32]) {
    replace_with_or_abort(model, |model| model.map(&mut Setter { layout, block, flat }));
}

/// As [`set`], from where the model is.
pub fn set_on_device(model: &mut Llava, layout: &Layout, block: usize, flat: &Tensor<1>) {
    replace_with_or_abort(model, |model| model.map(&mut DeviceSetter { layout, block, flat }));
}

/// The values of a block's parameters in f32, `[len]` each, where the model is.
pub fn on_model_device(model: &Llava, layout: &Layout, block: usize) -> Vec<Option<Tensor<1>>> {
    let mut getter = Getter { layout, block, found: vec![None; layout.blocks[block].params.len()] };
    model.visit(&mut getter);
    getter.found
}

/// Of each block, bf16 where the model holds all of its trained parameters so, else f32: new values that are gathered in it are
/// rounded once.
pub fn dtypes(model: &Llava, layout: &Layout) -> Vec<DType> {
    let mut found = Dtypes { layout, of_block: vec![DType::BF16; layout.blocks.len()] };
    model.visit(&mut found);
    found.of_block
}

/// Gives every trained parameter other values: `change` gets the old ones and gives the new ones, `[len]`, where the model is.
pub fn replace(model: &mut Llava, layout: &Layout, change: impl FnMut(usize, &ParamSlot, Tensor<1>) -> Tensor<1>) {
    replace_with_or_abort(model, |model| model.map(&mut Replacer { layout, change }));
}

/// The model with all values in bf16, rounded to nearest even, but for DoRA's magnitudes: what they say is how far they are
/// from the lengths of rows, for which bf16 has three digits.
pub fn in_bf16(model: Llava) -> Llava {
    map_named(model, &mut Rounder)
}

/// Shows a tensor's values as bytes, on the CPU without a copy.
pub fn with_bytes<T, const D: usize>(tensor: Tensor<D>, look: impl FnOnce(&[u8]) -> T) -> T {
    let tensor = plain(tensor);
    if is_cpu(&tensor.device())
        && let Ok(primitive) = tensor.clone().try_into_primitive::<Flex>()
        && let Some(values) = primitive.as_slice::<f32>()
    {
        return look(bytemuck::cast_slice(values));
    }
    look(tensor.into_data().as_bytes())
}

/// What `rank` owns of a block's values, padding included.
///
/// # Errors
/// As [`read`].
pub fn owned(model: &Llava, layout: &Layout, block: usize) -> Result<Vec<f32>> {
    let of_block = &layout.blocks[block];
    let mut own = vec![0.0; of_block.partition_len()];
    read(model, layout, block, |slot, values| {
        for (range, start) in of_block.owned_ranges(slot, layout.rank) {
            own[start..start + range.len()].copy_from_slice(&values[range]);
        }
    })?;
    Ok(own)
}

/// Values of the whole model, trained or not.
pub fn count(model: &Llava) -> usize {
    model.num_params()
}

struct Reader<'a, F> {
    layout: &'a Layout,
    block: usize,
    look: F,
    error: Option<anyhow::Error>,
}

impl<F: FnMut(&ParamSlot, &[f32])> ModuleVisitor for Reader<'_, F> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let found = self.layout.find(param.id);
        let Some((_, slot)) = found.filter(|(block, _)| *block == self.block) else { return };
        let tensor = plain(param.val());
        let looked = if is_cpu(&tensor.device()) {
            match tensor.try_into_primitive::<Flex>() {
                Ok(primitive) => primitive.as_slice::<f32>().map(|values| (self.look)(slot, values)).is_some(),
                Err(_) => false,
            }
        } else {
            let data = tensor.into_data();
            data.as_slice::<f32>().map(|values| (self.look)(slot, values)).is_ok()
        };
        if !looked {
            self.error.get_or_insert_with(|| anyhow!("the values of {} are not f32 in one piece", slot.name));
        }
    }
}

struct Editor<'a, F> {
    layout: &'a Layout,
    block: Option<usize>,
    change: F,
}

impl<F: FnMut(usize, &ParamSlot, &mut [f32])> ModuleMapper for Editor<'_, F> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        match self.layout.find(param.id) {
            Some((block, slot)) if self.block.is_none_or(|wanted| wanted == block) => {
                edit_param(param, |values| (self.change)(block, slot, values))
            }
            _ => param,
        }
    }
}

struct Setter<'a> {
    layout: &'a Layout,
    block: usize,
    flat: &'a [f32],
}

impl ModuleMapper for Setter<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        match self.layout.find(param.id) {
            Some((block, slot)) if block == self.block => {
                let values = &self.flat[slot.offset..][..slot.len];
                with_values(param, |old| match old.dtype() {
                    DType::F32 if is_cpu(&old.device()) => edit_in_place(old, |place| place.copy_from_slice(values)),
                    dtype => on_device(TensorData::new(values.to_vec(), old.dims()), dtype, &old.device()),
                })
            }
            _ => param,
        }
    }
}

struct DeviceSetter<'a> {
    layout: &'a Layout,
    block: usize,
    flat: &'a Tensor<1>,
}

impl ModuleMapper for DeviceSetter<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        match self.layout.find(param.id) {
            Some((block, slot)) if block == self.block => {
                let values = self.flat.clone().narrow(0, slot.offset, slot.len);
                with_values(param, |old| values.reshape(old.dims()).cast(old.dtype()))
            }
            _ => param,
        }
    }
}

struct Getter<'a> {
    layout: &'a Layout,
    block: usize,
    found: Vec<Option<Tensor<1>>>,
}

impl ModuleVisitor for Getter<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some((_, slot)) = self.layout.find(param.id).filter(|(block, _)| *block == self.block) {
            let values = plain(param.val()).cast(DType::F32).reshape([slot.len]);
            self.found[self.layout.blocks[self.block].index_of(slot)] = Some(values);
        }
    }
}

struct Dtypes<'a> {
    layout: &'a Layout,
    of_block: Vec<DType>,
}

impl ModuleVisitor for Dtypes<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some((block, _)) = self.layout.find(param.id)
            && param.val().dtype() != DType::BF16
        {
            self.of_block[block] = DType::F32;
        }
    }
}

struct Replacer<'a, F> {
    layout: &'a Layout,
    change: F,
}

impl<F: FnMut(usize, &ParamSlot, Tensor<1>) -> Tensor<1>> ModuleMapper for Replacer<'_, F> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some((block, slot)) = self.layout.find(param.id) else { return param };
        with_values(param, |old| {
            let (shape, dtype) = (old.dims(), old.dtype());
            (self.change)(block, slot, old.reshape([slot.len])).reshape(shape).cast(dtype)
        })
    }
}

struct Rounder;

impl NamedMapper for Rounder {
    fn map<const D: usize>(&mut self, name: String, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        // A weight in few bits has no values here.
        let is_empty = |tensor: &Tensor<D>| tensor.dims().contains(&0);
        match names::is_lora_magnitude(&name) {
            true => param,
            false => with_values(param, |tensor| if is_empty(&tensor) { tensor } else { tensor.cast(DType::BF16) }),
        }
    }
}

/// Changes a parameter's values: in place on the CPU, through a copy elsewhere.
fn edit_param<const D: usize>(param: Param<Tensor<D>>, change: impl FnOnce(&mut [f32])) -> Param<Tensor<D>> {
    with_values(
        param,
        |tensor| {
            if is_cpu(&tensor.device()) { edit_in_place(tensor, change) } else { edit_copy(tensor, change) }
        },
    )
}

/// The same parameter with other values; `change` sees them without autodiff.
fn with_values<const D: usize>(
    param: Param<Tensor<D>>,
    change: impl FnOnce(Tensor<D>) -> Tensor<D>,
) -> Param<Tensor<D>> {
    let (id, tensor, mapper) = param.consume();
    let (trained, device) = (tensor.is_require_grad(), tensor.device());
    let tensor = change(plain(tensor));
    let tensor = if device.is_autodiff() { Tensor::from_inner(tensor) } else { tensor };
    Param::from_mapped_value(id, tensor.set_require_grad(trained), mapper)
}

/// Values being copied to a device: through pinned memory where it has such.
fn on_device<const D: usize>(values: TensorData, dtype: DType, device: &Device) -> Tensor<D> {
    let mut values = values.convert_dtype(dtype);
    device.staging(std::iter::once(&mut values));
    Tensor::from_data(values, (device, dtype))
}

/// Without autodiff.
fn plain<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    if tensor.device().is_autodiff() { tensor.inner() } else { tensor }
}

fn is_cpu(device: &Device) -> bool {
    device.clone().inner() == kernels::device::cpu()
}

fn edit_in_place<const D: usize>(tensor: Tensor<D>, change: impl FnOnce(&mut [f32])) -> Tensor<D> {
    match tensor.try_into_primitive::<Flex>() {
        Ok(mut primitive) => {
            change(primitive.storage_mut::<f32>());
            Tensor::from_primitive::<Flex>(primitive)
        }
        Err(error) => unreachable!("a tensor of the CPU device is a tensor of its backend: {error:?}"),
    }
}

fn edit_copy<const D: usize>(tensor: Tensor<D>, change: impl FnOnce(&mut [f32])) -> Tensor<D> {
    let (shape, device) = (tensor.dims(), tensor.device());
    let mut values: Vec<f32> = tensor.into_data().iter::<f32>().collect();
    change(&mut values);
    on_device(TensorData::new(values, shape), DType::F32, &device)
}
