//! Which tokens a layer of a Qwen looks at: all before it, or a window of them, which is not implemented.

use crate::config::reader::Fields;
use base::Result;

const FULL: &str = "full_attention";
const SLIDING: &str = "sliding_attention";

fn expected() -> String {
    format!("{FULL} everywhere: windowed attention is not implemented")
}

/// Refuses layers that look at a window, however wide: a sequence may be longer than the model was made for.
///
/// # Source
/// transformers 5.24, `configuration_qwen2.py` (and 3): `layer_types` wins over `max_window_layers`; without
/// `use_sliding_window` or without a width there is no window.
pub(super) fn require_full_attention(fields: &Fields<'_>, layers: usize) -> Result<()> {
    let at = &fields.at;
    let is_used = fields.or("use_sliding_window", false)?;
    // Absent means 4096, as there; an explicit `null` means no window.
    let window: Option<usize> = fields.or("sliding_window", Some(4096))?;
    let max_window_layers: usize = fields.or("max_window_layers", 28)?;
    let width = window.map_or("no width".to_string(), |width| format!("width {width}"));
    if require_full_layers(fields, layers, &format!(", {width}"))? {
        return Ok(());
    }
    let windowed = is_used && window.is_some() && max_window_layers < layers;
    let found = format!("true, {width} from layer {max_window_layers} on");
    at.require(!windowed, "use_sliding_window", found, expected())
}

/// Whether `layer_types` says that all layers look at everything; `width` is that of a window, for messages.
///
/// # Errors
/// Another type of a layer; types for another number of layers.
pub(super) fn require_full_layers(fields: &Fields<'_>, layers: usize, width: &str) -> Result<bool> {
    let at = &fields.at;
    let Some(types) = fields.get::<Vec<String>>("layer_types")? else { return Ok(false) };
    let found = format!("{} layers", types.len());
    at.check(types.len() == layers, "layer_types", found, format!("num_hidden_layers {layers}"))?;
    let other = types.iter().find(|kind| ![FULL, SLIDING].contains(&kind.as_str()));
    at.check(other.is_none(), "layer_types", other.map_or("", String::as_str), FULL)?;
    let sliding = types.iter().position(|kind| kind == SLIDING);
    let found = format!("{SLIDING} in layer {}{width}", sliding.unwrap_or_default());
    at.require(sliding.is_none(), "layer_types", found, expected())?;
    Ok(true)
}
