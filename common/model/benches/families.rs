//! One training micro-step (forward and backward) of each family of language models and of vision towers, at the same sizes and
//! with random weights: `cargo bench -p model --bench families`.
//!
//! Families take turns, all work is on one thread, and what counts is that thread's processor time where the system tells it: on a
//! machine that does other work too, wall time says little.

use burn::tensor::{Device, Tensor};
use kernels::device;
use model::Llava;
use model::batch::PackedBatch;
use model::config::{
    Activation, FeatureSelect, LlavaConfig, TextConfig, TextFamily, VisionConfig, VisionFamily, WeightDtype,
};
use std::time::Instant;

const ROUNDS: usize = 7;
/// Rows of text in a micro-batch, and their tokens.
const ROWS: usize = 2;
const TOKENS: usize = 320;
const IMAGE_TOKEN: u32 = 1999;

fn main() {
    // `cargo test --benches` passes other arguments than `cargo bench`.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    pool.install(measure);
}

fn measure() {
    let device = device::cpu().autodiff();
    let cases: Vec<Case> = text_cases().into_iter().chain(vision_cases()).map(|case| case.ready(&device)).collect();
    let mut times = vec![Vec::new(); cases.len()];
    for round in 0..=ROUNDS {
        for (case, times) in cases.iter().zip(&mut times) {
            let time = seconds_of(|| case.step());
            if round > 0 {
                times.push(time);
            }
        }
    }
    println!("{:32} {:>12} {:>12} {:>10}", "micro-step", "least, ms", "median, ms", "to first");
    let mut first = [None, None];
    for (case, times) in cases.iter().zip(&mut times) {
        times.sort_by(f64::total_cmp);
        let (least, median) = (times[0] * 1e3, times[ROUNDS / 2] * 1e3);
        let first = first[usize::from(case.is_vision)].get_or_insert(least);
        println!("{:32} {least:12.1} {median:12.1} {:10.3}", case.name, least / *first);
    }
}

/// Processor time of this thread, or wall time where the system does not tell it.
fn seconds_of(f: impl FnOnce()) -> f64 {
    let on_cpu = || -> Option<f64> {
        let stat = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
        Some(stat.split(' ').next()?.parse::<f64>().ok()? * 1e-9)
    };
    let (wall, cpu) = (Instant::now(), on_cpu());
    f();
    match (cpu, on_cpu()) {
        (Some(before), Some(after)) => after - before,
        _ => wall.elapsed().as_secs_f64(),
    }
}

struct Spec {
    name: String,
    config: LlavaConfig,
    is_vision: bool,
}

struct Case {
    name: String,
    config: LlavaConfig,
    is_vision: bool,
    model: Llava,
    batch: PackedBatch,
}

impl Spec {
    fn ready(self, device: &Device) -> Case {
        let Self { name, config, is_vision } = self;
        let model = Llava::random(&config, 1, device);
        let side = config.vision.image_size;
        let batch = match is_vision {
            false => PackedBatch {
                input_ids: (0..(ROWS * TOKENS) as u32).map(|index| index * 7 % IMAGE_TOKEN).collect(),
                labels: (0..ROWS * TOKENS)
                    .map(|index| if index % TOKENS < TOKENS * 9 / 10 { -100 } else { 5 })
                    .collect(),
                seq_lens: vec![TOKENS; ROWS],
                ..PackedBatch::default()
            },
            true => PackedBatch {
                pixel_values: (0..3 * side * side).map(|index| (index % 255) as f32 / 127.5 - 1.0).collect(),
                num_images: 1,
                ..PackedBatch::default()
            },
        };
        Case { name, config, is_vision, model, batch }
    }
}

impl Case {
    fn step(&self) {
        let loss: Tensor<1> = match self.is_vision {
            true => {
                self.model.image_features(&self.batch, &self.config).expect("there is an image").powi_scalar(2).sum()
            }
            false => self.model.loss(&self.batch, &self.config).0,
        };
        std::hint::black_box(loss.backward());
    }
}

fn config(vision: VisionConfig, text: TextConfig, strategy: FeatureSelect) -> LlavaConfig {
    LlavaConfig {
        vision,
        text,
        image_token_index: IMAGE_TOKEN,
        pad_token_id: None,
        vision_feature_layers: vec![-1],
        vision_feature_layer_is_scalar: true,
        quantization: None,
        vision_feature_select_strategy: strategy,
        projector_hidden_act: Activation::Gelu,
        multimodal_projector_bias: true,
        dtype: WeightDtype::F32,
    }
}

/// Four layers with head dimensions of 64 and 128, as the published models have.
fn text_cases() -> Vec<Spec> {
    let small_tower = || vision(VisionFamily::Clip, 28, 64, 1);
    let of = |family: TextFamily, head_dim: usize, qk_norm: bool| Spec {
        name: format!("{}{}, head_dim {head_dim}", family.model_type(), if qk_norm { " with q/k norms" } else { "" }),
        config: config(small_tower(), text(family, head_dim, qk_norm), FeatureSelect::Default),
        is_vision: false,
    };
    [64, 128]
        .into_iter()
        .flat_map(|head_dim| {
            [
                of(TextFamily::Qwen2, head_dim, false),
                of(TextFamily::Llama, head_dim, false),
                of(TextFamily::Qwen3, head_dim, true),
            ]
        })
        .collect()
}

fn text(family: TextFamily, head_dim: usize, qk_norm: bool) -> TextConfig {
    let hidden_size = 768;
    TextConfig {
        family,
        hidden_size,
        intermediate_size: 2048,
        num_hidden_layers: 4,
        num_attention_heads: hidden_size / head_dim,
        num_key_value_heads: hidden_size / head_dim / 3,
        head_dim,
        vocab_size: 2000,
        max_position_embeddings: 4096,
        rope_theta: 1e6,
        rope_scaling: None,
        rms_norm_eps: 1e-6,
        tie_word_embeddings: true,
        qkv_bias: family == TextFamily::Qwen2,
        o_bias: false,
        mlp_bias: false,
        qk_norm,
        bos_token_id: None,
        eos_token_id: Vec::new(),
        attention_dropout: 0.0,
    }
}

/// Four layers of a tower at the resolution of CLIP-L/336, with its head dimension and with that of SigLIP-so400m.
fn vision_cases() -> Vec<Spec> {
    let of = |family: VisionFamily, heads: usize, width: usize, strategy| Spec {
        name: format!("{}, head_dim {}", family.model_type(), width / heads),
        config: config(vision(family, 336, width, heads), text(TextFamily::Qwen2, 64, false), strategy),
        is_vision: true,
    };
    vec![
        of(VisionFamily::Clip, 9, 576, FeatureSelect::Default),
        of(VisionFamily::Siglip, 9, 576, FeatureSelect::Full),
        of(VisionFamily::Clip, 8, 576, FeatureSelect::Default),
        of(VisionFamily::Siglip, 8, 576, FeatureSelect::Full),
    ]
}

fn vision(family: VisionFamily, image_size: usize, hidden_size: usize, heads: usize) -> VisionConfig {
    VisionConfig {
        family,
        hidden_size,
        intermediate_size: 4 * hidden_size,
        num_hidden_layers: 4,
        num_attention_heads: heads,
        image_size,
        patch_size: 14,
        num_channels: 3,
        projection_dim: None,
        hidden_act: if family == VisionFamily::Clip { Activation::QuickGelu } else { Activation::GeluTanh },
        layer_norm_eps: 1e-6,
        attention_dropout: 0.0,
    }
}
