//! Views of matrices in memory.

use super::output::Place;
use std::marker::PhantomData;
use std::ops::Range;

/// A matrix to read: element (i, j) is at `data[i · row_stride + j · column_stride]`.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    data: &'a [f32],
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// Distance of a column's neighbours.
    pub row_stride: usize,
    /// Distance of a row's neighbours.
    pub column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// Rows one after another.
    ///
    /// # Panics
    /// If `data` is not as long as the sizes say.
    pub fn new(data: &'a [f32], rows: usize, columns: usize) -> Self {
        assert_eq!(data.len(), rows * columns, "a {rows} × {columns} matrix");
        Self { data, rows, columns, row_stride: columns, column_stride: 1 }
    }

    /// Rows and columns exchanged.
    pub fn transposed(self) -> Self {
        let Self { data, rows, columns, row_stride, column_stride } = self;
        Self { data, rows: columns, columns: rows, row_stride: column_stride, column_stride: row_stride }
    }

    /// A part.
    ///
    /// # Panics
    /// If the ranges reach outside.
    pub fn block(self, rows: Range<usize>, columns: Range<usize>) -> Self {
        assert!(rows.start <= rows.end && rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
        assert!(columns.start <= columns.end && columns.end <= self.columns, "columns {columns:?} of {}", self.columns);
        let start = rows.start * self.row_stride + columns.start * self.column_stride;
        let data = &self.data[start.min(self.data.len())..];
        Self { data, rows: rows.len(), columns: columns.len(), ..self }
    }

    /// One value.
    #[inline(always)]
    pub fn at(&self, row: usize, column: usize) -> f32 {
        self.data[row * self.row_stride + column * self.column_stride]
    }

    /// A row whose values are neighbours.
    #[inline(always)]
    pub fn row(&self, row: usize) -> &'a [f32] {
        assert_eq!(self.column_stride, 1, "the values of a row must be neighbours");
        &self.data[row * self.row_stride..][..self.columns]
    }

    /// All values, of a whole matrix with its rows one after another.
    pub fn values(&self) -> &'a [f32] {
        assert!(self.column_stride == 1 && self.row_stride == self.columns, "rows must lie one after another");
        &self.data[..self.rows * self.columns]
    }

    /// The memory from the first value on.
    pub fn data(&self) -> &'a [f32] {
        self.data
    }

    /// The first value's address.
    pub fn as_ptr(&self) -> *const f32 {
        self.data.as_ptr()
    }
}

/// A matrix to write, which it alone may touch: the values of a row are neighbours, rows are `row_stride` apart. Its elements are
/// values, or places (`Place`) for values that are still to be written.
#[derive(Debug)]
pub struct MatrixMut<'a, T = f32> {
    /// The first element. All `rows` × `columns` elements at the strides are within the slice that the matrix was made of, and no
    /// other view has one of them.
    data: *mut T,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// Distance of a column's neighbours.
    pub row_stride: usize,
    exclusive: PhantomData<&'a mut [T]>,
}

// SAFETY: a view has its elements for itself, like the `&mut [T]` that it was made of.
unsafe impl<T: Send> Send for MatrixMut<'_, T> {}

impl<'a, T> MatrixMut<'a, T> {
    /// Rows one after another.
    ///
    /// # Panics
    /// If `data` is not as long as the sizes say.
    pub fn new(data: &'a mut [T], rows: usize, columns: usize) -> Self {
        assert_eq!(data.len(), rows * columns, "a {rows} × {columns} matrix");
        Self { data: data.as_mut_ptr(), rows, columns, row_stride: columns, exclusive: PhantomData }
    }

    /// A row.
    #[inline(always)]
    pub fn row_mut(&mut self, row: usize) -> &mut [T] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        // SAFETY: the row lies within the elements that this view has for itself.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(row * self.row_stride), self.columns) }
    }

    /// The first element's address.
    pub fn as_mut_ptr(&mut self) -> *mut T {
        self.data
    }

    /// The view for a while.
    pub fn reborrow(&mut self) -> MatrixMut<'_, T> {
        MatrixMut { exclusive: PhantomData, ..*self }
    }

    /// Some rows.
    ///
    /// # Panics
    /// If the range reaches outside.
    pub fn rows(&mut self, rows: Range<usize>) -> MatrixMut<'_, T> {
        assert!(rows.start <= rows.end && rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
        // No rows may begin behind the slice, where nothing is.
        let data = self.data.wrapping_add(rows.start * self.row_stride);
        MatrixMut { data, rows: rows.len(), exclusive: PhantomData, ..*self }
    }

    /// Some columns.
    ///
    /// # Panics
    /// If the range reaches outside.
    pub fn columns(self, columns: Range<usize>) -> Self {
        assert!(columns.start <= columns.end && columns.end <= self.columns, "columns {columns:?} of {}", self.columns);
        // No columns may begin behind the slice, where nothing is.
        Self { data: self.data.wrapping_add(columns.start), columns: columns.len(), ..self }
    }

    /// The first columns.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn first_columns(self, columns: usize) -> Self {
        assert!(columns <= self.columns, "{columns} columns of {}", self.columns);
        Self { columns, ..self }
    }

    /// Parts of at most `rows` rows and `columns` columns, row by row. They do not overlap, and have all elements.
    pub fn tiles(self, rows: usize, columns: usize) -> Vec<Tile<'a, T>> {
        let (rows, columns) = (rows.max(1), columns.max(1));
        let mut tiles = Vec::new();
        for row in (0..self.rows).step_by(rows) {
            for column in (0..self.columns).step_by(columns) {
                let data = self.data.wrapping_add(row * self.row_stride + column);
                let (rows, columns) = (rows.min(self.rows - row), columns.min(self.columns - column));
                tiles.push(Tile { row, column, part: MatrixMut { data, rows, columns, ..self } });
            }
        }
        tiles
    }

    /// The columns in groups of `width`.
    pub fn column_groups(self, width: usize) -> Vec<Self> {
        let rows = self.rows;
        self.tiles(rows, width).into_iter().map(|tile| tile.part).collect()
    }

    /// Its rows, each a part.
    pub fn single_rows(self) -> Vec<Self> {
        let lens = vec![1; self.rows];
        self.row_groups(&lens)
    }

    /// Rows of the given numbers, one part after another.
    ///
    /// # Panics
    /// If there are other numbers of rows than the parts have.
    pub fn row_groups(self, lens: &[usize]) -> Vec<Self> {
        assert_eq!(lens.iter().sum::<usize>(), self.rows, "rows of the parts");
        let mut start = 0;
        let part = |&rows: &usize| {
            let data = self.data.wrapping_add(start * self.row_stride);
            start += rows;
            MatrixMut { data, rows, ..self }
        };
        lens.iter().map(part).collect()
    }

    fn cast<U>(self) -> MatrixMut<'a, U> {
        let Self { data, rows, columns, row_stride, .. } = self;
        MatrixMut { data: data.cast(), rows, columns, row_stride, exclusive: PhantomData }
    }
}

impl<'a> MatrixMut<'a> {
    /// All values of a whole matrix.
    pub fn into_values(self) -> &'a mut [f32] {
        assert!(self.row_stride == self.columns, "rows must lie one after another");
        // SAFETY: the values are neighbours, and this view's alone for as long as it lives.
        unsafe { std::slice::from_raw_parts_mut(self.data, self.rows * self.columns) }
    }

    /// The values as places.
    ///
    /// # Safety
    /// Nothing but values is written there.
    pub unsafe fn into_places(self) -> MatrixMut<'a, Place> {
        self.cast()
    }
}

impl<'a> MatrixMut<'a, Place> {
    /// Writes `value` everywhere.
    pub fn fill(mut self, value: f32) -> MatrixMut<'a> {
        for row in 0..self.rows {
            self.row_mut(row).fill(Place::new(value));
        }
        // SAFETY: all rows have been written.
        unsafe { self.assume_written() }
    }

    /// The places as values.
    ///
    /// # Safety
    /// All of them have been written.
    pub unsafe fn assume_written(self) -> MatrixMut<'a> {
        self.cast()
    }
}

/// A part of a matrix and where it begins.
#[derive(Debug)]
pub struct Tile<'a, T = f32> {
    /// First row.
    pub row: usize,
    /// First column.
    pub column: usize,
    /// The part.
    pub part: MatrixMut<'a, T>,
}
