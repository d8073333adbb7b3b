//! The modules of an adapter: by its weights, compared with its configuration.

use super::config::{ALPHA_PATTERN, AdapterFile, RANK_PATTERN};
use super::patterns::LayerPattern;
use super::targets::Targets;
use super::weights::AdapterWeights;
use base::names::{self, Block, EMBED_TOKENS, HEAD, LM_HEAD};
use base::{Error, Result};
use model::lora::{AdapterModules, LoraConfig, TEXT_PROJECTIONS, VISION_PROJECTIONS, can_carry_lora};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// The field of modules that are trained in full.
pub const SAVED: &str = "modules_to_save";

/// What an adapter means for a model's output weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// They are a table of their own, and stay one.
    Own,
    /// They are the embedding, and stay it.
    Tied,
    /// They are the embedding, and become a table of their own.
    Untied,
}

/// The adapter's settings for a model, and what becomes of its output weights.
pub struct Resolved {
    /// Settings.
    pub lora: LoraConfig,
    /// What happens to the model's output weights.
    pub head: Head,
}

/// The model's tensors by published names, LoRA not included.
pub struct ModelTensors {
    names: Vec<String>,
    is_tied: bool,
}

impl ModelTensors {
    /// From the names of all tensors; a tied head is not among them.
    pub fn new(names: impl Iterator<Item = String>) -> Self {
        let mut names: Vec<String> = names.filter(|name| !names::is_lora(name)).collect();
        let is_tied = !names.iter().any(|name| name == LM_HEAD);
        if is_tied {
            names.push(LM_HEAD.to_string());
        }
        Self { names, is_tied }
    }

    /// All of them, the output weights included.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The output weights are the embedding.
    pub fn is_tied(&self) -> bool {
        self.is_tied
    }

    /// Layers that can carry LoRA.
    pub fn linears(&self) -> impl Iterator<Item = &str> {
        self.names.iter().filter(|name| can_carry_lora(name)).filter_map(|name| name.strip_suffix(".weight"))
    }
}

/// Puts together what configuration and weights say.
///
/// # Errors
/// Tensors without a place in the model, halves of LoRA pairs, and layers where the two disagree, by name.
pub fn resolve(file: &AdapterFile, weights: &AdapterWeights, model: &ModelTensors) -> Result<Resolved> {
    let targets = Targets::new(&file.targets, &file.place)?;
    let (lora, values) = (weights.lora_layers(), weights.values());
    let mut problems = without_place(weights, model, &lora, &values);
    problems.extend(halves(weights, &lora, file.use_dora));
    let (saved, spelling) = disagreements(file, &targets, model, &lora, &values, &mut problems);
    let refuse = |found: String, expected: &str, remedy: &str| {
        Err(Error::invalid(weights.path.display(), found, expected, remedy))
    };
    if let Some(first) = problems.first() {
        let others = if problems.len() > 1 { format!(" ({} such tensors)", problems.len()) } else { String::new() };
        let expected = "the tensors of this model's adapter, as adapter_config.json beside it names them";
        return refuse(first.clone() + &others, expected, "give an adapter that was trained on this model");
    }
    if lora.is_empty() {
        let expected = "lora_A and lora_B of at least one layer";
        return refuse("no LoRA".into(), expected, "give a LoRA adapter of this model");
    }
    let mut trained: BTreeSet<String> = saved.intersection(&values).cloned().collect();
    let of_saved = [EMBED_TOKENS, LM_HEAD].iter().any(|name| trained.contains(*name));
    let of_tied = lora.contains(HEAD) || of_saved;
    if file.ensure_weight_tying && model.is_tied && lora.contains(HEAD) {
        let expected = "LoRA on layers of their own (LoRA on tied output weights is not implemented)";
        return refuse(
            "LoRA on lm_head with ensure_weight_tying".into(),
            expected,
            "merge it with PEFT's merge_and_unload",
        );
    }
    let head = match (model.is_tied, of_tied && !file.ensure_weight_tying) {
        (false, _) => Head::Own,
        (true, false) => Head::Tied,
        (true, true) => Head::Untied,
    };
    if head == Head::Tied && differ(weights, EMBED_TOKENS, LM_HEAD) {
        let expected = "one table: the model ties its output weights to its embedding";
        return refuse(format!("different values of {EMBED_TOKENS} and {LM_HEAD}"), expected, "save the adapter again");
    }
    let kept = values.difference(&trained).cloned().collect();
    let mut config = with_projections(file.settings(), &lora);
    let ranks = of_layers(&file.rank_pattern, file.r, &lora, spelling, &format!("{}: {RANK_PATTERN}", file.place))?;
    let place = format!("{}: {ALPHA_PATTERN}", file.place);
    let alphas = of_layers(&file.alpha_pattern, file.lora_alpha, &lora, spelling, &place)?;
    let is_plain = trained.iter().all(|name| name.starts_with(names::PROJECTOR))
        && values == trained
        && model.linears().all(|layer| config.has_lora(layer) == lora.contains(layer))
        && !config.target_modules.is_empty()
        && ranks.is_empty()
        && alphas.is_empty()
        && file.untrainable.is_none();
    if !is_plain {
        let tied =
            (head == Head::Tied && of_tied).then_some("modules_to_save of tied weights with ensure_weight_tying");
        let (untrainable, mut fields) = (file.untrainable.or(tied), file.module_fields.clone());
        let has_projector = lora.iter().chain(&trained).any(|name| name.starts_with(names::PROJECTOR));
        if !has_projector {
            trained.extend(model.names.iter().filter(|name| name.starts_with(names::PROJECTOR)).cloned());
            save_projector(&mut fields);
        }
        // LoRA on tied output weights leaves their values shared.
        let unties_head = head == Head::Untied && of_saved;
        config.modules = Some(AdapterModules { lora, ranks, alphas, trained, kept, unties_head, untrainable, fields });
    }
    config.validate()?;
    Ok(Resolved { lora: config, head })
}

/// Adds the projector to `modules_to_save`.
fn save_projector(fields: &mut Vec<(String, Value)>) {
    let added = json!(names::PROJECTOR);
    match fields.iter_mut().find(|(field, _)| field == SAVED) {
        Some((_, Value::Array(saved))) => saved.push(added),
        _ => fields.push((SAVED.to_string(), json!([added]))),
    }
}

/// The settings with the projections of any layer that has LoRA.
pub fn with_projections(settings: LoraConfig, lora: &BTreeSet<String>) -> LoraConfig {
    let has = |projection: &str, is_block: fn(&Block) -> bool| {
        let end = format!(".{projection}");
        lora.iter().any(|layer| layer.ends_with(&end) && names::block(layer).as_ref().is_some_and(is_block))
    };
    let of_text = |projection: &&str| has(projection, |block| matches!(block, Block::TextLayer(_)));
    let of_tower = |projection: &&str| has(projection, |block| matches!(block, Block::VisionLayer(_)));
    LoraConfig {
        target_modules: TEXT_PROJECTIONS.into_iter().filter(|name| of_text(name)).map(String::from).collect(),
        lora_vision: VISION_PROJECTIONS.iter().any(of_tower),
        ..settings
    }
}

fn without_place(
    weights: &AdapterWeights,
    model: &ModelTensors,
    lora: &BTreeSet<String>,
    values: &BTreeSet<String>,
) -> Vec<String> {
    let linears: BTreeSet<&str> = model.linears().collect();
    let known: BTreeSet<&str> = model.names.iter().map(String::as_str).collect();
    let layers = lora.iter().filter(|layer| !linears.contains(layer.as_str()));
    let matrices =
        layers.flat_map(|layer| names::lora_matrices(layer).into_iter().chain([names::lora_magnitude(layer)]));
    let others = values.iter().filter(|name| !known.contains(name.as_str())).cloned();
    let stored = matrices.chain(others).filter_map(|name| weights.stored_name(&name).map(String::from));
    stored.map(|name| format!("tensor {name}, for which this model has no place")).collect()
}

/// What layers with LoRA lack, and magnitudes that nothing is said of.
fn halves(weights: &AdapterWeights, lora: &BTreeSet<String>, use_dora: bool) -> Vec<String> {
    let magnitudes = || lora.iter().map(|layer| names::lora_magnitude(layer));
    let wanted = lora.iter().flat_map(|layer| names::lora_matrices(layer)).chain(magnitudes().filter(|_| use_dora));
    let missing = wanted.filter(|name| weights.stored_name(name).is_none()).map(|name| format!("no tensor {name}"));
    let unwanted = magnitudes().filter(|_| !use_dora).filter_map(|name| weights.stored_name(&name).map(String::from));
    missing.chain(unwanted.map(|name| format!("tensor {name}, which belongs to use_dora true"))).collect()
}

/// The values of layers with LoRA that are not the adapter's own.
pub fn of_layers<T: Copy + PartialEq>(
    pattern: &LayerPattern<T>,
    of_adapter: T,
    lora: &BTreeSet<String>,
    spelling: usize,
    place: &str,
) -> Result<BTreeMap<String, T>> {
    let compiled = pattern.compiled(place)?;
    let value = |layer: &String| {
        let found = compiled.of(&names::module_spellings(layer)[spelling]);
        Some((layer.clone(), found.filter(|value| *value != of_adapter)?))
    };
    Ok(lora.iter().filter_map(value).collect())
}

/// Compares the weights with the configuration in the spelling of module paths that fits them best, and tells problems. Returns
/// the tensors that `modules_to_save` names, and the spelling.
///
/// A part of the model (a tower, the projector, the head) without any LoRA in the file may be named nevertheless: PEFT gives it
/// fresh matrices, which change nothing, unless it initialises them at random.
fn disagreements(
    file: &AdapterFile,
    targets: &Targets,
    model: &ModelTensors,
    lora: &BTreeSet<String>,
    values: &BTreeSet<String>,
    problems: &mut Vec<String>,
) -> (BTreeSet<String>, usize) {
    let parts: BTreeSet<_> = lora.iter().map(|layer| part(layer)).collect();
    let in_spelling = |spelling: usize| {
        let mut problems = Vec::new();
        for layer in model.linears().filter(|_| targets.are_given()) {
            let named = targets.has_lora(&names::module_spellings(layer)[spelling]);
            match (named, lora.contains(layer)) {
                (true, false) if file.has_random_init || parts.contains(&part(layer)) => {
                    problems.push(format!("no LoRA of {layer}, which target_modules names"));
                }
                (false, true) => problems.push(format!("LoRA of {layer}, which target_modules does not name")),
                _ => {}
            }
        }
        let mut saved = BTreeSet::new();
        for name in targets.modules_to_save() {
            let found: Vec<&String> =
                model.names.iter().filter(|tensor| is_saved(targets, name, tensor, spelling)).collect();
            if found.is_empty() {
                problems.push(format!("modules_to_save {name:?}, which this model does not have"));
            }
            let missing = found.iter().filter(|tensor| !values.contains(**tensor));
            problems.extend(missing.map(|tensor| format!("no tensor {tensor}, which modules_to_save {name:?} names")));
            saved.extend(found.into_iter().cloned());
        }
        (problems, saved, spelling)
    };
    let best = (0..names::SPELLINGS_OF_MODULES).map(in_spelling).min_by_key(|(problems, ..)| problems.len());
    let (found, saved, spelling) = best.unwrap_or_default();
    problems.extend(found);
    (saved, spelling)
}

/// Whether a tensor lies in a module that `modules_to_save` names.
pub fn is_saved(targets: &Targets, name: &str, tensor: &str, spelling: usize) -> bool {
    let path = &names::module_spellings(tensor)[spelling];
    let ends = path.match_indices('.').map(|(dot, _)| &path[..dot]);
    ends.into_iter().any(|module| targets.saves(name, module))
}

/// Tower, projector, language model or head.
fn part(layer: &str) -> u8 {
    match names::block(layer) {
        Some(Block::TextLayer(_)) => 0,
        Some(Block::Projector) => 1,
        Some(Block::Head) | None => 2,
        Some(_) => 3,
    }
}

fn differ(weights: &AdapterWeights, a: &str, b: &str) -> bool {
    weights.get(a).zip(weights.get(b)).is_some_and(|(a, b)| a.bytes != b.bytes)
}
