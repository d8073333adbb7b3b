"""read_gguf.py MODEL_DIR GGUF_DIR: compares every tensor of the two files with the model's safetensors, through the gguf package.

Prints JSON: tensors compared, names that gguf's own table has otherwise, metadata that matters.
"""
import json
import pathlib
import sys

import gguf
import numpy as np
from safetensors.numpy import load_file

model, folder = map(pathlib.Path, sys.argv[1:3])
config = json.loads((model / "config.json").read_text())
weights = load_file(model / "model.safetensors")
layers = config["text_config"]["num_hidden_layers"]
computed = config["vision_config"]["num_hidden_layers"] + 1 + config["vision_feature_layer"]
text_map = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, layers)
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


found, fields = {}, {}
for file in sorted(folder.glob("*.gguf")):
    reader = gguf.GGUFReader(file)
    fields[file.name] = {key: field.contents() for key, field in reader.fields.items()}
    for tensor in reader.tensors:
        # gguf gives the data in numpy's order of dimensions already.
        found[tensor.name] = tensor.data
expected = {expected_name(name): values for name, values in weights.items() if expected_name(name)}
different = []
for name, values in expected.items():
    data = found.get(name)
    if data is None or data.shape != values.shape or not np.array_equal(data, values.astype(data.dtype)):
        different.append(name)
language_model = fields["model-f16.gguf"]
json.dump(
    {
        "compared": len(expected),
        "different": different,
        "unexpected": sorted(set(found) - set(expected)),
        "formats": sorted({str(data.dtype) for data in found.values()}),
        "tokens": len(language_model["tokenizer.ggml.tokens"]),
        "eos": language_model["tokenizer.ggml.tokens"][language_model["tokenizer.ggml.eos_token_id"]],
        "image": language_model["tokenizer.ggml.tokens"][config["image_token_index"]],
        "rope": language_model["qwen2.rope.freq_base"],
        "clip": {key: value for key, value in fields["mmproj-model-f16.gguf"].items() if key.startswith("clip.")},
    },
    sys.stdout,
)
