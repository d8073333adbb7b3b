//! The model against transformers' values: features, logits, loss, every gradient, generation.

use common::batch::PackedBatch;
use common::model::vision_tower::VisionContext;
use common::model::{Llava, pixel_tensor};
use common::vision_cache::{CachedAs, VisionFeatureCache};
use tests::tiny::{self, Tensors, values};
use tests::{assert_norm_close, assert_relative};

/// f32 sums in another order differ by about 1e-6 of the largest value; 1e-4 is what the reference asks for.
const VALUE_TOLERANCE: f32 = 1e-4;
/// The same for gradients, relative to a tensor's norm.
const GRADIENT_TOLERANCE: f64 = 1e-3;

fn reference() -> (Tensors, PackedBatch) {
    let reference = tiny::read_tensors("fixtures/tiny/forward.safetensors");
    let batch = tiny::forward_batch(&reference);
    (reference, batch)
}

#[test]
fn features_logits_and_loss_equal_transformers() {
    let (reference, batch) = reference();
    let config = tiny::config();
    for (backend, device) in tests::devices() {
        let model = tiny::model("llava", &device);
        let name = |part: &str| format!("{backend}: {part}");

        let pixels = pixel_tensor(&batch, &config, &device).expect("the batch has images");
        let context = VisionContext::new(&config.vision, batch.num_images);
        let tower = &model.vision_tower.vision_model;
        let mut hidden = tower.embed(pixels, &context);
        for (index, layer) in tower.encoder.layers[..config.computed_vision_layers()].iter().enumerate() {
            hidden = layer.forward(hidden, index, &context);
        }
        assert_relative(&name("vision_features"), &values(hidden), &reference["vision_features"].0, VALUE_TOLERANCE);

        let features = model.image_features(&batch, &config).expect("the batch has images");
        let projected = model.multi_modal_projector.forward(features, config.projector_hidden_act);
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
    let (reference, batch) = reference();
    for (backend, device) in tests::devices() {
        let model = tiny::model("llava", &device.autodiff());
        let (loss_sum, tokens) = model.loss(&batch, &tiny::config());
        let found = tiny::gradients(&model, &(loss_sum / tokens as f64));
        for (name, (expected, _)) in reference.iter().filter(|(name, _)| name.starts_with("grad.")) {
            let name = &name["grad.".len()..];
            let gradient = found.get(name).unwrap_or_else(|| panic!("{backend}: {name} has no gradient"));
            // Without RoPE a key bias shifts all scores of a query alike: its true gradient is 0, the reference's is rounding
            // noise, so it is held against the norm of the query bias beside it.
            let scale = match name.starts_with("vision_tower") && name.ends_with("k_proj.bias") {
                true => &reference[&format!("grad.{}", name.replace("k_proj", "q_proj"))].0,
                false => expected,
            };
            assert_norm_close_to(&format!("{backend}: grad.{name}"), gradient, expected, scale);
        }
        let unknown: Vec<_> = found.keys().filter(|name| !reference.contains_key(&format!("grad.{name}"))).collect();
        assert!(unknown.is_empty(), "{backend}: gradients where the reference has none: {unknown:?}");
    }
}

fn assert_norm_close_to(name: &str, found: &[f32], expected: &[f32], scale: &[f32]) {
    if std::ptr::eq(expected, scale) {
        return assert_norm_close(name, found, expected, GRADIENT_TOLERANCE);
    }
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let difference = norm(&mut found.iter().zip(expected).map(|(&a, &b)| f64::from(a) - f64::from(b)));
    let scale = norm(&mut scale.iter().map(|&value| f64::from(value)));
    println!("{name}: ‖difference‖/‖query bias‖ {:e} (tolerance {GRADIENT_TOLERANCE:e})", difference / scale);
    assert!(difference <= GRADIENT_TOLERANCE * scale, "{name}: ‖difference‖ {difference:e}, scale {scale:e}");
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
        let cache = VisionFeatureCache::open(dir.path(), &model, &config, "data", 40, CachedAs::F16).expect("created");
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
        let other = VisionFeatureCache::open(dir.path(), &other, &config, "data", 40, CachedAs::F16).expect("created");
        assert!(other.get(7).expect("readable").is_none(), "{backend}: another tower's features are not used");
    }
}
