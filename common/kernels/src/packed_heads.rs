//! The arguments of attention over packed sequences: what every kernel checks before it reads anything.

/// The size of a head, where all sizes fit each other; `None` where they do not.
///
/// # Shapes
/// q `[Σ query_lens, heads · head_dim]`; each of `keys` `[Σ seq_lens, kv_heads · head_dim]`; of sequence i, `query_lens[i]` of
/// `seq_lens[i]` tokens ask.
pub(crate) fn head_dim(
    q: [usize; 2],
    keys: &[[usize; 2]],
    [heads, kv_heads]: [usize; 2],
    query_lens: &[usize],
    seq_lens: &[usize],
) -> Option<usize> {
    let [queries, width] = q;
    let divides = |part: usize, whole: usize| part > 0 && whole.is_multiple_of(part);
    if !divides(kv_heads, heads) || !divides(heads, width) {
        return None;
    }
    let head_dim = width / heads;
    let tokens: usize = seq_lens.iter().sum();
    let fits = query_lens.iter().sum::<usize>() == queries
        && query_lens.len() == seq_lens.len()
        && query_lens.iter().zip(seq_lens).all(|(queries, tokens)| queries <= tokens)
        && keys.iter().all(|&keys| keys == [tokens, kv_heads * head_dim]);
    fits.then_some(head_dim)
}

#[cfg(test)]
mod tests {
    use super::head_dim;

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        let keys = [[12, 16]; 2];
        assert_eq!(head_dim([5, 32], &keys, [4, 2], &[2, 0, 3], &[4, 1, 7]), Some(8));
        assert_eq!(head_dim([5, 32], &[], [4, 2], &[5], &[9]), Some(8), "keys that are elsewhere");
        for (what, q, keys, heads, query_lens, seq_lens) in [
            ("queries", [6, 32], keys, [4, 2], [2, 3], [5, 7]),
            ("heads of keys", [5, 32], keys, [4, 3], [2, 3], [5, 7]),
            ("no heads of keys", [5, 32], keys, [4, 0], [2, 3], [5, 7]),
            ("width of q", [5, 30], keys, [4, 2], [2, 3], [5, 7]),
            ("tokens", [5, 32], keys, [4, 2], [2, 3], [5, 8]),
            ("width of v", [5, 32], [[12, 16], [12, 32]], [4, 2], [2, 3], [5, 7]),
            ("more queries than tokens", [5, 32], keys, [4, 2], [5, 0], [4, 8]),
        ] {
            assert_eq!(head_dim(q, &keys, heads, &query_lens, &seq_lens), None, "{what}");
        }
    }
}
