//! The model against transformers' values: features, logits, loss, every gradient, generation.

use burn::module::Param;
use burn::tensor::Tensor;
use model::batch::PackedBatch;
use model::config::LlavaConfig;
use model::named::{NamedMapper, map_named};
use model::vision::VisionContext;
use model::walk::{BatchContext, Layer};
use model::{Llava, pixel_tensor};
use tests::references::{self, Reference};
use tests::tiny::{self, Tensors, values};
use tests::{assert_norm_close, assert_relative};
use train::vision_cache::{CachedAs, CachedRows, VisionFeatureCache};

/// f32 sums in another order differ by about 1e-6 of the largest value; 1e-4 is what the reference asks for.
const VALUE_TOLERANCE: f32 = 1e-4;
/// The same for gradients, relative to a tensor's norm.
const GRADIENT_TOLERANCE: f64 = 1e-3;

fn reference() -> (Tensors, PackedBatch) {
    reference_of(references::TINY)
}

fn reference_of(model: Reference) -> (Tensors, PackedBatch) {
    let reference = tiny::read_tensors_at(&model.path("forward.safetensors"));
    let batch = tiny::forward_batch(&reference, model.config().image_token_index);
    (reference, batch)
}

#[test]
fn features_logits_and_loss_equal_transformers() {
    references::all().for_each(features_logits_and_loss);
}

fn features_logits_and_loss(family: Reference) {
    let (reference, batch) = reference_of(family);
    for (backend, device) in tests::devices() {
        let (config, model) = tiny::model_at(&family.llava(), &device);
        let name = |part: &str| format!("{backend}: {}: {part}", family.name);

        let pixels = pixel_tensor(&batch, &config, &device);
        let context = VisionContext::new(&config.vision, batch.num_images);
        let tower = &model.vision_tower.vision_model;
        let mut states = vec![tower.embed(pixels, &context)];
        for (index, layer) in tower.encoder.layers[..config.computed_vision_layers()].iter().enumerate() {
            states.push(layer.forward(states[index].clone(), index, &context));
        }
        let selected = config.selected_hidden_states().into_iter().map(|state| states[state].clone()).collect();
        let hidden = Tensor::cat(selected, 1);
        assert_relative(&name("vision_features"), &values(hidden), &reference["vision_features"].0, VALUE_TOLERANCE);

        let features = model.image_features(&batch, &config).expect("the batch has images");
        let projected = model.multi_modal_projector.forward(features, config.projector_hidden_act, None, 0);
        assert_relative(&name("projected"), &values(projected), &reference["projected"].0, VALUE_TOLERANCE);

        let (positions, targets) = batch.supervised();
        let logits = model.logits(&batch, &positions, &config);
        assert_relative(
            &name("supervised_logits"),
            &values(logits),
            &reference["supervised_logits"].0,
            VALUE_TOLERANCE,
        );

        let (loss_sum, tokens) = model.loss(&batch, &config);
        assert_eq!(tokens, targets.len());
        let loss = values(loss_sum)[0] / tokens as f32;
        assert_relative(&name("loss"), &[loss], &reference["loss"].0, VALUE_TOLERANCE);
    }
}

#[test]
fn every_gradient_equals_transformers() {
    for family in references::all() {
        let (reference, batch) = reference_of(family);
        for (backend, device) in tests::devices() {
            let (config, model) = tiny::model_at(&family.llava(), &device.autodiff());
            assert_gradients(&format!("{backend}: {}", family.name), &model, &config, &batch, &reference);
        }
    }
}

/// Every parameter has the reference's gradient, and no other parameter has one.
fn assert_gradients(what: &str, model: &Llava, config: &LlavaConfig, batch: &PackedBatch, reference: &Tensors) {
    let (loss_sum, tokens) = model.loss(batch, config);
    let found = tiny::gradients(model, &(loss_sum / tokens as f64));
    for (name, (expected, _)) in reference.iter().filter(|(name, _)| name.starts_with("grad.")) {
        let name = &name["grad.".len()..];
        // The reference may list what is not computed (layers after the selected one), with zeros.
        let Some(gradient) = found.get(name) else {
            assert!(expected.iter().all(|&value| value == 0.0), "{what}: {name} has no gradient");
            continue;
        };
        // Without RoPE a key bias shifts all scores of a query alike: its true gradient is 0, the reference's is rounding
        // noise, so it is held against the norm of the query bias beside it.
        match name.starts_with("vision_tower") && name.ends_with("k_proj.bias") {
            true => {
                let beside = &reference[&format!("grad.{}", name.replace("k_proj", "q_proj"))].0;
                let difference = norm(&gradient.iter().zip(expected).map(|(a, b)| a - b).collect::<Vec<_>>());
                let ratio = difference / norm(beside);
                println!("{what}: grad.{name}: ‖difference‖/‖query bias‖ {ratio:e} (tolerance {GRADIENT_TOLERANCE:e})");
                assert!(ratio <= GRADIENT_TOLERANCE, "{what}: grad.{name}: {ratio:e}");
            }
            false => assert_norm_close(&format!("{what}: grad.{name}"), gradient, expected, GRADIENT_TOLERANCE),
        }
    }
    let unknown: Vec<_> = found.keys().filter(|name| !reference.contains_key(&format!("grad.{name}"))).collect();
    assert!(unknown.is_empty(), "{what}: gradients where the reference has none: {unknown:?}");
}

fn norm(values: &[f32]) -> f64 {
    values.iter().map(|&value| f64::from(value) * f64::from(value)).sum::<f64>().sqrt()
}

#[test]
fn other_shapes_equal_transformers() {
    let Some(mut python) = tests::python() else { return };
    let dir = tempfile::tempdir().expect("a temporary folder");
    let made = python.arg(tests::python_script("variants.py")).arg(dir.path()).status().expect("Python runs");
    assert!(made.success(), "variants.py failed");
    for name in ["grouped_tied_full", "one_kv_head_list"] {
        let folder = dir.path().join(name);
        let reference = tiny::read_tensors_at(&folder.join("forward.safetensors"));
        for (backend, device) in tests::devices() {
            let what = format!("{backend}: {name}");
            let (config, model) = tiny::model_at(&folder, &device.autodiff());
            let batch = tiny::forward_batch(&reference, config.image_token_index);
            let (positions, _) = batch.supervised();
            let logits = values(model.logits(&batch, &positions, &config));
            assert_relative(&what, &logits, &reference["supervised_logits"].0, VALUE_TOLERANCE);
            let (loss_sum, tokens) = model.loss(&batch, &config);
            let loss = values(loss_sum)[0] / tokens as f32;
            assert_relative(&format!("{what}: loss"), &[loss], &reference["loss"].0, VALUE_TOLERANCE);
            assert_gradients(&what, &model, &config, &batch, &reference);
        }
    }
}

/// What f16 keeps of a value: 2⁻¹¹ of it.
const F16_TOLERANCE: f32 = 5e-4;

#[test]
fn cached_vision_features_are_the_computed_ones_to_f16_and_the_same_at_every_use() {
    let (_, batch) = reference();
    let config = tiny::config();
    for (backend, device) in tests::devices() {
        let model = tiny::model("llava", &device.clone().autodiff());
        let dir = tempfile::tempdir().expect("a temporary folder");
        let open = |model: &Llava, images_per_row: &[u32]| {
            let rows = CachedRows { dir: dir.path(), fingerprint: "data", images_per_row, free_bytes: None };
            VisionFeatureCache::open(rows, model, &config, CachedAs::F16)
        };
        let mut images_per_row = [1; 40];
        let cache = open(&model, &images_per_row).expect("created");
        let features = |rows: &[usize]| {
            let features = cache.image_features(&model, &batch, rows, &config).expect("readable and writable");
            values(features.expect("the batch has images"))
        };
        let computed = values(model.image_features(&batch, &config).expect("the batch has images"));
        let first = features(&[7, 3, 30, 31]);
        assert_relative(&format!("{backend}: features"), &first, &computed, F16_TOLERANCE);
        assert_eq!(first, features(&[7, 3, 30, 31]), "{backend}: read back");
        assert_eq!(first, features(&[7, 3, 0, 31]), "{backend}: one computed, the others read back");

        let other = Llava::random(&config, 0, &device);
        let other = open(&other, &images_per_row).expect("created");
        assert!(other.get(7).is_none(), "{backend}: another tower's features are not used");

        (images_per_row[3], images_per_row[30]) = (0, 2);
        let mixed = open(&model, &images_per_row).expect("created");
        let batch = PackedBatch { seq_lens: mixed_lens(&batch), ..batch.clone() };
        for rows in [[7, 3, 30, 31], [7, 3, 30, 31], [6, 3, 30, 32]] {
            let found = mixed.image_features(&model, &batch, &rows, &config).expect("rows with these images");
            assert_eq!(values(found.expect("images")), first, "{backend}: rows {rows:?} are rounded as all others");
        }
        let wrong = mixed.image_features(&model, &batch, &[7, 31, 30, 3], &config);
        assert!(wrong.is_err(), "{backend}: rows with other images");
        let none = PackedBatch { num_images: 0, image_positions: vec![], pixel_values: vec![], ..batch.clone() };
        let none = PackedBatch { seq_lens: vec![batch.input_ids.len()], ..none };
        assert!(mixed.image_features(&model, &none, &[3], &config).expect("a row without images").is_none());
    }
}

/// The tokens of the four rows of one image as those of rows of one, none, two and one image.
fn mixed_lens(batch: &PackedBatch) -> Vec<usize> {
    let ends: Vec<usize> = (1..=4).map(|rows| batch.seq_lens[..rows].iter().sum()).collect();
    // The second row ends where the first one does.
    vec![ends[0], 0, ends[2] - ends[0], ends[3] - ends[2]]
}

/// Everything frozen but what `trained` accepts.
struct Freeze<F> {
    trained: F,
}

impl<F: Fn(&str) -> bool> NamedMapper for Freeze<F> {
    fn map<const D: usize>(&mut self, name: String, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.set_require_grad((self.trained)(&name))
    }
}

#[test]
fn frozen_parts_keep_no_graph_and_get_no_gradient() {
    let (_, batch) = reference();
    let config = tiny::config();
    for (backend, device) in tests::devices() {
        let whole = tiny::model("llava", &device.autodiff());
        let (loss_sum, tokens) = whole.loss(&batch, &config);
        let expected = tiny::gradients(&whole, &(loss_sum / tokens as f64));
        for part in ["multi_modal_projector", "language_model.model.layers.1", "language_model.lm_head"] {
            let trained = |name: &str| name.starts_with(part);
            let model = map_named(whole.clone(), &mut Freeze { trained });
            let features = model.image_features(&batch, &config).expect("the batch has images");
            assert!(!features.is_tracked(), "{backend}: the frozen tower's features have a graph");
            let (loss_sum, tokens) = model.loss(&batch, &config);
            let found = tiny::gradients(&model, &(loss_sum / tokens as f64));
            assert!(!found.is_empty() && found.keys().all(|name| trained(name)), "{backend}: {:?}", found.keys());
            for (name, gradient) in &found {
                assert_norm_close(&format!("{backend}: {name}"), gradient, &expected[name], 1e-6);
            }
        }
    }
}

#[test]
fn a_block_without_a_graph_computes_the_same_values() {
    let (_, batch) = reference();
    let config = tiny::config();
    for (backend, device) in tests::devices() {
        let model = tiny::model("llava", &device.autodiff());
        let embeds = model.inputs_embeds(&batch, &config);
        let context = BatchContext::new(&config, &batch, &embeds.device());
        let layer = Layer::Text(1);
        let kept = layer.forward(&model, embeds.clone(), &context, None);
        let without = layer.forward_without_graph(&model, embeds, &context);
        assert!(!without.is_tracked());
        // A backend may compute an operation otherwise where nobody asks for its gradient.
        assert_relative(&format!("{backend}: hidden states"), &values(without), &values(kept), 1e-6);
    }
}
