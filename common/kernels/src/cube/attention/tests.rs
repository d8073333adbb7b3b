//! On a Vulkan device (Mesa's software device where there is no other) against the definition on burn-flex and the CPU's kernel.

use super::*;
use crate::cpu::tests::{assert_near, values};
use crate::cube::tests::compare::{Inputs, check_bits, gpu, half, run};
use crate::kv_cache::KvCache;
use crate::{cpu, reference};
use burn::tensor::{Device, FloatDType, TensorData};

/// Last tokens and tokens of each sequence; query heads, key/value heads, their width.
#[derive(Clone, Debug)]
struct Case {
    last: Vec<usize>,
    lens: Vec<usize>,
    heads: [usize; 2],
    head_dim: usize,
    mask: Mask,
}

impl Case {
    fn new(lens: &[usize], heads: [usize; 2], head_dim: usize, mask: Mask) -> Self {
        Self { last: lens.to_vec(), lens: lens.to_vec(), heads, head_dim, mask }
    }

    /// Rows and width of q, k and v.
    fn shapes(&self) -> [[usize; 2]; 3] {
        let ([heads, kv_heads], tokens) = (self.heads, self.lens.iter().sum());
        let keys = [tokens, kv_heads * self.head_dim];
        [[self.last.iter().sum(), heads * self.head_dim], keys, keys]
    }

    /// q, k, v in (−size, size).
    fn inputs(&self, size: f32) -> Inputs {
        let random = |(seed, shape): (u64, [usize; 2])| {
            (values(seed, shape[0] * shape[1]).iter().map(|x| x * size).collect(), shape)
        };
        (0..).zip(self.shapes()).map(random).collect()
    }

    fn definition(&self, x: &[Tensor<2>]) -> Tensor<2> {
        let ([q, k, v], [heads, kv_heads]) = (three(x), self.heads);
        match self.mask {
            Mask::Causal => reference::attention_of_last(q, k, v, heads, kv_heads, &self.last, &self.lens),
            Mask::Full => reference::attention(q, k, v, heads, kv_heads, &self.lens, Mask::Full),
        }
    }

    fn of_cpu(&self, x: &[Tensor<2>]) -> Tensor<2> {
        let ([q, k, v], [heads, kv_heads]) = (three(x), self.heads);
        let found = match self.mask {
            Mask::Causal => cpu::attention::attention_of_last(&q, &k, &v, heads, kv_heads, &self.last, &self.lens),
            Mask::Full => cpu::attention::attention(&q, &k, &v, heads, kv_heads, &self.lens, Mask::Full),
        };
        found.expect("the CPU's kernel applies")
    }

    fn kernel(&self, x: &[Tensor<2>], products: Products) -> Tensor<2> {
        let [q, k, v] = three(x);
        of_sequences(&q, &k, &v, self.heads, &self.last, &self.lens, self.mask, Some(products))
            .expect("the kernel applies")
    }

    /// Compares the kernels with the definition and the CPU's kernel; the same bits however inputs lie.
    fn check(&self, size: f32, products: Products, tolerance: f32) {
        let Some(device) = gpu() else { return };
        let inputs = self.inputs(size);
        let kernel = |x: &[Tensor<2>]| self.kernel(x, products);
        let definition = |x: &[Tensor<2>]| self.definition(x);
        let found = run(&inputs, &device, DType::F32, &kernel);
        let of_definition = run(&inputs, &Device::flex(), DType::F32, &definition);
        let of_cpu = run(&inputs, &Device::flex(), DType::F32, &|x| self.of_cpu(x));
        self.compare(products, "the definition", &found, &of_definition, tolerance);
        self.compare(products, "the CPU's kernel", &found, &of_cpu, tolerance);
        check_bits(&format!("attention, {self:?} {products:?}"), &inputs, &device, &kernel, &found);
        // Half precision: what is read and written has 11 bits.
        if device.supports_dtype(FloatDType::F16) && size == 1.0 {
            let rounded: Inputs = inputs.iter().map(|(values, shape)| (half(values), *shape)).collect();
            let found = run(&rounded, &device, DType::F16, &kernel);
            let of_definition = run(&rounded, &Device::flex(), DType::F32, &definition);
            self.compare(products, "the definition, in f16", &found, &of_definition, 4e-3);
        }
    }

    fn compare(&self, products: Products, with: &str, found: &[Vec<f32>], expected: &[Vec<f32>], tolerance: f32) {
        for (part, name) in ["values", "gradient of q", "gradient of k", "gradient of v"].into_iter().enumerate() {
            let name = format!("attention, {self:?} {products:?}, {name} against {with}");
            assert!(found[part].iter().all(|x| x.is_finite()), "{name}: not finite");
            // Of one key, the weight is 1 whatever q and k are: these gradients are 0, here by rounding.
            let scale = expected[part].iter().fold(0f32, |scale, x| scale.max(x.abs()));
            if scale < 1e-5 {
                assert!(found[part].iter().all(|x| x.abs() < 2.0 * tolerance), "{name}: not 0");
                continue;
            }
            assert_near(&name, &found[part], &expected[part], tolerance);
        }
    }
}

fn three(x: &[Tensor<2>]) -> [Tensor<2>; 3] {
    std::array::from_fn(|input| x[input].clone())
}

/// A kernel is compiled for each head_dim and number of query heads of a key/value head: seconds on the software device.
const SIZES: [([usize; 2], usize); 7] =
    [([1, 1], 32), ([4, 1], 40), ([2, 2], 64), ([3, 3], 72), ([8, 2], 80), ([1, 1], 96), ([8, 1], 128)];

#[test]
fn of_whole_sequences() {
    for (heads, head_dim) in SIZES {
        for mask in [Mask::Causal, Mask::Full] {
            Case::new(&[1], heads, head_dim, mask).check(1.0, Products::Plain, 4e-6);
            Case::new(&[5, 64, 0, 65, 1], heads, head_dim, mask).check(1.0, Products::Plain, 4e-6);
        }
        Case::new(&[131, 63], heads, head_dim, Mask::Causal).check(1.0, Products::Plain, 4e-6);
        let last = Case { last: vec![1, 20, 0, 64], ..Case::new(&[70, 90, 5, 64], heads, head_dim, Mask::Causal) };
        last.check(1.0, Products::Plain, 4e-6);
    }
}

/// Scores of some hundreds: their exponentials overflow unless the largest is taken off.
#[test]
fn of_large_scores() {
    Case::new(&[70, 9], [2, 2], 64, Mask::Causal).check(20.0, Products::Plain, 1e-4);
}

/// The tiles of tensor cores, with their instruction computed from its definition.
#[test]
fn by_simulated_tensor_cores() {
    for (heads, head_dim) in [([4, 1], 40), ([2, 2], 64)] {
        Case::new(&[70, 1], heads, head_dim, Mask::Causal).check(1.0, Products::Simulated, 4e-6);
        Case::new(&[66], heads, head_dim, Mask::Full).check(1.0, Products::Simulated, 4e-6);
    }
}

#[test]
fn a_nan_stays_in_its_sequence() {
    let Some(device) = gpu() else { return };
    let case = Case::new(&[7, 70, 9], [2, 2], 64, Mask::Causal);
    for input in 0..3 {
        let mut inputs = case.inputs(1.0);
        inputs[input].0[(7 + 3) * 2 * 64] = f32::NAN;
        let found = run(&inputs, &device, DType::F32, &|x| case.kernel(x, Products::Plain));
        for (part, values) in found.iter().enumerate() {
            let nan: Vec<usize> = (0..86).filter(|row| values[row * 128..][..128].iter().any(|x| x.is_nan())).collect();
            assert!(nan.iter().all(|row| (7..77).contains(row)), "input {input}, part {part}: rows {nan:?} are NaN");
            // The gradient of v does not depend on v.
            assert!(!nan.is_empty() || [input, part] == [2, 3], "input {input}, part {part}: no NaN");
        }
        let own = found[0][(7 + 3) * 128..][..64].iter().all(|x| x.is_nan()) || input == 2;
        assert!(own, "input {input}: its own row is not NaN");
    }
}

#[test]
fn over_caches() {
    let Some(device) = gpu() else { return };
    for (heads, kv_heads, head_dim) in [(2, 2, 64), (8, 1, 128)] {
        // Sequences in all states: first tokens, one more token, a few more.
        let (past, new) = ([0, 100, 37, 5], [70, 1, 3, 9]);
        let run = |device: &Device, f: &dyn Fn(Tensor<2>, &[&LayerCache]) -> Tensor<2>| {
            let random = |seed, rows, heads: usize| {
                let shape = [rows, heads * head_dim];
                Tensor::<2>::from_data(TensorData::new(values(seed, rows * heads * head_dim), shape), device)
            };
            let caches = past.iter().zip(&new).map(|(past, new)| {
                let mut cache = KvCache::new(1, kv_heads, head_dim, past + new + 3, device);
                cache.layer_mut(0).append(random(1, past + new, kv_heads), random(2, past + new, kv_heads));
                cache
            });
            let caches: Vec<KvCache> = caches.collect();
            let layers: Vec<_> = caches.iter().map(|cache| cache.layer(0)).collect();
            let output = f(random(3, new.iter().sum(), heads), &layers);
            output.into_data().try_into_vec::<f32>().expect("f32")
        };
        let found =
            run(&device, &|q, caches| attention_cached(&q, caches, &new, heads, kv_heads).expect("the kernel applies"));
        let expected = run(&Device::flex(), &|q, caches| reference::attention_cached(q, caches, &new, heads, kv_heads));
        assert_near(&format!("attention_cached, head_dim {head_dim}"), &found, &expected, 4e-6);
    }
}

/// As decode steps have it: sequences that join and leave, a launch for all of them, a second one where one has more than 128 keys.
#[test]
fn of_one_token_over_caches() {
    let Some(device) = gpu() else { return };
    let lens = [1, 129, 5, 127, 700, 128, 256, 257];
    let sizes =
        [(1, 1, 2), (4, 2, 16), (3, 1, 12), (4, 1, 32), (10, 2, 16), (6, 1, 8), (7, 1, 80), (2, 2, 64), (8, 1, 128)];
    for (heads, kv_heads, head_dim) in sizes {
        let width = heads * head_dim;
        let random = |seed, rows, width, device: &Device| {
            Tensor::<2>::from_data(TensorData::new(values(seed, rows * width), [rows, width]), device)
        };
        let caches = |device: &Device| {
            lens.map(|len| {
                let mut cache = KvCache::new(1, kv_heads, head_dim, len + 3, device);
                let [keys, values] = [1, 2].map(|seed| random(seed, len, kv_heads * head_dim, device));
                cache.layer_mut(0).append(keys, values);
                cache
            })
        };
        // The output of each of these sequences.
        let run = |device: &Device, caches: &[KvCache], sequences: &[usize], f: OneToken| -> Vec<Vec<f32>> {
            let q = random(3, lens.len(), width, device);
            let q = Tensor::cat(sequences.iter().map(|&sequence| q.clone().narrow(0, sequence, 1)).collect(), 0);
            let layers: Vec<_> = sequences.iter().map(|&sequence| caches[sequence].layer(0)).collect();
            let output = f(q, &layers).into_data().try_into_vec::<f32>().expect("f32");
            output.chunks(width).map(<[f32]>::to_vec).collect()
        };
        let ones = |caches: &[&LayerCache]| vec![1; caches.len()];
        let kernel: OneToken = &|q, caches| {
            super::one_token::attention(&q, caches, &ones(caches), heads, kv_heads).expect("the kernel applies")
        };
        let definition: OneToken = &|q, caches| reference::attention_cached(q, caches, &ones(caches), heads, kv_heads);
        let operation: OneToken = &|q, caches| crate::attention_cached(q, caches, &ones(caches), heads, kv_heads);
        let name = format!("one token, {heads} heads, {kv_heads} of keys, of {head_dim}");
        let all: Vec<usize> = (0..lens.len()).collect();
        let (on_device, on_cpu) = (caches(&device), caches(&Device::flex()));
        let found = run(&device, &on_device, &all, kernel);
        for (with, f) in [("the definition", definition), ("the CPU", operation)] {
            let expected = run(&Device::flex(), &on_cpu, &all, f);
            assert_near(&format!("{name} against {with}"), &found.concat(), &expected.concat(), 4e-6);
        }
        // Each alone, and some of them; of more than eight, some are in a launch of their own.
        let alone = (0..lens.len()).map(|sequence| vec![sequence]);
        let some = [2, 3, 4, 5, 6, 7, 8, 11].map(|count| (0..count).map(|at| (count + 3 * at) % lens.len()).collect());
        for sequences in alone.chain(some) {
            for (output, &sequence) in run(&device, &on_device, &sequences, kernel).iter().zip(&sequences) {
                let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
                let same = bits(output) == bits(&found[sequence]);
                assert!(same, "{name}: sequence of {} among {sequences:?} has other bits", lens[sequence]);
            }
        }
    }
}

type OneToken<'a> = &'a dyn Fn(Tensor<2>, &[&LayerCache]) -> Tensor<2>;

#[test]
fn other_sizes_are_for_the_definition() {
    let Some(device) = gpu() else { return };
    for (head_dim, applies) in [(24, false), (36, false), (64, true), (136, false)] {
        let x = Tensor::<2>::ones([3, 2 * head_dim], &device);
        let found = attention(&x, &x, &x, 2, 2, &[3], Mask::Full);
        assert_eq!(found.is_some(), applies, "head_dim {head_dim}");
    }
    let x = Tensor::<2>::ones([3, 64], &device);
    assert!(attention(&x, &x, &x, 1, 1, &[2], Mask::Full).is_none(), "lengths of other tokens");
}
