"""read_gguf.py MODEL_DIR GGUF_DIR: compares every tensor of the two files with the model's safetensors, through the gguf package.

Prints JSON: tensors compared, names that gguf's own table has otherwise, metadata that matters. Quantised tensors are compared, byte
for byte, with what ggml's own quantiser (in xllamacpp) makes of the same values.
"""
import ctypes
import json
import pathlib
import sys

import gguf
import numpy as np
from safetensors.numpy import load_file
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

model, folder = map(pathlib.Path, sys.argv[1:3])
config = json.loads((model / "config.json").read_text())
# With the defaults of fields that the file does not have.
whole = AutoConfig.from_pretrained(model)
text, vision = whole.text_config, whole.vision_config
weights = {}
for file in sorted(model.glob("*.safetensors")):
    weights |= load_file(file)
selected = config["vision_feature_layer"]
selected = [layer % (vision.num_hidden_layers + 1) for layer in (selected if isinstance(selected, list) else [selected])]
computed = max(selected)
architecture = gguf.MODEL_ARCH[text.model_type.upper()]
text_map = gguf.get_tensor_name_map(architecture, text.num_hidden_layers)
vision_map = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, computed)


def expected_name(name):
    """llama.cpp's name by gguf's table; the projector as clip.cpp numbers a LLaVA's."""
    stem, _, kind = name.rpartition(".")
    if name.startswith("language_model."):
        return f"{text_map.get_name(stem.removeprefix('language_model.'))}.{kind}"
    if name.startswith("multi_modal_projector."):
        return f"mm.{2 * (int(stem[-1]) - 1)}.{kind}"
    if "post_layernorm" in name or (".layers." in name and int(name.split(".layers.")[1].split(".")[0]) >= computed):
        return None
    if name.endswith("class_embedding"):
        return vision_map.get_name(name)
    return f"{vision_map.get_name(stem)}.{kind}"


def expected_values(name, values):
    """Rearranged as convert_hf_to_gguf.py's LlamaModel.permute does, and features of several layers from the first layer on."""
    heads = {"q_proj": text.num_attention_heads, "k_proj": text.num_key_value_heads}
    if text.model_type == "llama" and name.startswith("language_model.") and name.split(".")[-2] in heads:
        count = heads[name.split(".")[-2]]
        halves = values.reshape(count, 2, values.shape[0] // count // 2, *values.shape[1:])
        return halves.swapaxes(1, 2).reshape(values.shape)
    if name == "multi_modal_projector.linear_1.weight":
        blocks = np.split(values, len(selected), axis=1)
        return np.concatenate([block for _, block in sorted(zip(selected, blocks), key=lambda pair: pair[0])], axis=1)
    return values


def quantized(values, kind):
    """The bytes that ggml stores."""
    import xllamacpp

    library = ctypes.CDLL(str(next(pathlib.Path(xllamacpp.__file__).parent.glob("*.so"))))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    values = np.ascontiguousarray(values, np.float32)
    rows, width = values.shape
    output = np.zeros((rows, width // block * size), np.uint8)
    written = library.ggml_quantize_chunk(int(kind), values.ctypes.data, output.ctypes.data, 0, rows, width, None)
    assert written == output.size
    return output


found, fields, kinds = {}, {}, {}
for file in sorted(folder.glob("*.gguf")):
    reader = gguf.GGUFReader(file)
    fields[file.name] = {key: field.contents() for key, field in reader.fields.items()}
    for tensor in reader.tensors:
        # gguf gives the data in numpy's order of dimensions already.
        found[tensor.name] = tensor.data
        kinds[tensor.name] = tensor.tensor_type
expected = {expected_name(name): expected_values(name, values) for name, values in weights.items() if expected_name(name)}
rope = text.rope_parameters
different = []
if rope["rope_type"] == "llama3":
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](text, "cpu")
    width = text.head_dim
    plain = 1.0 / rope["rope_theta"] ** (np.arange(0, width, 2, dtype=np.float32) / width)
    divisors = found.pop("rope_freqs.weight", None)
    if divisors is None or not np.allclose(divisors, plain / scaled.numpy(), rtol=1e-6):
        different.append("rope_freqs.weight")
for name, values in expected.items():
    data, kind = found.get(name), kinds.get(name)
    if kind is not None and kind.name.startswith("Q"):
        values = quantized(values, kind)
    if data is None or data.shape != values.shape or not np.array_equal(data, values.astype(data.dtype)):
        different.append(name)
(language_model,) = [content for name, content in fields.items() if name.startswith("model-")]
as_stored = lambda value: float(np.float32(value)) if isinstance(value, float) else value
metadata = lambda key: language_model.get(f"{text.model_type}.{key}")
numbers = {
    "block_count": text.num_hidden_layers,
    "context_length": text.max_position_embeddings,
    "embedding_length": text.hidden_size,
    "feed_forward_length": text.intermediate_size,
    "attention.head_count": text.num_attention_heads,
    "attention.head_count_kv": text.num_key_value_heads,
    "attention.key_length": getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
    "attention.layer_norm_rms_epsilon": text.rms_norm_eps,
    "rope.freq_base": rope["rope_theta"],
    "rope.scaling.factor": rope["factor"] if rope["rope_type"] == "linear" else None,
    "vocab_size": text.vocab_size,
}
json.dump(
    {
        "architecture": language_model["general.architecture"],
        "compared": len(expected),
        "different": different,
        "unexpected": sorted(set(found) - set(expected)),
        "file_type": language_model["general.file_type"],
        "types": {name: kind.name for name, kind in kinds.items()},
        "formats": sorted({str(data.dtype) for data in found.values()}),
        "other_numbers": [key for key, value in numbers.items() if metadata(key) != as_stored(value)],
        "tokens": len(language_model["tokenizer.ggml.tokens"]),
        "eos": language_model["tokenizer.ggml.tokens"][language_model["tokenizer.ggml.eos_token_id"]],
        "image": language_model["tokenizer.ggml.tokens"][config["image_token_index"]],
        "rope": metadata("rope.freq_base"),
        "clip": {key: value for key, value in fields["mmproj-model-f16.gguf"].items() if key.startswith("clip.")},
    },
    sys.stdout,
)
