//! Where a sequence's rows are: of q, output and their gradients, of k and v, and of the numbers kept for each row.

use super::block::Sizes;
use cubecl::prelude::*;

/// Numbers of a sequence in the table: first query, queries, first key, keys, and keys before the first query that it sees: all
/// without a causal mask.
pub const SEQUENCE: usize = 5;

/// The rows of one sequence and one head in a matrix of heads. The query heads that share a key/value head are rows too: row
/// `r` is head `r % group` of token `r / group`.
#[derive(CubeType, Clone, Copy)]
pub struct Rows {
    /// Where the first begins.
    pub start: usize,
    /// From a token to the next.
    pub stride: usize,
    pub count: usize,
    #[cube(comptime)]
    pub group: usize,
}

#[cube]
pub fn offset(rows: &Rows, row: usize, #[comptime] head_dim: usize) -> usize {
    rows.start + row / rows.group * rows.stride + row % rows.group * head_dim
}

/// A sequence of the table, and a key/value head of it.
#[derive(CubeType, Clone, Copy)]
pub struct Place {
    pub kv_head: usize,
    pub first_query: usize,
    /// Queries · group.
    pub rows: usize,
    pub first_key: usize,
    pub keys: usize,
    /// Keys before the first query, or all.
    pub past: usize,
}

#[cube]
pub fn place(table: &[u32], kv_head: usize, sequence: usize, #[comptime] sizes: Sizes) -> Place {
    let at = sequence * SEQUENCE;
    Place {
        kv_head,
        first_query: table[at] as usize,
        rows: table[at + 1] as usize * sizes.group,
        first_key: table[at + 2] as usize,
        keys: table[at + 3] as usize,
        past: table[at + 4] as usize,
    }
}

/// Rows in `[tokens, heads · head_dim]`.
#[cube]
pub fn query_rows(stride: usize, place: &Place, #[comptime] sizes: Sizes) -> Rows {
    Rows {
        start: place.first_query * stride + place.kv_head * sizes.group * sizes.head_dim,
        stride,
        count: place.rows,
        group: sizes.group,
    }
}

/// Rows in `[kv_heads, tokens, head_dim]`.
#[cube]
pub fn key_rows(head_stride: usize, stride: usize, place: &Place) -> Rows {
    Rows { start: place.first_key * stride + place.kv_head * head_stride, stride, count: place.keys, group: 1usize }
}

/// The block of a cube, when the last block comes first.
#[cube]
pub fn last_first(blocks: u32, block: u32) -> usize {
    (blocks - 1 - block) as usize
}

/// Where a row's number is in `[queries, heads]`.
#[cube]
pub fn number(place: &Place, row: usize, kv_heads: usize, #[comptime] group: usize) -> usize {
    ((place.first_query + row / group) * kv_heads + place.kv_head) * group + row % group
}

/// Keys that a row sees.
#[cube]
pub fn seen(place: &Place, row: usize, #[comptime] sizes: Sizes) -> usize {
    min(place.past + row / sizes.group + 1, place.keys)
}
