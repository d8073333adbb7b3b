//! Gradients of a block's parameters added to the block's flat sum, eight in a launch: from any dtype into f32.

use super::operand::{Backend, into_values, is_float_vector};
use super::{UNITS, cubes_of_units, element, empty, is_operand, operand, vector_size};
use crate::GradientPart;
use burn::tensor::{DType, Tensor};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::{Tensor as Buffer, *};

/// Sum and parts of a call.
type Inputs = (Option<Tensor<1>>, Vec<GradientPart>);

/// Parts of a launch.
const PARTS: usize = 8;

/// A part's values, one behind the other, and the end of its range.
struct Part {
    end: usize,
    values: Option<CubeTensor>,
}

impl Part {
    fn len(&self) -> usize {
        self.values.as_ref().map_or(0, |values| values.meta.num_elements())
    }
}

/// See [`crate::accumulate`]. Gives the inputs back on another backend.
#[allow(clippy::result_large_err)] // no error: the inputs, once for each block and micro-step
pub(crate) fn accumulate(sum: Option<Tensor<1>>, parts: Vec<GradientPart>) -> Result<Tensor<1>, Inputs> {
    let values = || parts.iter().filter_map(|part| part.values.as_ref());
    let is_for_this = sum.as_ref().is_none_or(is_float_vector) && values().all(is_operand);
    let like = values().next().and_then(|values| values.clone().try_into_primitive::<Backend>().ok());
    let (Some(like), true) = (like, is_for_this) else { return Err((sum, parts)) };
    let len = parts.last().map_or(0, |part| part.range.end);
    let mut start = parts.first().map_or(0, |part| part.range.start);
    let (sum, is_new) = match sum.and_then(into_values) {
        Some(sum) => (if sum.can_mut() { sum } else { sum.copy() }, false),
        None => (empty(&like, [len], DType::F32), true),
    };
    let parts: Vec<Part> = parts
        .into_iter()
        .map(|GradientPart { range, values }| Part {
            end: range.end,
            values: values.and_then(|values| operand(&values)).map(|values| values.values),
        })
        .collect();
    let mut rest = &parts[..];
    while !rest.is_empty() {
        let (parts, others) = rest.split_at(alike(rest));
        add(&sum, start, parts, &like, is_new);
        (rest, start) = (others, parts.last().map_or(start, |part| part.end));
    }
    Ok(Tensor::from_primitive::<Backend>(sum))
}

/// How many of the first parts a launch takes: their values have one dtype.
fn alike(parts: &[Part]) -> usize {
    let mut of_launch = None;
    let is_alike = |part: &&Part| {
        let dtype = part.values.as_ref().map(|values| values.dtype);
        let is_alike = dtype.is_none() || of_launch.is_none() || dtype == of_launch;
        of_launch = of_launch.or(dtype);
        is_alike
    };
    parts.iter().take(PARTS).take_while(is_alike).count()
}

/// Adds parts whose ranges follow one another from `start` on; `other` stands for values that are not there.
fn add(sum: &CubeTensor, start: usize, parts: &[Part], other: &CubeTensor, is_new: bool) {
    let first = parts.iter().find_map(|part| part.values.as_ref());
    if first.is_none() && !is_new {
        return;
    }
    let other = first.unwrap_or(other);
    let fits = |size: usize, part: &Part| {
        let values = part.values.as_ref().unwrap_or(other);
        let size = size.min(vector_size(part.len(), &[values, sum]));
        if part.end.is_multiple_of(size) { size } else { 1 }
    };
    let size = parts.iter().fold(if start.is_multiple_of(8) { 8 } else { 1 }, fits);
    let at = |place: usize| parts.get(place).or(parts.last());
    let end = |place: usize| (at(place).map_or(start, |part| part.end) - start) / size;
    let len = |place: usize| parts.get(place).map_or(0, Part::len) / size;
    let values = |place: usize| parts.get(place).and_then(|part| part.values.as_ref()).unwrap_or(other).clone();
    let units = end(PARTS - 1);
    if units == 0 {
        return;
    }
    add_values::launch(
        &sum.client,
        cubes_of_units(sum, units),
        CubeDim::new_1d(UNITS),
        size,
        values(0).into_tensor_arg(),
        values(1).into_tensor_arg(),
        values(2).into_tensor_arg(),
        values(3).into_tensor_arg(),
        values(4).into_tensor_arg(),
        values(5).into_tensor_arg(),
        values(6).into_tensor_arg(),
        values(7).into_tensor_arg(),
        sum.clone().into_tensor_arg(),
        (start / size) as u32,
        end(0) as u32,
        end(1) as u32,
        end(2) as u32,
        end(3) as u32,
        end(4) as u32,
        end(5) as u32,
        end(6) as u32,
        units as u32,
        len(0) as u32,
        len(1) as u32,
        len(2) as u32,
        len(3) as u32,
        len(4) as u32,
        len(5) as u32,
        len(6) as u32,
        len(7) as u32,
        is_new,
        element(other),
    );
}

/// A part's value; 0 behind its end.
#[cube]
fn value_of<G: Float, N: Size>(values: &Buffer<Vector<G, N>>, at: u32, len: u32) -> Vector<f32, N> {
    let mut value = Vector::<f32, N>::new(0.0f32);
    if at < len {
        value = Vector::<f32, N>::cast_from(values[at as usize]);
    }
    value
}

/// A unit for each vector of the ranges.
#[cube(launch)]
#[allow(clippy::assign_op_pattern, unused_assignments)] // cubecl reads the code
fn add_values<G: Float, N: Size>(
    first: &Buffer<Vector<G, N>>,
    second: &Buffer<Vector<G, N>>,
    third: &Buffer<Vector<G, N>>,
    fourth: &Buffer<Vector<G, N>>,
    fifth: &Buffer<Vector<G, N>>,
    sixth: &Buffer<Vector<G, N>>,
    seventh: &Buffer<Vector<G, N>>,
    eighth: &Buffer<Vector<G, N>>,
    sum: &mut Buffer<Vector<f32, N>>,
    start: u32,
    first_end: u32,
    second_end: u32,
    third_end: u32,
    fourth_end: u32,
    fifth_end: u32,
    sixth_end: u32,
    seventh_end: u32,
    units: u32,
    first_len: u32,
    second_len: u32,
    third_len: u32,
    fourth_len: u32,
    fifth_len: u32,
    sixth_len: u32,
    seventh_len: u32,
    eighth_len: u32,
    #[comptime] is_new: bool,
    #[define(G)] _dtype: ElemType,
) {
    let unit = ABSOLUTE_POS as u32;
    if unit < units {
        let mut value = Vector::<f32, N>::new(0.0f32);
        if unit < first_end {
            value = value_of::<G, N>(first, unit, first_len);
        } else if unit < second_end {
            value = value_of::<G, N>(second, unit - first_end, second_len);
        } else if unit < third_end {
            value = value_of::<G, N>(third, unit - second_end, third_len);
        } else if unit < fourth_end {
            value = value_of::<G, N>(fourth, unit - third_end, fourth_len);
        } else if unit < fifth_end {
            value = value_of::<G, N>(fifth, unit - fourth_end, fifth_len);
        } else if unit < sixth_end {
            value = value_of::<G, N>(sixth, unit - fifth_end, sixth_len);
        } else if unit < seventh_end {
            value = value_of::<G, N>(seventh, unit - sixth_end, seventh_len);
        } else {
            value = value_of::<G, N>(eighth, unit - seventh_end, eighth_len);
        }
        let at = (start + unit) as usize;
        if is_new {
            sum[at] = value;
        } else {
            sum[at] = sum[at] + value;
        }
    }
}
