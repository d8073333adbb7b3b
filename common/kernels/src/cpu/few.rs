//! Products with a weight for few rows of x, as decode steps have them: the weight is read once, where it lies. Batch-invariant: a
//! row of x gives the same bits whatever the other rows are.

use super::dot_products::{Element, dots_of_rows};
use super::matrix::{Matrix, MatrixMut, Tile};
use super::output::{Place, filled};
use super::team;

/// Output channels in one task, at least and at most. Where there are many, a thread's turn is longer.
const TASK_CHANNELS: [usize; 2] = [32, 256];
/// Tasks, unless these would be too small or too large.
const TASKS: usize = 16;
/// A product with fewer values of the weight is not worth another thread's notice.
const SMALL: usize = 1 << 14;

/// Dot products of rows of x with rows of a weight.
pub trait Dots: Sync {
    /// Values of a row.
    fn width(&self) -> usize;
    /// Rows of x from `token` on with rows of the weight from `channel` on.
    fn dots<const T: usize, const R: usize>(&self, token: usize, channel: usize) -> [[f32; T]; R];
}

/// A weight whose rows follow each other, and its scales, one a row.
pub struct Rows<'a, E> {
    pub x: Matrix<'a>,
    pub weight: &'a [E],
    pub scales: Option<&'a [f32]>,
}

impl<E: Element> Dots for Rows<'_, E> {
    fn width(&self) -> usize {
        self.x.columns
    }

    #[inline(always)]
    fn dots<const T: usize, const R: usize>(&self, token: usize, channel: usize) -> [[f32; T]; R] {
        let width = self.x.columns;
        let inputs = std::array::from_fn(|t| self.x.row(token + t));
        let weights = std::array::from_fn(|r| &self.weight[(channel + r) * width..][..width]);
        let mut sums = dots_of_rows(inputs, weights, R * width);
        if let Some(scales) = self.scales {
            let rows = sums.iter_mut().zip(&scales[channel..]);
            rows.for_each(|(sums, scale)| sums.iter_mut().for_each(|sum| *sum *= scale));
        }
        sums
    }
}

/// `[tokens, out]`: dot products and bias.
pub fn few(product: &impl Dots, tokens: usize, out: usize, bias: Option<&[f32]>) -> Vec<f32> {
    filled(tokens * out, |output| {
        let mut output = MatrixMut::new(output, tokens, out);
        let [least, most] = TASK_CHANNELS;
        let task = if out * product.width() < SMALL { out } else { (out / TASKS).clamp(least, most) };
        team::map(output.reborrow().tiles(tokens, task), |task| channels(product, task, bias));
        // SAFETY: the tasks have all places, and `channels` writes all of a task's.
        unsafe { output.assume_written() }.into_values()
    })
}

/// A task: some channels of all tokens, as many tokens at a time as sums fit into registers.
fn channels(product: &impl Dots, task: Tile<Place>, bias: Option<&[f32]>) {
    let Tile { column, mut part, .. } = task;
    let mut token = 0;
    while token < part.rows {
        let to = &mut part;
        token += match to.rows - token {
            8.. => block::<8, 2>(product, to, token, column, bias),
            6.. => block::<6, 2>(product, to, token, column, bias),
            4.. => block::<4, 4>(product, to, token, column, bias),
            3 => block::<3, 4>(product, to, token, column, bias),
            2 => block::<2, 4>(product, to, token, column, bias),
            _ => block::<1, 8>(product, to, token, column, bias),
        };
    }
}

/// `T` tokens of a task, `R` channels at a time; gives `T`.
fn block<const T: usize, const R: usize>(
    product: &impl Dots,
    part: &mut MatrixMut<Place>,
    token: usize,
    first: usize,
    bias: Option<&[f32]>,
) -> usize {
    let (channels, whole) = (part.columns, part.columns / R * R);
    let mut write = |channel: usize, sums: [f32; T]| {
        let bias = bias.map_or(0.0, |bias| bias[first + channel]);
        for (t, sum) in sums.into_iter().enumerate() {
            part.row_mut(token + t)[channel] = Place::new(sum + bias);
        }
    };
    for channel in (0..whole).step_by(R) {
        let sums: [[f32; T]; R] = product.dots(token, first + channel);
        sums.into_iter().zip(channel..).for_each(|(sums, channel)| write(channel, sums));
    }
    for channel in whole..channels {
        let [sums] = product.dots::<T, 1>(token, first + channel);
        write(channel, sums);
    }
    T
}
