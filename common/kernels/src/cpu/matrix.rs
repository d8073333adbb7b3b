//! Views of matrices in memory.

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

/// A matrix to write, which it alone may touch: the values of a row are neighbours, rows are `row_stride` apart.
#[derive(Debug)]
pub struct MatrixMut<'a> {
    data: *mut f32,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// Distance of a column's neighbours.
    pub row_stride: usize,
    exclusive: PhantomData<&'a mut [f32]>,
}

// SAFETY: a view has its elements for itself, like the `&mut [f32]` that it was made of.
unsafe impl Send for MatrixMut<'_> {}

impl<'a> MatrixMut<'a> {
    /// Rows one after another.
    ///
    /// # Panics
    /// If `data` is not as long as the sizes say.
    pub fn new(data: &'a mut [f32], rows: usize, columns: usize) -> Self {
        assert_eq!(data.len(), rows * columns, "a {rows} × {columns} matrix");
        Self { data: data.as_mut_ptr(), rows, columns, row_stride: columns, exclusive: PhantomData }
    }

    /// A row.
    #[inline(always)]
    pub fn row_mut(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        // SAFETY: the row lies within the elements that this view has for itself.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(row * self.row_stride), self.columns) }
    }

    /// The first value's address.
    pub fn as_mut_ptr(&mut self) -> *mut f32 {
        self.data
    }

    /// The view for a while.
    pub fn reborrow(&mut self) -> MatrixMut<'_> {
        MatrixMut { exclusive: PhantomData, ..*self }
    }

    /// Some rows.
    ///
    /// # Panics
    /// If the range reaches outside.
    pub fn rows(&mut self, rows: Range<usize>) -> MatrixMut<'_> {
        assert!(rows.start <= rows.end && rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
        // SAFETY: the row is within this view, or just behind it.
        let data = unsafe { self.data.add(rows.start * self.row_stride) };
        MatrixMut { data, rows: rows.len(), exclusive: PhantomData, ..*self }
    }

    /// The first columns.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn first_columns(self, columns: usize) -> MatrixMut<'a> {
        assert!(columns <= self.columns, "{columns} columns of {}", self.columns);
        MatrixMut { columns, ..self }
    }

    /// Parts of at most `rows` rows and `columns` columns, row by row.
    pub fn tiles(self, rows: usize, columns: usize) -> Vec<Tile<'a>> {
        let (rows, columns) = (rows.max(1), columns.max(1));
        let mut tiles = Vec::new();
        for row in (0..self.rows).step_by(rows) {
            for column in (0..self.columns).step_by(columns) {
                // SAFETY: the offset is that of an element of this view; the parts do not overlap.
                let data = unsafe { self.data.add(row * self.row_stride + column) };
                let (rows, columns) = (rows.min(self.rows - row), columns.min(self.columns - column));
                let part = MatrixMut { data, rows, columns, row_stride: self.row_stride, exclusive: PhantomData };
                tiles.push(Tile { row, column, part });
            }
        }
        tiles
    }

    /// The columns in groups of `width`.
    pub fn column_groups(self, width: usize) -> Vec<MatrixMut<'a>> {
        let rows = self.rows;
        self.tiles(rows, width).into_iter().map(|tile| tile.part).collect()
    }

    /// Rows of the given numbers, one part after another.
    ///
    /// # Panics
    /// If there are fewer rows than the parts have.
    pub fn row_groups(self, lens: &[usize]) -> Vec<MatrixMut<'a>> {
        assert!(lens.iter().sum::<usize>() <= self.rows, "{lens:?} rows of {}", self.rows);
        let mut start = 0;
        let part = |&rows: &usize| {
            // SAFETY: start + rows is within this view; the parts do not overlap.
            let data = unsafe { self.data.add(start * self.row_stride) };
            start += rows;
            MatrixMut { data, rows, ..self }
        };
        lens.iter().map(part).collect()
    }
}

/// A part of a matrix and where it begins.
#[derive(Debug)]
pub struct Tile<'a> {
    /// First row.
    pub row: usize,
    /// First column.
    pub column: usize,
    /// The part.
    pub part: MatrixMut<'a>,
}
