//! Memory of results: written once, without a pass of zeros before, which would cost a tenth of a small product.
//!
//! Who fills memory proves it by giving it back as values; only values leave this module.

use rayon::iter::IndexedParallelIterator;
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// A place for a value.
pub type Place = MaybeUninit<f32>;

/// A result of `len` values, which `fill` writes.
pub fn filled(len: usize, fill: impl for<'a> FnOnce(&'a mut [Place]) -> &'a mut [f32]) -> Vec<f32> {
    let mut output = Unwritten::new(len);
    require_all(output.places(), fill);
    // SAFETY: `fill` has given all places back as values.
    unsafe { output.assume_written() }
}

/// The same in chunks of `chunk` values, on all threads; `fill` gets one of the `inputs` with each.
pub fn filled_chunks<I: IndexedParallelIterator>(
    len: usize,
    chunk: usize,
    inputs: I,
    fill: impl for<'a> Fn(I::Item, &'a mut [Place]) -> &'a mut [f32] + Sync,
) -> Vec<f32> {
    let mut output = Unwritten::new(len);
    let chunks = output.places().par_chunks_mut(chunk.max(1)).zip(inputs);
    let written = chunks.map(|(places, input)| require_all(places, |places| fill(input, places)));
    assert_eq!(written.sum::<usize>(), len, "values of the chunks that have an input");
    // SAFETY: all places are in a chunk that was given back as values, or the numbers above would differ.
    unsafe { output.assume_written() }
}

/// Writes `places` row by row; `fill` gets one of the `inputs` with each.
pub fn fill_rows<T>(
    places: &mut [Place],
    width: usize,
    inputs: impl Iterator<Item = T>,
    fill: impl for<'a> Fn(T, &'a mut [Place]) -> &'a mut [f32],
) -> &mut [f32] {
    let rows = places.chunks_exact_mut(width.max(1)).zip(inputs);
    let written: usize = rows.map(|(row, input)| require_all(row, |row| fill(input, row))).sum();
    assert_eq!(written, places.len(), "values of the rows that have an input");
    // SAFETY: all places are in a row that was given back as values, or the numbers above would differ.
    unsafe { places.assume_init_mut() }
}

/// Writes `values` into `places`.
#[inline(always)]
pub fn write(places: &mut [Place], values: impl Iterator<Item = f32>) -> &mut [f32] {
    let mut written = 0;
    for (place, value) in places.iter_mut().zip(values) {
        place.write(value);
        written += 1;
    }
    assert_eq!(written, places.len(), "values");
    // SAFETY: as many values were written, from the first place on.
    unsafe { places.assume_init_mut() }
}

/// Lets `fill` write all of `places`; gives their number.
fn require_all(places: &mut [Place], fill: impl for<'a> FnOnce(&'a mut [Place]) -> &'a mut [f32]) -> usize {
    let (start, len) = (places.as_ptr().cast::<f32>(), places.len());
    let values = fill(places);
    assert!(values.len() == len && (len == 0 || values.as_ptr() == start), "other values than those of the places");
    len
}

/// Memory of a result, parts of which are written here and there.
pub struct Unwritten {
    /// Room for `len` values.
    values: Vec<f32>,
    len: usize,
}

impl Unwritten {
    /// Room for `len` values.
    pub fn new(len: usize) -> Self {
        Self { values: Vec::with_capacity(len), len }
    }

    /// All places.
    pub fn places(&mut self) -> &mut [Place] {
        &mut self.values.spare_capacity_mut()[..self.len]
    }

    /// The values.
    ///
    /// # Safety
    /// Every place has been written.
    pub unsafe fn assume_written(mut self) -> Vec<f32> {
        // SAFETY: the capacity is there, and the caller vouches for the values.
        unsafe { self.values.set_len(self.len) };
        self.values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_what_was_written() {
        let inputs: Vec<f32> = (0..103).map(|value| value as f32).collect();
        let double = |x: &[f32], places: &mut [Place]| write(places, x.iter().map(|x| 2.0 * x)).len();
        assert_eq!(double(&inputs[..3], &mut [Place::uninit(); 3]), 3);
        let found = filled_chunks(103, 10, inputs.par_chunks(10), |x, places| write(places, x.iter().map(|x| 2.0 * x)));
        assert!(found.iter().zip(&inputs).all(|(found, x)| *found == 2.0 * x));
        let rows =
            filled(6, |places| fill_rows(places, 2, 0..3, |row, places| write(places, [row as f32; 2].into_iter())));
        assert_eq!(rows, [0.0, 0.0, 1.0, 1.0, 2.0, 2.0]);
        assert!(filled(0, |places| write(places, [].into_iter())).is_empty());
    }

    #[test]
    #[should_panic(expected = "values of the chunks")]
    fn a_chunk_without_input_is_found() {
        filled_chunks(20, 10, [0.0f32].par_iter(), |&x, places| write(places, std::iter::repeat(x)));
    }

    #[test]
    #[should_panic(expected = "other values")]
    fn values_from_elsewhere_are_no_proof() {
        filled(2, |_| Box::leak(Box::new([0.0; 2])));
    }
}
