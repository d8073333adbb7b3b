//! Layout of the trained values: blocks of the model, cut into buckets, each bucket divided evenly among the ranks.

use base::names::Block;
use burn::module::ParamId;
use std::collections::HashMap;
use std::ops::Range;

/// Values of a bucket at most. Small blocks are one bucket; larger ones are cut, so that what arrives from other ranks for a
/// sum needs little memory.
pub const MAX_BUCKET_VALUES: usize = 1 << 21;

/// A trained parameter within its block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParamSlot {
    /// Identity within the module.
    pub id: ParamId,
    /// Published name.
    pub name: String,
    /// Shape.
    pub shape: Vec<usize>,
    /// First value in the block.
    pub offset: usize,
    /// Values.
    pub len: usize,
    /// Weight decay applies.
    pub decays: bool,
}

/// A stretch of a block that is reduced and gathered in one operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Values of the block.
    pub range: Range<usize>,
    /// Values that each rank owns; `partition_len · world_size` ≥ the bucket's length, the rest is padding.
    pub partition_len: usize,
    /// Where the owned values start in the rank's partition of the block.
    pub partition_offset: usize,
}

impl Bucket {
    /// Values of the block that `rank` owns (without padding; may be empty).
    pub fn owned(&self, rank: usize) -> Range<usize> {
        let start = (self.range.start + rank * self.partition_len).min(self.range.end);
        start..(start + self.partition_len).min(self.range.end)
    }
}

/// A stretch of a parameter that a rank owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedSlice {
    /// Which of the block's parameters.
    pub param: usize,
    /// Values of the parameter.
    pub range: Range<usize>,
    /// Where they start in the rank's partition of the block.
    pub start: usize,
}

/// A transformer block, an embedding, the projector or the head: its trained parameters, one after another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockLayout {
    /// For messages and files: the common prefix of the parameters.
    pub name: String,
    /// In module order.
    pub params: Vec<ParamSlot>,
    /// Values.
    pub len: usize,
    /// In order.
    pub buckets: Vec<Bucket>,
    /// Values with the padding that makes the last bucket divisible.
    pub padded_len: usize,
}

impl BlockLayout {
    /// Lays out parameters in the order given; offsets are assigned here.
    pub fn new(name: String, mut params: Vec<ParamSlot>, world_size: usize, max_bucket_values: usize) -> Self {
        let mut len = 0;
        for param in &mut params {
            param.offset = len;
            len += param.len;
        }
        let mut buckets = Vec::new();
        let (mut start, mut partition_offset) = (0, 0);
        // Only the last bucket has padding, so that buckets are consecutive in one flat buffer.
        let step = (max_bucket_values / world_size).max(1) * world_size;
        while start < len {
            let end = (start + step).min(len);
            let partition_len = (end - start).div_ceil(world_size);
            buckets.push(Bucket { range: start..end, partition_len, partition_offset });
            partition_offset += partition_len;
            start = end;
        }
        Self { name, params, len, buckets, padded_len: partition_offset * world_size }
    }

    /// What `rank` owns, in the order of its partition. The only rank owns whole parameters.
    pub fn slices(&self, rank: usize, world_size: usize) -> Vec<OwnedSlice> {
        let params = self.params.iter().enumerate();
        if world_size == 1 {
            return params.map(|(param, slot)| OwnedSlice { param, range: 0..slot.len, start: slot.offset }).collect();
        }
        let of_param =
            |(param, slot)| self.owned_ranges(slot, rank).map(move |(range, start)| OwnedSlice { param, range, start });
        params.flat_map(of_param).collect()
    }

    /// Which of the parameters a slot is.
    pub fn index_of(&self, slot: &ParamSlot) -> usize {
        self.params.partition_point(|param| param.offset < slot.offset)
    }

    /// Values that a rank owns of each bucket, as exchanges take them.
    pub fn parts(&self) -> Vec<usize> {
        self.buckets.iter().map(|bucket| bucket.partition_len).collect()
    }

    /// Values (padding included) of one rank's partition.
    pub fn partition_len(&self) -> usize {
        self.buckets.iter().map(|bucket| bucket.partition_len).sum()
    }

    /// The stretches of a parameter that `rank` owns: (range within the parameter, start within the rank's partition).
    pub fn owned_ranges(&self, param: &ParamSlot, rank: usize) -> impl Iterator<Item = (Range<usize>, usize)> {
        let (first, end) = (param.offset, param.offset + param.len);
        self.buckets.iter().filter_map(move |bucket| {
            let owned = bucket.owned(rank);
            let (from, to) = (owned.start.max(first), owned.end.min(end));
            (from < to).then(|| (from - first..to - first, bucket.partition_offset + (from - owned.start)))
        })
    }
}

/// All trained parameters of a rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// In module order, which is also the order of the forward pass.
    pub blocks: Vec<BlockLayout>,
    /// This rank.
    pub rank: usize,
    /// Ranks.
    pub world_size: usize,
    index: HashMap<ParamId, (usize, usize)>,
    /// Sorted.
    keys: Vec<Block>,
}

impl Layout {
    /// Indexes the blocks, each with the block of the model that it holds; in the order of the model.
    pub fn new(blocks: Vec<(Block, BlockLayout)>, rank: usize, world_size: usize) -> Self {
        let (keys, blocks): (Vec<Block>, Vec<BlockLayout>) = blocks.into_iter().unzip();
        let index = blocks
            .iter()
            .enumerate()
            .flat_map(|(b, block)| block.params.iter().enumerate().map(move |(p, param)| (param.id, (b, p))))
            .collect();
        Self { blocks, rank, world_size, index, keys }
    }

    /// What this rank owns of a block, in the order of its partition.
    pub fn slices(&self, block: usize) -> Vec<OwnedSlice> {
        self.blocks[block].slices(self.rank, self.world_size)
    }

    /// Index in `blocks` of a block of the model; `None` if nothing in it is trained.
    pub fn block(&self, block: Block) -> Option<usize> {
        self.keys.binary_search(&block).ok()
    }

    /// The block of the model that one of `blocks` is.
    pub fn block_of_model(&self, block: usize) -> Block {
        self.keys[block]
    }

    /// How many of `blocks` the forward pass has used once it has computed `block`.
    pub fn blocks_through(&self, block: Block) -> usize {
        self.keys.partition_point(|key| *key <= block)
    }

    /// Values of the largest block, padding included.
    pub fn largest_block(&self) -> usize {
        self.blocks.iter().map(|block| block.padded_len).max().unwrap_or(0)
    }

    /// The (block, parameter) of an id, if it is trained.
    pub fn find(&self, id: ParamId) -> Option<(usize, &ParamSlot)> {
        self.index.get(&id).map(|&(block, param)| (block, &self.blocks[block].params[param]))
    }

    /// Trained values.
    pub fn num_values(&self) -> usize {
        self.blocks.iter().map(|block| block.len).sum()
    }

    /// Values (padding included) that this rank owns.
    pub fn partition_len(&self) -> usize {
        self.blocks.iter().map(BlockLayout::partition_len).sum()
    }

    /// A zero for every owned value, a vector per block.
    pub fn zero_partitions(&self) -> Vec<Vec<f32>> {
        self.blocks.iter().map(|block| vec![0.0; block.partition_len()]).collect()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Blocks of one parameter each.
    pub(crate) fn layout(rank: usize, world_size: usize, lens: &[usize]) -> Layout {
        let slot =
            |len| ParamSlot { id: ParamId::new(), name: String::new(), shape: vec![len], offset: 0, len, decays: true };
        let block = |(index, &len)| {
            (Block::TextLayer(index), BlockLayout::new(format!("layer {index}"), vec![slot(len)], world_size, 1 << 20))
        };
        Layout::new(lens.iter().enumerate().map(block).collect(), rank, world_size)
    }

    fn block(lens: &[usize], world_size: usize, max_bucket_values: usize) -> BlockLayout {
        let params = lens
            .iter()
            .map(|&len| ParamSlot {
                id: ParamId::new(),
                name: String::new(),
                shape: vec![len],
                offset: 0,
                len,
                decays: true,
            })
            .collect();
        BlockLayout::new("block".to_string(), params, world_size, max_bucket_values)
    }

    #[test]
    fn every_value_has_one_owner_and_one_place() {
        for world_size in 1..6 {
            for max in [3, 7, 8, 100] {
                let block = block(&[5, 1, 13, 2], world_size, max);
                let mut owners = vec![0; block.len];
                for rank in 0..world_size {
                    let mut places = vec![0; block.partition_len()];
                    for param in &block.params {
                        for (range, start) in block.owned_ranges(param, rank) {
                            for (i, value) in range.enumerate() {
                                owners[param.offset + value] += 1;
                                places[start + i] += 1;
                            }
                        }
                    }
                    assert!(places.iter().all(|&count| count <= 1), "{world_size} ranks, buckets of {max}");
                }
                assert!(owners.iter().all(|&count| count == 1), "{world_size} ranks, buckets of {max}");
                for rank in 0..world_size {
                    let starts: Vec<usize> = block.slices(rank, world_size).iter().map(|slice| slice.start).collect();
                    assert!(starts.is_sorted(), "rank {rank} of {world_size}, buckets of {max}: {starts:?}");
                }
            }
        }
    }

    #[test]
    fn a_large_block_is_cut_into_buckets() {
        let block = block(&[10], 4, 6);
        assert_eq!(block.buckets.len(), 3);
        assert_eq!((block.buckets[0].range.clone(), block.buckets[1].range.clone()), (0..4, 4..8));
        assert_eq!(block.buckets[2].owned(1), 9..10);
        assert_eq!((block.parts(), block.partition_len(), block.padded_len), (vec![1, 1, 1], 3, 12));
    }
}
