//! PEFT LoRA adapters: minimal `adapter_config.json`, both key spellings in `adapter_model.safetensors`.

use crate::checkpoint::{LoadAs, TensorFiles, TensorSource};
use crate::config::WeightDtype;
use crate::model::Llava;
use crate::model::lora::{self, LoraConfig, TEXT_PROJECTIONS};
use crate::names;
use crate::{Error, Result, files};
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Device, Tensor};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// Reads `dir/adapter_config.json`.
///
/// # Errors
/// A missing file, another kind of adapter, LoRA variants that are not implemented, targets that the model does not have.
pub fn read_config(dir: &Path) -> Result<LoraConfig> {
    let path = dir.join(names::ADAPTER_CONFIG_FILE);
    let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
    let refuse = |found: String, expected: &str| {
        Error::invalid(path.display(), found, expected, "give a LoRA adapter of this model")
    };
    let config: Value = serde_json::from_str(&text).map_err(|error| refuse(error.to_string(), "a JSON object"))?;
    if config["peft_type"] != "LORA" {
        return Err(refuse(format!("peft_type {}", config["peft_type"]), "\"LORA\""));
    }
    let unsupported = ["use_dora", "use_rslora", "fan_in_fan_out", "lora_bias"];
    if let Some(key) = unsupported.into_iter().find(|key| config[key] == true) {
        return Err(refuse(format!("{key} true"), "plain LoRA"));
    }
    let number = |key: &str| config[key].as_f64().ok_or_else(|| refuse(format!("{key} {}", config[key]), "a number"));
    let (target_modules, lora_vision) = targets(&config["target_modules"], dir)?;
    let config = LoraConfig {
        r: number("r")? as usize,
        lora_alpha: number("lora_alpha")?,
        lora_dropout: config["lora_dropout"].as_f64().unwrap_or(0.0),
        target_modules,
        lora_vision,
    };
    config.validate()?;
    Ok(config)
}

/// Which projections an adapter targets. A regular expression is not evaluated: what the weights hold decides.
fn targets(target_modules: &Value, dir: &Path) -> Result<(Vec<String>, bool)> {
    let files = TensorFiles::open_file(&dir.join(names::ADAPTER_WEIGHTS_FILE))?;
    let stored: Vec<String> = files.names().into_iter().filter_map(names::canonical_adapter).collect();
    let has = |prefix: &str, projection: &str| {
        let part = format!(".{projection}.lora_A.");
        stored.iter().any(|name| name.starts_with(prefix) && name.contains(&part))
    };
    let text = TEXT_PROJECTIONS.into_iter().filter(|projection| has(names::TEXT_MODEL, projection));
    let text: Vec<String> = text.map(String::from).collect();
    if text.is_empty() {
        let found = format!("no LoRA matrices of the language model (target_modules {target_modules})");
        let remedy = "give an adapter that was trained on this model";
        return Err(Error::invalid(
            dir.join(names::ADAPTER_WEIGHTS_FILE).display(),
            found,
            "lora_A and lora_B",
            remedy,
        ));
    }
    Ok((text, has(names::VISION_MODEL, "q_proj")))
}

/// Attaches the adapter's LoRA matrices (`lora_A`, `lora_B`) to the model's layers and replaces the projector.
///
/// # Errors
/// A missing, extra or misshapen tensor, by name.
pub fn load_adapter(model: &mut Llava, dir: &Path, device: &Device) -> Result<LoraConfig> {
    let config = read_config(dir)?;
    lora::attach(model, &config, 0, device);
    let path = dir.join(names::ADAPTER_WEIGHTS_FILE);
    let files = TensorFiles::open_file(&path)?;
    let mut stored = BTreeMap::new();
    let mut problems = Vec::new();
    for name in files.names() {
        match names::canonical_adapter(name) {
            Some(canonical) => {
                stored.insert(canonical, name.to_string());
            }
            None => problems.push(format!("extra tensor {name}")),
        }
    }
    let mut loader = AdapterLoader { path: Vec::new(), files: &files, stored, problems, device };
    *model = model.clone().map(&mut loader);
    let AdapterLoader { stored, mut problems, .. } = loader;
    problems.extend(stored.into_keys().map(|name| format!("extra tensor {name}")));
    match problems.first() {
        None => Ok(config),
        Some(first) => {
            let found = format!("{first} ({} in all)", problems.len());
            let remedy = "give an adapter that was trained on this model";
            Err(Error::invalid(path.display(), found, "the tensors of this model's adapter", remedy))
        }
    }
}

struct AdapterLoader<'a> {
    path: Vec<String>,
    files: &'a TensorFiles,
    stored: BTreeMap<String, String>,
    problems: Vec<String>,
    device: &'a Device,
}

impl ModuleMapper for AdapterLoader<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let name = self.path.join(".");
        let is_lora = name.contains(".lora_");
        let Some(stored) = self.stored.remove(&name) else {
            // The projector may be absent: an adapter of the language model alone.
            if is_lora {
                self.problems.push(format!("missing tensor {name}"));
            }
            return param;
        };
        let Some(view) = self.files.get(&stored) else { return param };
        let shape = param.val().dims();
        if view.shape != shape {
            self.problems.push(format!("tensor {stored} has shape {:?}, the model wants {shape:?}", view.shape));
            return param;
        }
        Param::from_tensor(view.to_tensor(LoadAs::F32, self.device))
    }
}

/// Writes the model's LoRA matrices and projector as a PEFT directory, each tensor under both spellings.
///
/// # Errors
/// What the operating system refuses.
pub fn save_adapter(model: &Llava, config: &LoraConfig, base_model: &str, dir: &Path) -> Result<()> {
    let mut collector = AdapterCollector { path: Vec::new(), tensors: Vec::new() };
    model.visit(&mut collector);
    crate::checkpoint::write_tensor_file(collector.tensors, &dir.join(names::ADAPTER_WEIGHTS_FILE))?;
    // The fields that every PEFT generation knows: an unknown one is an error in older versions.
    let json = json!({
        "base_model_name_or_path": base_model,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": config.lora_dropout,
        "modules_to_save": ["multi_modal_projector"],
        "peft_type": "LORA",
        "r": config.r,
        "target_modules": target_pattern(config),
        "task_type": "CAUSAL_LM",
    });
    files::write_atomically(&dir.join(names::ADAPTER_CONFIG_FILE), format!("{json:#}\n").as_bytes())
}

/// A regular expression for PEFT: plain names would also hit the vision tower's q, k and v.
fn target_pattern(config: &LoraConfig) -> String {
    let text = format!(r".*language_model.*\.({})", config.target_modules.join("|"));
    if config.lora_vision { format!(r"{text}|.*vision_tower.*\.(q_proj|k_proj|v_proj)") } else { text }
}

struct AdapterCollector {
    path: Vec<String>,
    tensors: Vec<TensorSource<'static>>,
}

impl ModuleVisitor for AdapterCollector {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let name = self.path.join(".");
        if !name.contains(".lora_") && !name.starts_with(names::PROJECTOR) {
            return;
        }
        for name in names::adapter_spellings(&name) {
            let tensor = param.val();
            let shape = tensor.dims().to_vec();
            let bytes = Box::new(move || crate::checkpoint::tensor_bytes(tensor, WeightDtype::F32));
            self.tensors.push(TensorSource { name, dtype: WeightDtype::F32, shape, bytes });
        }
    }
}
