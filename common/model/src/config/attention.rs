//! Which tokens a layer of Qwen2 looks at: all before it, or a window of them, which is not implemented.

use super::raw::RawText;
use super::read::At;
use base::Result;

const FULL: &str = "full_attention";
const SLIDING: &str = "sliding_attention";

/// Refuses layers that look at a window, however wide: a sequence may be longer than the model was made for.
///
/// # Source
/// transformers 5.24, `configuration_qwen2.py`: `layer_types` wins over `max_window_layers`; without `use_sliding_window` or
/// without a width there is no window.
pub(super) fn require_full_attention(raw: &RawText, at: &At) -> Result<()> {
    let RawText { num_hidden_layers: layers, max_window_layers, .. } = *raw;
    if let Some(types) = &raw.layer_types {
        let found = format!("{} layers", types.len());
        at.check(types.len() == layers, "layer_types", found, format!("num_hidden_layers {layers}"))?;
        let other = types.iter().find(|kind| ![FULL, SLIDING].contains(&kind.as_str()));
        at.check(other.is_none(), "layer_types", other.map_or("", String::as_str), FULL)?;
    }
    let expected = format!("{FULL} everywhere: windowed attention is not implemented");
    let width = raw.sliding_window.map_or("no width".to_string(), |width| format!("width {width}"));
    match &raw.layer_types {
        Some(types) => {
            let sliding = types.iter().position(|kind| kind == SLIDING);
            let found = format!("{SLIDING} in layer {}, {width}", sliding.unwrap_or_default());
            at.check(sliding.is_none(), "layer_types", found, expected)
        }
        None => {
            let windowed = raw.use_sliding_window && raw.sliding_window.is_some() && max_window_layers < layers;
            let found = format!("true, {width} from layer {max_window_layers} on");
            at.check(!windowed, "use_sliding_window", found, expected)
        }
    }
}
