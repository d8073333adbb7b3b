"""Adapters as PEFT makes and loads them, on LLaVAs that this script makes.

peft_adapters.py make FOLDER            models (untied, tied), adapters of many kinds, batch.safetensors; prints the losses
peft_adapters.py losses FOLDER DIR...   prints the losses of adapters in other folders, each beside a file BASE
"""

import json
import sys
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration, Qwen2Config

warnings.filterwarnings("ignore")
IMAGE = 60
TEXT_QV = r".*language_model.*\.(q_proj|v_proj)"
# name: (base model, LoraConfig's arguments)
ADAPTERS = {
    "list_of_names": ("untied", dict(target_modules=["q_proj", "v_proj"])),
    "all_linear": ("untied", dict(target_modules="all-linear")),
    "one_layer": ("untied", dict(target_modules=["q_proj", "down_proj"], layers_to_transform=[1], layers_pattern="layers")),
    "tower_alone": ("untied", dict(target_modules=["q_proj", "fc1", "out_proj"], exclude_modules=".*language_model.*")),
    "projector_and_head": ("untied", dict(target_modules=["linear_1", "lm_head", "o_proj"])),
    "lookahead": ("untied", dict(target_modules=r"^(?!.*(vision_tower|projector)).*(?:k_proj|up_proj).*")),
    "saved_norms": ("untied", dict(target_modules=TEXT_QV, modules_to_save=["norm", "embed_tokens"])),
    "saved_head": ("untied", dict(target_modules=TEXT_QV, modules_to_save=["lm_head", "multi_modal_projector"])),
    "saved_tower": ("untied", dict(target_modules=TEXT_QV, modules_to_save=["vision_tower"])),
    "rank_stabilised": ("untied", dict(target_modules=TEXT_QV, use_rslora=True)),
    "dora": ("untied", dict(target_modules="all-linear", use_dora=True)),
    "tied_head_with_dora": ("tied", dict(target_modules=["lm_head", "q_proj"], use_dora=True, use_rslora=True)),
    "patterns": ("untied", dict(
        target_modules=["q_proj", "fc1", "lm_head"], use_dora=True, use_rslora=True, lora_alpha=5,
        rank_pattern={"layers.1.self_attn.q_proj": 3, "q_proj|lm_head": 4, "^fc1": 9}, alpha_pattern={"fc1": 2.5, ".*1.self_attn.*": 11},
    )),
    "orthogonal": ("untied", dict(target_modules=TEXT_QV, init_lora_weights="orthogonal")),
    "tied_embedding": ("tied", dict(target_modules=TEXT_QV, modules_to_save=["embed_tokens"])),
    "tied_both": ("tied", dict(target_modules=TEXT_QV, modules_to_save=["embed_tokens", "lm_head"])),
    "tied_together": ("tied", dict(target_modules=TEXT_QV, modules_to_save=["embed_tokens"], ensure_weight_tying=True)),
    "tied_head_with_lora": ("tied", dict(target_modules=["lm_head", "k_proj"])),
}


def llava(tied):
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, image_size=28, patch_size=14,
        projection_dim=16,
    )
    text = Qwen2Config(
        hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=64, max_position_embeddings=128, tie_word_embeddings=tied, eos_token_id=[3, 4],
    )
    torch.manual_seed(5)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE, tie_word_embeddings=tied)
    model = LlavaForConditionalGeneration(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def batch():
    torch.manual_seed(6)
    words = torch.randint(0, IMAGE, (2, 9))
    images = torch.full((2, 4), IMAGE)
    input_ids = torch.cat([words[:, :2], images, words[:, 2:]], 1)
    labels = input_ids.clone()
    labels[:, :6] = -100
    return {
        "input_ids": input_ids, "labels": labels, "attention_mask": torch.ones_like(input_ids),
        "pixel_values": torch.randn(2, 3, 28, 28),
    }


def make(folder):
    for name, tied in (("untied", False), ("tied", True)):
        llava(tied).save_pretrained(folder / name)
    save_file(batch(), folder / "batch.safetensors")
    for name, (base, arguments) in ADAPTERS.items():
        torch.manual_seed(7)
        arguments = {"r": 2, "lora_alpha": 6, **arguments}
        model = get_peft_model(LlavaForConditionalGeneration.from_pretrained(folder / base), LoraConfig(**arguments))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.2 * torch.randn_like(parameter)
        model.save_pretrained(folder / name)
        (folder / name / "BASE").write_text(str(folder / base))
    # As PEFT saved them before version 0.6.
    pickled = folder / "pickled"
    pickled.mkdir()
    for file in ("adapter_config.json", "BASE"):
        (pickled / file).write_text((folder / "list_of_names" / file).read_text())
    torch.save(load_file(folder / "list_of_names" / "adapter_model.safetensors"), pickled / "adapter_model.bin")
    return [folder / name for name in (*ADAPTERS, "pickled")]


@torch.no_grad()
def loss(adapter, tensors):
    base = LlavaForConditionalGeneration.from_pretrained((adapter / "BASE").read_text(), dtype=torch.float32)
    model = PeftModel.from_pretrained(base, adapter).eval()
    logits = model(**{key: tensors[key] for key in ("input_ids", "attention_mask", "pixel_values")}).logits
    wanted = tensors["labels"][:, 1:]
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), wanted.flatten(), reduction="sum").item()


def main():
    command, folder = sys.argv[1], Path(sys.argv[2])
    adapters = make(folder) if command == "make" else [Path(path) for path in sys.argv[3:]]
    tensors = load_file(folder / "batch.safetensors")
    print(json.dumps({str(adapter): loss(adapter, tensors) for adapter in adapters}))


main()
