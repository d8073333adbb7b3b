//! The `scheduler` section of a DeepSpeed file.

use super::File;
use crate::recipe::Given;
use crate::schedule::{DeepspeedKind, DeepspeedSchedule, WarmupType};
use base::Result;
use serde_json::{Map, Value};

const PARAMS: &str = "/scheduler/params";
/// DeepSpeed's defaults.
const WARMUP_NUM_STEPS: u64 = 1000;
const COS_MIN_RATIO: f64 = 0.0001;

/// Parameters that a schedule takes.
fn parameters(kind: DeepspeedKind) -> &'static [&'static str] {
    match kind {
        DeepspeedKind::WarmupLR => {
            &["warmup_min_lr", "warmup_max_lr", "warmup_num_steps", "warmup_type", "last_batch_iteration"]
        }
        DeepspeedKind::WarmupDecayLR => &[
            "total_num_steps",
            "warmup_min_lr",
            "warmup_max_lr",
            "warmup_num_steps",
            "warmup_type",
            "last_batch_iteration",
        ],
        DeepspeedKind::WarmupCosineLR => &[
            "total_num_steps",
            "warmup_min_ratio",
            "cos_min_ratio",
            "warmup_num_steps",
            "warmup_type",
            "last_batch_iteration",
        ],
    }
}

/// Sets the schedule, and the options that it shares with the command line: `learning_rate` (its highest rate) and
/// `warmup_steps`.
///
/// # Errors
/// A schedule or parameter that is unknown or out of its domain; one that contradicts an option.
pub(super) fn overlay(file: &File<'_>, given: &mut Given) -> Result<()> {
    let Some(kind) = kind(file)? else { return Ok(()) };
    for option in ["lr_scheduler_type", "lr_scheduler_kwargs"] {
        if given.get(option).is_some() {
            let expected = format!("no scheduler, because of {}", given.place(option));
            return Err(file.invalid(
                "/scheduler/type",
                &file.json["scheduler"]["type"],
                &expected,
                "remove one of the two",
            ));
        }
    }
    let empty = Map::new();
    let params = match file.json.pointer(PARAMS) {
        None | Some(Value::Null) => &empty,
        Some(Value::Object(params)) => params,
        Some(other) => return Err(file.invalid(PARAMS, other, "an object", "correct the file")),
    };
    if let Some(name) = params.keys().find(|name| !parameters(kind).contains(&name.as_str())) {
        let expected = format!("one of {} for {kind:?}", parameters(kind).join(", "));
        return Err(file.invalid(&pointer(name), "an unknown parameter", &expected, "correct or remove it"));
    }
    if kind != DeepspeedKind::WarmupCosineLR {
        highest_rate(file, given, params)?;
    }
    warmup_steps(file, given)?;
    let schedule = DeepspeedSchedule {
        kind,
        warmup_type: warmup_type(file)?,
        warmup_min_lr: number(file, "warmup_min_lr", f64::MAX)?.unwrap_or(0.0),
        warmup_min_ratio: number(file, "warmup_min_ratio", 1.0)?.unwrap_or(0.0),
        cos_min_ratio: number(file, "cos_min_ratio", 1.0)?.unwrap_or(COS_MIN_RATIO),
        total_num_steps: total_num_steps(file, kind, params)?,
    };
    if let Some(iteration) = file.value(&pointer("last_batch_iteration")).filter(|value| value.as_f64() != Some(-1.0)) {
        let why = "-1 (a resumed run continues at the step of its checkpoint)";
        return Err(file.invalid(&pointer("last_batch_iteration"), iteration, why, "remove it"));
    }
    let place = file.place("/scheduler");
    given.insert("deepspeed_scheduler", serde_json::to_value(schedule).unwrap_or_default(), place);
    Ok(())
}

fn pointer(name: &str) -> String {
    format!("{PARAMS}/{name}")
}

fn kind(file: &File<'_>) -> Result<Option<DeepspeedKind>> {
    if file.json.get("scheduler").is_none_or(Value::is_null) {
        return Ok(None);
    }
    let expected = "WarmupLR, WarmupDecayLR or WarmupCosineLR";
    match file.value("/scheduler/type").map(|name| name.as_str().unwrap_or_default()) {
        None if file.json.pointer(PARAMS).is_none() => Ok(None),
        Some("WarmupLR") => Ok(Some(DeepspeedKind::WarmupLR)),
        Some("WarmupDecayLR") => Ok(Some(DeepspeedKind::WarmupDecayLR)),
        Some("WarmupCosineLR") => Ok(Some(DeepspeedKind::WarmupCosineLR)),
        found => {
            let remedy = "use one of these, or remove the section and give --lr_scheduler_type";
            Err(file.invalid("/scheduler/type", found.unwrap_or("none"), expected, remedy))
        }
    }
}

fn highest_rate(file: &File<'_>, given: &mut Given, params: &Map<String, Value>) -> Result<()> {
    let pointer = pointer("warmup_max_lr");
    if params.get("warmup_max_lr").is_none_or(Value::is_null) {
        let expected = "a rate, or auto for --learning_rate (DeepSpeed's default differs between versions)";
        return Err(file.invalid(&pointer, "nothing", expected, "write it"));
    }
    let Some(rate) = file.value(&pointer) else { return Ok(()) };
    file.set(given, &pointer, "learning_rate", rate.clone())
}

fn warmup_steps(file: &File<'_>, given: &mut Given) -> Result<()> {
    let pointer = pointer("warmup_num_steps");
    let written = file.json.pointer(&pointer);
    if written.is_some_and(|steps| steps == "auto") {
        return Ok(());
    }
    let steps = written.cloned().filter(|steps| !steps.is_null()).unwrap_or(Value::from(WARMUP_NUM_STEPS));
    let whole = steps.as_f64().filter(|steps| steps.fract() == 0.0 && (1.0..1e15).contains(steps));
    let Some(whole) = whole else {
        return Err(file.invalid(&pointer, steps, "a whole number, at least 1, or auto", "correct the file"));
    };
    if given.get("warmup_ratio").and_then(Value::as_f64).is_some_and(|ratio| ratio > 0.0) {
        let expected = format!("auto, because {} says how long the warm-up is", given.place("warmup_ratio"));
        return Err(file.invalid(&pointer, steps, &expected, "make the two agree"));
    }
    file.set(given, &pointer, "warmup_steps", Value::from(whole))
}

fn warmup_type(file: &File<'_>) -> Result<WarmupType> {
    let pointer = pointer("warmup_type");
    match file.value(&pointer) {
        None => Ok(WarmupType::Log),
        Some(name) if name == "log" => Ok(WarmupType::Log),
        Some(name) if name == "linear" => Ok(WarmupType::Linear),
        Some(other) => Err(file.invalid(&pointer, other, "log or linear", "correct the file")),
    }
}

/// A number from 0 to `high`.
fn number(file: &File<'_>, name: &str, high: f64) -> Result<Option<f64>> {
    let Some(value) = file.value(&pointer(name)) else { return Ok(None) };
    match value.as_f64().filter(|value| (0.0..=high).contains(value)) {
        Some(value) => Ok(Some(value)),
        None => {
            let expected =
                if high == f64::MAX { "a number, at least 0".into() } else { format!("a number from 0 to {high}") };
            Err(file.invalid(&pointer(name), value, &expected, "correct the file"))
        }
    }
}

/// The steps of the run, which DeepSpeed wants to be told.
fn total_num_steps(file: &File<'_>, kind: DeepspeedKind, params: &Map<String, Value>) -> Result<Option<u64>> {
    if kind == DeepspeedKind::WarmupLR {
        return Ok(None);
    }
    let pointer = pointer("total_num_steps");
    match params.get("total_num_steps") {
        Some(Value::String(auto)) if auto == "auto" => Ok(None),
        Some(steps) if steps.as_f64().is_some_and(|steps| steps.fract() == 0.0 && (1.0..1e15).contains(&steps)) => {
            Ok(steps.as_f64().map(|steps| steps as u64))
        }
        other => {
            let found = other.map_or("nothing".to_string(), Value::to_string);
            Err(file.invalid(&pointer, found, "a whole number of steps, or auto", "write auto"))
        }
    }
}
