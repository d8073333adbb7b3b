//! Fields of `adapter_config.json`.
//!
//! # Source
//! peft 0.4 to 0.21, `config.py` and `tuners/lora/config.py`.

use base::fields::Rule::{Harmless, Only, Read};
use base::fields::{Row, empty, off};

const VARIANT: &str = "a variant of LoRA that is not implemented";

/// `LoraConfig`.
pub const LORA: &[Row] = &[
    ("peft_type", Only(&["\"LORA\""], "adapters of other kinds are not implemented")),
    ("r", Read),
    ("lora_alpha", Read),
    ("lora_dropout", Read),
    ("target_modules", Read),
    ("exclude_modules", Read),
    ("layers_to_transform", Read),
    ("layers_pattern", Read),
    ("modules_to_save", Read),
    ("ensure_weight_tying", Read),
    ("init_lora_weights", Read),
    // Where it comes from, and what for.
    ("task_type", Harmless),
    ("auto_mapping", Harmless),
    ("peft_version", Harmless),
    ("base_model_name_or_path", Harmless),
    ("revision", Harmless),
    ("inference_mode", Harmless),
    ("runtime_config", Harmless),
    // Settings of initialisations; which one it was is `init_lora_weights`.
    ("loftq_config", Harmless),
    ("eva_config", Harmless),
    ("corda_config", Harmless),
    ("lora_ga_config", Harmless),
    // Without effect unless their method is asked for, by the fields below.
    ("megatron_core", Harmless),
    ("qalora_group_size", Harmless),
    ("merge_weights", off("weights are merged by the program's own command")),
    ("enable_lora", Only(&[], VARIANT)),
    ("bias", Only(&["\"none\""], "biases beside LoRA are not implemented")),
    ("lora_bias", off("a bias of lora_B is not implemented")),
    ("use_dora", Read),
    ("use_rslora", Read),
    ("rank_pattern", Read),
    ("alpha_pattern", Read),
    ("fan_in_fan_out", off("the layers hold weights as [out, in]")),
    ("layer_replication", empty("layers that stand several times are not implemented")),
    ("trainable_token_indices", empty("single rows of the embedding are not implemented")),
    ("target_parameters", empty("LoRA on parameters that are no layers is not implemented")),
    ("megatron_config", Only(&[], VARIANT)),
    ("use_qalora", off(VARIANT)),
    ("use_bdlora", Only(&["false"], VARIANT)),
    ("alora_invocation_tokens", empty(VARIANT)),
    ("arrow_config", Only(&[], VARIANT)),
    ("monteclora_config", Only(&[], VARIANT)),
    ("kasa_config", Only(&[], VARIANT)),
    ("velora_config", Only(&[], VARIANT)),
];
