"""Records what bitsandbytes makes of matrices, and a LLaVA that transformers has saved in 4 bits, for tests/tests/nf4.rs.

    pip install --no-deps bitsandbytes==0.50.2
    python tests/data/nf4/make.py          # with torch and transformers of tests/requirements.txt
"""
import tempfile
from pathlib import Path

import torch
from bitsandbytes import functional
from bitsandbytes.backends.default.ops import _dequantize_4bit_compute
from bitsandbytes.nn import Linear4bit
from safetensors.torch import save_file
from transformers import (BitsAndBytesConfig, CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration, Qwen2Config)

HERE = Path(__file__).parent
# Names of modules are compared from the start, or by their ends.
SKIPPED = ["lm_head", "multi_modal_projector", "vision_tower", "model.multi_modal_projector", "model.vision_tower"]


def values_of(codes, state):
    """The values that codes stand for, by bitsandbytes' definition for all devices. Its AVX-512 kernel for CPUs (0.50.2) takes
    wrong magnitudes where rows are not whole blocks, so it is only held against the definition where they are."""
    absmax = state.absmax
    if state.nested:
        absmax = functional.dequantize_blockwise(absmax, state.state2) + state.offset
    flat = codes.reshape(-1)
    values = _dequantize_4bit_compute.__wrapped__(flat, absmax, state.code, state.blocksize, state.shape, state.dtype)
    if state.shape[-1] % state.blocksize == 0:
        assert torch.equal(values, functional.dequantize_4bit(codes, state)), state.shape
    return values


def matrices():
    """Matrices, their codes with and without double quantization, and the values that bitsandbytes gives back."""
    torch.manual_seed(1)
    outlier = torch.ones(4, 64)
    outlier[2, 5] = -40.0
    sources = {
        "normal": torch.randn(131, 130) * 0.02, "odd": torch.randn(3, 33), "zeros": torch.zeros(2, 64),
        "outlier": outlier, "whole": torch.randn(20, 128), "single": torch.full((1, 1), -0.7), "half": (torch.randn(20, 96) * 0.1).bfloat16(),
    }
    tensors = {}
    for name, source in sources.items():
        tensors[f"{name}.source"] = source.float()
        for nested in (False, True):
            codes, state = functional.quantize_4bit(source, blocksize=64, compress_statistics=nested, quant_type="nf4")
            weight = f"{name}.{'nested' if nested else 'plain'}.weight"
            tensors[weight] = codes
            tensors |= {f"{weight}.{key}": value.clone() for key, value in state.as_dict(packed=True).items()}
            tensors[f"{weight[:-7]}.values"] = values_of(codes, state).float()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, HERE / "matrices.safetensors")


def llava():
    """A tiny LLaVA as `save_pretrained` writes it with `load_in_4bit`, and its logits by plain f32 products."""
    torch.manual_seed(2)
    vision = CLIPVisionConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=28,
                              patch_size=14, projection_dim=16)
    text = Qwen2Config(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                       vocab_size=64, max_position_embeddings=128, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2,
                       use_sliding_window=False)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=60, image_seq_length=4, pad_token_id=0,
                         vision_feature_layer=-2, vision_feature_select_strategy="default")
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                      llm_int8_skip_modules=SKIPPED)
    model = LlavaForConditionalGeneration(config).float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.02)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        rounded = LlavaForConditionalGeneration.from_pretrained(folder, quantization_config=quantization, device_map="cpu",
                                                                dtype=torch.float32)
    rounded.save_pretrained(HERE / "llava")
    (HERE / "llava" / "generation_config.json").unlink(missing_ok=True)
    # The same model with the codes' values as plain weights: bitsandbytes' own products may be in bf16 on some CPUs.
    plain = dict(model.named_modules())
    count = 0
    for name, module in rounded.named_modules():
        if isinstance(module, Linear4bit):
            plain[name].weight.data = values_of(module.weight.data, module.weight.quant_state).float()
            count += 1
    assert count == 14, count
    input_ids = torch.tensor([[1, 60, 60, 60, 60, 5, 9, 33, 12, 50, 7, 21, 3, 4, 8, 2]])
    pixel_values = torch.randn(1, 3, 28, 28)
    labels = input_ids.clone()
    labels[:, :9] = -100
    output = model.eval()(input_ids=input_ids, pixel_values=pixel_values, labels=labels)
    output.loss.backward()
    projector = model.model.multi_modal_projector.linear_1.weight.grad
    save_file({
        "input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "labels": labels, "pixel_values": pixel_values,
        "logits": output.logits[0].detach().contiguous(), "loss": output.loss.detach().reshape(1), "projector_grad": projector,
    }, HERE / "forward.safetensors")


matrices()
llava()
