//! The key/value cache, merged LoRA, other dtypes and other shapes of the model, each against the whole forward.

use base::IGNORE_INDEX;
use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{DType, Device, Distribution, Tensor};
use kernels::Quantization;
use model::Llava;
use model::batch::PackedBatch;
use model::config::{Activation, FeatureSelect, LlavaConfig};
use model::dropout::LoraDropout;
use model::lora::{self, LoraConfig};
use model::walk::{BatchContext, Plain, text_layers};
use shards::Row;
use tests::{assert_close, assert_relative, reference, tiny};

/// The first rows of the reference data, answers left out: prompts to continue.
fn prompts(count: usize) -> Vec<Row> {
    let samples = std::fs::read(reference("tiny/samples.json")).expect("samples.json is readable");
    let samples: Vec<serde_json::Value> = serde_json::from_slice(&samples).expect("samples.json is JSON");
    let pixels = tiny::read_tensors("tiny/pixels.safetensors").remove("pixel_values").expect("pixel_values").0;
    let each = pixels.len() / samples.len();
    let row = |(index, sample): (usize, &serde_json::Value)| {
        let input_ids: Vec<i32> = serde_json::from_value(sample["prompt_ids"].clone()).expect("prompt_ids");
        Row {
            id: sample["id"].as_str().expect("id").to_string(),
            images: vec![sample["image"].as_str().expect("image").to_string()],
            labels: vec![IGNORE_INDEX; input_ids.len()],
            input_ids,
            pixel_values: pixels[index * each..(index + 1) * each].to_vec(),
        }
    };
    samples.iter().take(count).enumerate().map(row).collect()
}

fn pack(rows: Vec<Row>, config: &LlavaConfig) -> PackedBatch {
    PackedBatch::pack(rows, config.image_token_index, config.image_seq_length()).expect("valid rows")
}

fn argmax(logits: &[f32]) -> u32 {
    let largest = logits.iter().enumerate().max_by(|(_, a), (_, b)| a.total_cmp(b));
    largest.expect("a vocabulary").0 as u32
}

/// Greedy continuations of all rows at once; a sequence leaves the batch when it ends.
fn greedy(model: &Llava, config: &LlavaConfig, rows: Vec<Row>, max_new_tokens: usize) -> Vec<Vec<u32>> {
    let batch = pack(rows, config);
    let device = model.device();
    let capacities = batch.seq_lens.iter().map(|len| len + max_new_tokens);
    let mut caches: Vec<_> = capacities.map(|capacity| config.text.kv_cache(capacity, &device)).collect();
    let mut outputs = vec![Vec::new(); caches.len()];
    let mut logits = tiny::values(model.prefill(&batch, &mut caches.iter_mut().collect::<Vec<_>>(), config));
    let mut running: Vec<usize> = (0..caches.len()).collect();
    loop {
        for (&row, logits) in running.iter().zip(logits.chunks(config.text.vocab_size)) {
            outputs[row].push(argmax(logits));
        }
        running.retain(|&row| {
            outputs[row].len() < max_new_tokens
                && !outputs[row].last().is_some_and(|id| config.text.eos_token_id.contains(id))
        });
        if running.is_empty() {
            return outputs;
        }
        let tokens: Vec<u32> = running.iter().map(|&row| outputs[row][outputs[row].len() - 1]).collect();
        let caches = caches.iter_mut().enumerate().filter(|(row, _)| running.contains(row)).map(|(_, cache)| cache);
        logits = tiny::values(model.decode(&tokens, &mut caches.collect::<Vec<_>>(), config));
    }
}

#[test]
fn greedy_tokens_equal_transformers() {
    let expected = std::fs::read(reference("tiny/generate.json")).expect("generate.json is readable");
    let expected: serde_json::Value = serde_json::from_slice(&expected).expect("generate.json is JSON");
    let expected: Vec<Vec<u32>> = (expected["outputs"].as_array().expect("outputs").iter())
        .map(|output| serde_json::from_value(output["new_ids"].clone()).expect("new_ids"))
        .collect();
    let config = tiny::config();
    for (backend, device) in tests::devices() {
        let model = tiny::model("train_none", &device);
        assert_eq!(greedy(&model, &config, prompts(8), 24), expected, "{backend}: all in one batch");
        let alone: Vec<_> = prompts(8).into_iter().flat_map(|row| greedy(&model, &config, vec![row], 24)).collect();
        assert_eq!(alone, expected, "{backend}: each alone");
    }
}

/// As `infer` decodes: the tokens are found on the device, and a row's do not depend on the others.
#[test]
fn greedy_answers_equal_transformers_and_are_batch_invariant() {
    let expected = std::fs::read(reference("tiny/generate.json")).expect("generate.json is readable");
    let expected: serde_json::Value = serde_json::from_slice(&expected).expect("generate.json is JSON");
    let expected: Vec<Vec<u32>> = (expected["outputs"].as_array().expect("outputs").iter())
        .map(|output| serde_json::from_value(output["new_ids"].clone()).expect("new_ids"))
        .collect();
    let config = tiny::config();
    let eos = &config.text.eos_token_id;
    let without_end = |mut ids: Vec<u32>| {
        ids.pop_if(|id| eos.contains(id));
        ids
    };
    let expected: Vec<_> = expected.into_iter().map(without_end).collect();
    for (backend, device) in tests::devices() {
        let model = tiny::model("train_none", &device);
        let apart = |rows: Vec<Row>| {
            let prompts: Vec<_> = rows.into_iter().map(|row| pack(vec![row], &config)).collect();
            model.greedy_answers_apart(&prompts, 24, eos, &config, || ()).expect("answers")
        };
        assert_eq!(apart(prompts(8)), expected, "{backend}: eight side by side");
        assert_eq!(apart(prompts(3)), expected[..3], "{backend}: three");
        let alone: Vec<_> = prompts(3).into_iter().flat_map(|row| apart(vec![row])).collect();
        assert_eq!(alone, expected[..3], "{backend}: each alone");
    }
}

/// The bits of decode steps' logits: of sequences that join and leave, beside the same sequence alone. Their lengths are from a few
/// tokens to more than 128, which some pass on the way.
#[test]
fn decode_steps_are_batch_invariant() {
    let steps: [&[usize]; 9] = [
        &[0, 1, 2],
        &[0, 1, 2, 3],
        &[3],
        &[3, 1],
        &[7, 6, 5, 4, 3, 2, 1, 0],
        &[7, 5, 4, 1, 6],
        &[5],
        &[5, 2],
        &[2, 5, 7],
    ];
    for (backend, device) in tests::devices() {
        // burn's own operations promise nothing.
        if backend == "ndarray" {
            continue;
        }
        let few_bits = [Quantization::Int8, Quantization::Nf4 { double_quant: true }].map(Some);
        let formats = [vec![None], [&[None], &few_bits[..]].concat()];
        let configs = [("tiny", tiny::config()), ("large heads", tiny::config_with_large_heads())];
        for ((name, config), formats) in configs.into_iter().zip(formats) {
            for format in formats {
                let mut model = Llava::random(&config, 5, &device);
                if let Some(format) = format {
                    model.language_model.quantize_layers(format);
                }
                let logits = |steps: &[Vec<usize>]| decoded_logits(&model, &config, steps);
                let found = logits(&steps.map(<[usize]>::to_vec));
                let format = format.map_or("f32".into(), |format| format.to_string());
                for (row, found) in found.iter().enumerate() {
                    let count = steps.iter().filter(|step| step.contains(&row)).count();
                    let alone = &logits(&vec![vec![row]; count])[row];
                    assert!(found == alone, "{backend}: {name}, {format}: row {row} has other bits than alone");
                }
            }
        }
    }
}

/// The bits of the logits that each of eight rows has in its steps; it joins with the first.
fn decoded_logits(model: &Llava, config: &LlavaConfig, steps: &[Vec<usize>]) -> Vec<Vec<Vec<u32>>> {
    let device = model.device();
    let mut rows = prompts(8);
    for (row, len) in rows.iter_mut().zip([0usize, 127, 128, 90, 129, 0, 300, 126]) {
        let more = len.saturating_sub(pack(vec![row.clone()], config).input_ids.len());
        row.input_ids.extend((0..more as i32).map(|at| 3 + at % 40));
        row.labels = vec![IGNORE_INDEX; row.input_ids.len()];
    }
    let mut caches: Vec<_> = rows.iter().map(|_| None).collect();
    let mut found = vec![Vec::new(); rows.len()];
    for step in steps {
        for &row in step {
            if caches[row].is_none() {
                let batch = pack(vec![rows[row].clone()], config);
                let mut cache = config.text.kv_cache(batch.input_ids.len() + steps.len(), &device);
                model.prefill(&batch, &mut [&mut cache], config);
                caches[row] = Some(cache);
            }
        }
        let tokens: Vec<u32> = step.iter().map(|&row| (5 + row + found[row].len()) as u32).collect();
        let mut of_step: Vec<_> = step.iter().map(|&row| caches[row].take().expect("it joined")).collect();
        let logits = tiny::values(model.decode(&tokens, &mut of_step.iter_mut().collect::<Vec<_>>(), config));
        for ((&row, cache), logits) in step.iter().zip(of_step).zip(logits.chunks(config.text.vocab_size)) {
            found[row].push(logits.iter().map(|logit| logit.to_bits()).collect());
            caches[row] = Some(cache);
        }
    }
    found
}

#[test]
fn logits_that_are_no_numbers_are_refused() {
    let config = tiny::config();
    for (backend, device) in tests::devices() {
        for special in [f32::NAN, f32::INFINITY] {
            let mut model = tiny::model("train_none", &device);
            let norm = &mut model.language_model.model.norm.weight;
            *norm = Param::from_tensor(norm.val().full_like(special));
            let answers = model.greedy_answers_apart(&[pack(prompts(1), &config)], 4, &[], &config, || ());
            let error = answers.expect_err("no token").to_string();
            assert!(error.contains("token 1 of the answer") && error.contains("NaN or infinite"), "{backend}: {error}");
        }
    }
}

/// Shapes that the tiny model does not have: grouped-query attention, tied embeddings, several feature layers with class
/// tokens, GELU in the tower, no projector biases.
fn other_config() -> LlavaConfig {
    let mut config = tiny::config();
    config.text.num_key_value_heads = 2;
    config.text.tie_word_embeddings = true;
    config.vision.hidden_act = Activation::Gelu;
    config.vision_feature_layers = vec![-1, 0];
    config.vision_feature_select_strategy = FeatureSelect::Full;
    config.multimodal_projector_bias = false;
    config
}

#[test]
fn decoding_with_a_cache_equals_the_whole_forward() {
    for (backend, device) in tests::devices() {
        let configs =
            [("tiny", tiny::config()), ("grouped", other_config()), ("large heads", tiny::config_with_large_heads())];
        for (name, config) in configs {
            let model = Llava::random(&config, 5, &device);
            let batch = pack(prompts(3), &config);
            let continuations: [&[u32]; 3] = [&[5, 6, 7, 8], &[9, 10], &[11, 12, 13]];
            let whole = whole_logits(&model, &config, &continuations);

            let mut caches: Vec<_> = batch.seq_lens.iter().map(|len| config.text.kv_cache(len + 4, &device)).collect();
            let mut found = vec![Vec::new(); 3];
            // Row 2 joins after the others have begun to decode: sequences of different ages share a batch.
            let (first, late) = (pack(prompts(2), &config), pack(prompts(3).split_off(2), &config));
            let (early, joining) = caches.split_at_mut(2);
            let logits = model.prefill(&first, &mut early.iter_mut().collect::<Vec<_>>(), &config);
            append(&mut found, &[0, 1], logits);
            let logits = model.decode(&[5, 9], &mut early.iter_mut().collect::<Vec<_>>(), &config);
            append(&mut found, &[0, 1], logits);
            append(&mut found, &[2], model.prefill(&late, &mut joining.iter_mut().collect::<Vec<_>>(), &config));
            for step in 0..3 {
                let rows: Vec<usize> = (0..3)
                    .filter(|&row| found[row].len() / config.text.vocab_size <= continuations[row].len())
                    .collect();
                let next = |&row: &usize| continuations[row][found[row].len() / config.text.vocab_size - 1];
                let tokens: Vec<u32> = rows.iter().map(next).collect();
                let caches =
                    caches.iter_mut().enumerate().filter(|(row, _)| rows.contains(row)).map(|(_, cache)| cache);
                let logits = model.decode(&tokens, &mut caches.collect::<Vec<_>>(), &config);
                assert_eq!(logits.dims(), [rows.len(), config.text.vocab_size], "step {step}");
                append(&mut found, &rows, logits);
            }
            for (row, (found, expected)) in found.iter().zip(&whole).enumerate() {
                assert_relative(&format!("{backend}: {name}: row {row}"), found, expected, 1e-5);
            }
        }
    }
}

/// Logits after the prompt and after each token of the continuation, for each row, computed without a cache.
fn whole_logits(model: &Llava, config: &LlavaConfig, continuations: &[&[u32]]) -> Vec<Vec<f32>> {
    let rows = prompts(continuations.len()).into_iter().zip(continuations).map(|(mut row, continuation)| {
        row.input_ids.extend(continuation.iter().map(|&id| id as i32));
        row.labels.extend(continuation.iter().map(|_| IGNORE_INDEX));
        row
    });
    rows.zip(continuations)
        .map(|(row, continuation)| {
            let batch = pack(vec![row], config);
            let end = batch.input_ids.len();
            let positions: Vec<usize> = (end - continuation.len() - 1..end).collect();
            tiny::values(model.logits(&batch, &positions, config))
        })
        .collect()
}

fn append(found: &mut [Vec<f32>], rows: &[usize], logits: Tensor<2>) {
    let [_, vocab] = logits.dims();
    for (&row, logits) in rows.iter().zip(tiny::values(logits).chunks(vocab)) {
        found[row].extend(logits);
    }
}

fn lora_config(lora_vision: bool) -> LoraConfig {
    let target_modules = lora::TEXT_PROJECTIONS.map(String::from).to_vec();
    LoraConfig {
        r: 4,
        lora_alpha: 8.0,
        use_rslora: false,
        use_dora: false,
        lora_dropout: 0.1,
        target_modules,
        lora_vision,
        modules: None,
    }
}

/// A model with LoRA whose B matrices are not zero.
fn with_lora(config: &LlavaConfig, lora_vision: bool, device: &Device) -> Llava {
    let mut model = Llava::random(config, 6, device);
    lora::attach(&mut model, &lora_config(lora_vision), 7, device);
    device.seed(8);
    for linear in lora::targets(&mut model, &lora_config(lora_vision)) {
        let b = linear.lora_B.as_mut().expect("attached");
        let shape = b.weight.val().shape();
        b.weight = Param::from_tensor(Tensor::random(shape, Distribution::Normal(0.0, 0.05), device));
    }
    model
}

#[test]
fn merged_lora_gives_the_same_logits_and_the_same_text() {
    let config = tiny::config();
    for (backend, device) in tests::devices() {
        for lora_vision in [false, true] {
            let base = Llava::random(&config, 6, &device);
            let model = with_lora(&config, lora_vision, &device);
            let batch = pack(prompts(2), &config);
            let positions = [3, batch.seq_lens[0] - 1, batch.input_ids.len() - 1];
            let logits = |model: &Llava| tiny::values(model.logits(&batch, &positions, &config));
            let (before, text) = (logits(&model), greedy(&model, &config, prompts(4), 8));
            assert_ne!(logits(&base), before, "LoRA has an effect");
            let merged = lora::merge(model);
            assert!(lora::targets(&mut merged.clone(), &lora_config(true)).iter().all(|l| l.lora_A.is_none()));
            assert_relative(&format!("{backend}: vision {lora_vision}"), &logits(&merged), &before, 1e-5);
            assert_eq!(greedy(&merged, &config, prompts(4), 8), text, "{backend}");
        }
    }
}

#[test]
fn a_row_with_dropout_is_the_same_in_any_batch() {
    let config = tiny::config();
    for (backend, device) in tests::devices() {
        let model = with_lora(&config, false, &device);
        let hidden = |rows: Vec<Row>, row_keys: Vec<u64>| {
            let batch = pack(rows, &config);
            let mut context = BatchContext::new(&config, &batch, &device);
            context.text.dropout = Some(LoraDropout { probability: 0.3, seed: 1, row_keys });
            let Ok(hidden) = text_layers(&mut Plain::new(&model), model.inputs_embeds(&batch, &config), &context);
            tiny::values(hidden)
        };
        let mut rows = prompts(2);
        let together = hidden(rows.clone(), vec![40, 41]);
        let second = hidden(vec![rows.remove(1)], vec![41]);
        let first = hidden(rows, vec![40]);
        assert_relative(&format!("{backend}: hidden states"), &together, &[first, second].concat(), 1e-5);
    }
}

struct InFormat(DType);

impl ModuleMapper for InFormat {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|tensor| tensor.cast(self.0))
    }
}

#[test]
fn half_precision_weights_are_used_as_they_are() {
    for (backend, device) in tests::devices() {
        for (name, dtype) in [("bf16", DType::BF16), ("f16", DType::F16)] {
            // Not every backend has every format.
            if !device.supports_dtype(dtype) {
                println!("{backend}: {name} is not a format of this backend");
                continue;
            }
            let config = other_config();
            let stored = Llava::random(&config, 5, &device).map(&mut InFormat(dtype));
            let rounded = stored.clone().map(&mut InFormat(DType::F32));
            let batch = pack(prompts(2), &config);
            let logits = |model: &Llava| tiny::values(model.logits(&batch, &[0, batch.seq_lens[0]], &config));
            assert_relative(&format!("{backend}: {name}"), &logits(&stored), &logits(&rounded), 1e-5);
            assert_eq!(greedy(&stored, &config, prompts(3), 6), greedy(&rounded, &config, prompts(3), 6), "{name}");
        }
    }
}

/// What `--quantize int8` may cost, nats per token.
const INT8_TOLERANCE: f32 = 0.02;

#[test]
fn int8_weights_cost_little_and_decode_as_the_whole_forward() {
    let reference = tiny::read_tensors("tiny/forward.safetensors");
    for (backend, device) in tests::devices() {
        let config = tiny::config();
        let batch = tiny::forward_batch(&reference, config.image_token_index);
        let mut model = tiny::model("llava", &device);
        let loss = |model: &Llava| {
            let (sum, tokens) = model.loss(&batch, &config);
            tiny::values(sum)[0] / tokens as f32
        };
        let before = loss(&model);
        model.language_model.quantize_layers(Quantization::Int8);
        model.language_model.quantize_head(Quantization::Int8);
        assert_close(&format!("{backend}: loss"), &[loss(&model)], &[before], INT8_TOLERANCE);

        // Tied: the same integers serve as embedding and as head.
        let config = other_config();
        let mut model = Llava::random(&config, 5, &device);
        model.language_model.quantize_layers(Quantization::Int8);
        model.language_model.quantize_head(Quantization::Int8);
        let whole = whole_logits(&model, &config, &[&[5, 6]]).remove(0);
        let batch = pack(prompts(1), &config);
        let mut cache = config.text.kv_cache(batch.input_ids.len() + 2, &device);
        let mut found = vec![Vec::new()];
        append(&mut found, &[0], model.prefill(&batch, &mut [&mut cache], &config));
        append(&mut found, &[0], model.decode(&[5], &mut [&mut cache], &config));
        append(&mut found, &[0], model.decode(&[6], &mut [&mut cache], &config));
        assert_relative(&format!("{backend}: decoding"), &found[0], &whole, 1e-5);
    }
}
