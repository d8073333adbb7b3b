"""Reference values from transformers for shapes of LLaVA that the stored fixtures do not have.

    python variants.py OUT_DIR

OUT_DIR gets a folder for each variant: config.json and model.safetensors (published names), and forward.safetensors: one
left-padded batch of two rows with its supervised logits, loss, and grad.<name> of every parameter.
"""
import pathlib
import sys

import torch
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration, Qwen2Config

IMAGE, PAD, IGNORE_INDEX = 95, 0, -100
VISION = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, image_size=28, patch_size=14,
              projection_dim=16)
TEXT = dict(hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            vocab_size=96, max_position_embeddings=256, pad_token_id=None, bos_token_id=None, eos_token_id=1)
VARIANTS = {
    "grouped_tied_full": dict(
        vision=dict(VISION, hidden_act="gelu"), text=dict(TEXT, rope_theta=10000.0, tie_word_embeddings=True),
        llava=dict(vision_feature_layer=[-2, 0], vision_feature_select_strategy="full", multimodal_projector_bias=False,
                   image_seq_length=5)),
    "one_kv_head_list": dict(
        vision=dict(VISION, hidden_act="quick_gelu"),
        text=dict(TEXT, num_key_value_heads=1, rope_theta=1000000.0, rms_norm_eps=1e-5, tie_word_embeddings=False),
        llava=dict(vision_feature_layer=[1, -1], vision_feature_select_strategy="default", image_seq_length=4)),
}


def canonical(name):
    """The published name of a parameter of this transformers version's module tree."""
    if name == "lm_head.weight":
        return "language_model.lm_head.weight"
    name = name.removeprefix("model.")
    if name.startswith("vision_tower.") and not name.startswith("vision_tower.vision_model."):
        return name.replace("vision_tower.", "vision_tower.vision_model.", 1)
    if name.startswith("language_model."):
        return name.replace("language_model.", "language_model.model.", 1)
    return name


def write(spec, out):
    out.mkdir(parents=True)
    torch.manual_seed(3)
    config = LlavaConfig(vision_config=CLIPVisionConfig(**spec["vision"]), text_config=Qwen2Config(**spec["text"]),
                         image_token_index=IMAGE, tie_word_embeddings=spec["text"]["tie_word_embeddings"], **spec["llava"])
    model = LlavaForConditionalGeneration(config).eval()
    for p in model.parameters():  # away from the all-ones and zeros of a fresh model
        torch.nn.init.normal_(p, mean=1.0 if p.ndim == 1 and p.abs().sum() == p.numel() else 0.0, std=0.08)
    config.save_pretrained(out)
    save_file({canonical(n): p.detach().clone() for n, p in model.named_parameters()}, out / "model.safetensors",
              metadata={"format": "pt"})

    features = spec["llava"]["image_seq_length"]
    rows = [[5, 6] + [IMAGE] * features + [7, 8, 9, 10, 11], [IMAGE] * features + [12, 13, 14]]
    supervised = [4, 2]
    width = max(len(r) for r in rows)
    left = lambda r, value: [value] * (width - len(r)) + r
    batch = dict(
        input_ids=torch.tensor([left(r, PAD) for r in rows]),
        attention_mask=torch.tensor([left([1] * len(r), 0) for r in rows]),
        labels=torch.tensor([left([IGNORE_INDEX] * (len(r) - s) + r[len(r) - s:], IGNORE_INDEX)
                             for r, s in zip(rows, supervised)]),
        pixel_values=torch.randn(2, 3, 28, 28))
    result = model(**batch)
    result.loss.backward()
    shifted = torch.cat([batch["labels"][:, 1:], torch.full((2, 1), IGNORE_INDEX)], 1)
    save_file({**{k: v.contiguous() for k, v in batch.items()},
               "supervised_logits": result.logits[shifted != IGNORE_INDEX].detach().contiguous(),
               "loss": result.loss.detach().reshape(1),
               **{"grad." + canonical(n): p.grad.contiguous() for n, p in model.named_parameters() if p.grad is not None}},
              out / "forward.safetensors")


if __name__ == "__main__":
    for name, spec in VARIANTS.items():
        write(spec, pathlib.Path(sys.argv[1]) / name)
