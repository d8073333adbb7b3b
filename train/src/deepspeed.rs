//! DeepSpeed's ZeRO-2 JSON file: what it sets is honoured, what we do not do is refused with the reason.

use common::{Error, Result};
use serde_json::{Map, Value};
use std::path::Path;

/// Adds the file's values to `given` (what the user set elsewhere). `auto` leaves the option as it is.
///
/// # Errors
/// A stage other than 2, offloading, fp16, another optimizer, unknown schedulers, or a value that contradicts an option.
pub fn overlay(path: &Path, given: &mut Map<String, Value>) -> Result<()> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    let json: Value = serde_json::from_str(&text)
        .map_err(|error| Error::invalid(path.display(), error, "JSON", "correct the file"))?;
    let file = File { path, json };
    file.refuse_what_is_not_done()?;
    for (pointer, option) in OPTIONS {
        if let Some(value) = file.value(pointer) {
            file.set(given, pointer, option, value.clone())?;
        }
    }
    file.overlay_betas(given)?;
    file.check_train_batch_size(given)
}

/// Where a value stands in the file, and the option it sets.
const OPTIONS: [(&str, &str); 8] = [
    ("/gradient_clipping", "max_grad_norm"),
    ("/train_micro_batch_size_per_gpu", "per_device_train_batch_size"),
    ("/gradient_accumulation_steps", "gradient_accumulation_steps"),
    ("/bf16/enabled", "bf16"),
    ("/optimizer/params/lr", "learning_rate"),
    ("/optimizer/params/eps", "adam_epsilon"),
    ("/optimizer/params/weight_decay", "weight_decay"),
    ("/scheduler/params/warmup_num_steps", "warmup_steps"),
];

struct File<'a> {
    path: &'a Path,
    json: Value,
}

impl File<'_> {
    /// The value at a JSON pointer, unless it is `auto` or null.
    fn value(&self, pointer: &str) -> Option<&Value> {
        self.json.pointer(pointer).filter(|value| !value.is_null() && value.as_str() != Some("auto"))
    }

    fn invalid(&self, pointer: &str, found: impl ToString, expected: &str, remedy: &str) -> Error {
        let key = pointer.trim_start_matches('/').replace('/', ".");
        Error::invalid(format!("{}: {key}", self.path.display()), found, expected, remedy)
    }

    fn refuse_what_is_not_done(&self) -> Result<()> {
        let stage = self.json.pointer("/zero_optimization/stage").cloned().unwrap_or(Value::from(0));
        if stage.as_i64() != Some(2) {
            let why = match stage.as_i64() {
                Some(3) => "2 (ranks hold whole parameters here; stage 3 shards them)",
                Some(0 | 1) => "2 (gradients are sharded as well here, at no cost)",
                _ => "2",
            };
            return Err(self.invalid("/zero_optimization/stage", stage, why, "set the stage to 2"));
        }
        for part in ["offload_optimizer", "offload_param"] {
            let pointer = format!("/zero_optimization/{part}/device");
            if let Some(device) = self.value(&pointer).filter(|device| device.as_str() != Some("none")) {
                let expected = "none (optimizer state lives where the rank computes)";
                return Err(self.invalid(&pointer, device, expected, "remove the offload section"));
            }
        }
        if self.value("/fp16/enabled") == Some(&Value::Bool(true)) {
            return Err(self.invalid("/fp16/enabled", true, "false (no loss scaling here)", "enable bf16 instead"));
        }
        match self.value("/optimizer/type").and_then(Value::as_str) {
            None | Some("AdamW" | "Adam") => Ok(()),
            Some(other) => Err(self.invalid("/optimizer/type", other, "AdamW", "use AdamW or remove the section")),
        }
    }

    /// Sets an option, unless the user set it to something else.
    fn set(&self, given: &mut Map<String, Value>, pointer: &str, option: &str, value: Value) -> Result<()> {
        match given.get(option) {
            Some(other) if !same(other, &value) => {
                let expected = format!("{other} as --{option} says, or auto");
                Err(self.invalid(pointer, &value, &expected, "make the two agree"))
            }
            Some(_) => Ok(()),
            None => {
                given.insert(option.to_string(), value);
                Ok(())
            }
        }
    }

    fn overlay_betas(&self, given: &mut Map<String, Value>) -> Result<()> {
        let pointer = "/optimizer/params/betas";
        let Some(betas) = self.value(pointer) else { return Ok(()) };
        let Some([beta1, beta2]) = betas.as_array().map(Vec::as_slice) else {
            return Err(self.invalid(pointer, betas, "two numbers or auto", "correct the file"));
        };
        self.set(given, pointer, "adam_beta1", beta1.clone())?;
        self.set(given, pointer, "adam_beta2", beta2.clone())
    }

    /// `train_batch_size` fixes micro-batch × accumulation × ranks; it is kept for the check once ranks are known.
    fn check_train_batch_size(&self, given: &Map<String, Value>) -> Result<()> {
        let pointer = "/train_batch_size";
        let Some(total) = self.value(pointer) else { return Ok(()) };
        let per_rank = ["per_device_train_batch_size", "gradient_accumulation_steps"]
            .iter()
            .map(|option| given.get(*option).and_then(Value::as_u64).unwrap_or(1))
            .product::<u64>();
        match total.as_u64() {
            Some(rows) if per_rank > 0 && rows % per_rank == 0 => Ok(()),
            _ => {
                let expected = format!("a multiple of micro-batch × accumulation = {per_rank}, or auto");
                Err(self.invalid(pointer, total, &expected, "write auto: the batch follows from the options"))
            }
        }
    }
}

fn same(a: &Value, b: &Value) -> bool {
    a == b || (a.is_number() && a.as_f64() == b.as_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over(json: &str, given: &[(&str, Value)]) -> Result<Map<String, Value>> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("ds_zero2.json");
        std::fs::write(&path, json).expect("the file is written");
        let mut given = given.iter().map(|(name, value)| (name.to_string(), value.clone())).collect();
        overlay(&path, &mut given).map(|()| given)
    }

    #[test]
    fn values_are_honoured_and_auto_is_left_alone() {
        let json = r#"{"bf16": {"enabled": "auto"}, "gradient_clipping": 0.5, "train_micro_batch_size_per_gpu": "auto",
            "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "none"}, "overlap_comm": true},
            "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "betas": [0.8, 0.99], "eps": "auto"}}}"#;
        let given = over(json, &[("learning_rate", Value::from(1e-4))]).expect("valid");
        assert_eq!(given["max_grad_norm"], 0.5);
        assert_eq!((&given["adam_beta1"], &given["adam_beta2"]), (&Value::from(0.8), &Value::from(0.99)));
        assert!(!given.contains_key("bf16") && !given.contains_key("adam_epsilon"));
    }

    #[test]
    fn other_stages_offload_and_contradictions_are_refused() {
        for (json, given, named) in [
            (r#"{"zero_optimization": {"stage": 3}}"#, vec![], "stage"),
            (r#"{"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}"#, vec![], "offload"),
            (r#"{"zero_optimization": {"stage": 2}, "fp16": {"enabled": true}}"#, vec![], "fp16"),
            (
                r#"{"zero_optimization": {"stage": 2}, "gradient_clipping": 1.0}"#,
                vec![("max_grad_norm", Value::from(2.0))],
                "max_grad_norm",
            ),
        ] {
            let error = over(json, &given).expect_err("refused").to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
