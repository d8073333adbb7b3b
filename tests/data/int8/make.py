"""Records a LLaVA that transformers has saved with `load_in_8bit`, and its logits by plain f32 products, for tests/tests/int8.rs.

    pip install --no-deps bitsandbytes==0.50.2
    python tests/data/int8/make.py          # with torch and transformers of tests/requirements.txt
"""
import tempfile
from pathlib import Path

import torch
from bitsandbytes import functional
from bitsandbytes.nn import Linear8bitLt
from safetensors.torch import save_file
from transformers import (BitsAndBytesConfig, CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration, Qwen2Config)

HERE = Path(__file__).parent
# Names of modules are compared from the start, or by their ends.
SKIPPED = ["lm_head", "multi_modal_projector", "vision_tower", "model.multi_modal_projector", "model.vision_tower"]

torch.manual_seed(3)
vision = CLIPVisionConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14,
                          projection_dim=16)
text = Qwen2Config(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=64,
                   max_position_embeddings=128, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2, use_sliding_window=False)
config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=60, image_seq_length=4, pad_token_id=0,
                     vision_feature_layer=-2, vision_feature_select_strategy="default")
model = LlavaForConditionalGeneration(config).float()
with torch.no_grad():
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.normal_(0, 0.02)
with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    rounded = LlavaForConditionalGeneration.from_pretrained(
        folder, quantization_config=BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=SKIPPED), device_map="cpu",
        dtype=torch.float32)
rounded.save_pretrained(HERE / "llava")
(HERE / "llava" / "generation_config.json").unlink(missing_ok=True)
# The same model with the codes' values as plain weights: bitsandbytes' own products round the activations, too.
plain, tensors = dict(model.named_modules()), {}
for name, module in rounded.named_modules():
    if isinstance(module, Linear8bitLt):
        scb = module.weight.SCB if module.weight.SCB is not None else module.state.SCB
        values = functional.int8_vectorwise_dequant(module.weight.data, scb).float()
        plain[name].weight.data = values
        tensors[f"values.{name}"] = values
assert len(tensors) == 14, len(tensors)
input_ids = torch.tensor([[1, 60, 60, 60, 60, 5, 9, 33, 12, 50, 7, 21, 3, 4, 8, 2]])
pixel_values = torch.randn(1, 3, 28, 28)
labels = input_ids.clone()
labels[:, :9] = -100
output = model.eval()(input_ids=input_ids, pixel_values=pixel_values, labels=labels)
tensors |= {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "labels": labels, "pixel_values": pixel_values,
            "logits": output.logits[0].detach(), "loss": output.loss.detach().reshape(1)}
save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, HERE / "forward.safetensors")
