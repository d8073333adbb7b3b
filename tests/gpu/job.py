#!/usr/bin/env python3
"""The real job without its downloads: a LLaVA of CLIP-L/336 and Qwen1.5-4B with random weights in bf16, and pictures with captions
whose rows are 620 tokens long. Needs Python alone; weights are written as they are made.

    python job.py OUT [--text-layers 40] [--vision-layers 24] [--rows 64] [--tiny] [--zeros]

OUT gets `model/` and `data/` (the layout of LLaVA-CC3M-Pretrain-595K). The tower computes all of its layers but the last.
"""
import argparse
import array
import json
import pathlib
import random
import struct
import zlib

HERE = pathlib.Path(__file__).resolve().parent
# tests/configs, or packed beside this script.
CONFIGS = next(folder for folder in (HERE / "configs", HERE.parent / "configs") if folder.exists())
VISION = json.loads((CONFIGS / "clip-vit-large-patch14-336/config.json").read_text())["vision_config"]
TEXT = json.loads((CONFIGS / "qwen1.5-4b-chat/config.json").read_text())
TINY = (dict(hidden_size=128, intermediate_size=256, num_attention_heads=2, image_size=56, projection_dim=32),
        dict(hidden_size=128, intermediate_size=256, num_attention_heads=2, num_key_value_heads=2, vocab_size=512))
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"]
END = "<|im_end|>"
ROW_TOKENS = 620
ANSWER_BYTES = 12


def tensors(vision, text):
    """Name, shape and kind of every tensor, in the published names."""
    d, f = vision["hidden_size"], vision["intermediate_size"]
    tower, patch = "vision_tower.vision_model", vision["patch_size"]
    yield f"{tower}.embeddings.class_embedding", (d,), "random"
    yield f"{tower}.embeddings.patch_embedding.weight", (d, 3, patch, patch), "random"
    yield f"{tower}.embeddings.position_embedding.weight", ((vision["image_size"] // patch) ** 2 + 1, d), "random"
    for norm in ("pre_layrnorm", "post_layernorm"):
        yield f"{tower}.{norm}.weight", (d,), "ones"
        yield f"{tower}.{norm}.bias", (d,), "zeros"
    for layer in range(vision["num_hidden_layers"]):
        at = f"{tower}.encoder.layers.{layer}"
        for name, out, inputs in ([(f"self_attn.{p}", d, d) for p in ("q_proj", "k_proj", "v_proj", "out_proj")]
                                  + [("mlp.fc1", f, d), ("mlp.fc2", d, f)]):
            yield f"{at}.{name}.weight", (out, inputs), "random"
            yield f"{at}.{name}.bias", (out,), "zeros"
        for norm in ("layer_norm1", "layer_norm2"):
            yield f"{at}.{norm}.weight", (d,), "ones"
            yield f"{at}.{norm}.bias", (d,), "zeros"
    width, inner = text["hidden_size"], text["intermediate_size"]
    for name, inputs in (("linear_1", d), ("linear_2", width)):
        yield f"multi_modal_projector.{name}.weight", (width, inputs), "random"
        yield f"multi_modal_projector.{name}.bias", (width,), "zeros"
    yield "language_model.model.embed_tokens.weight", (text["vocab_size"], width), "random"
    kv = width // text["num_attention_heads"] * text["num_key_value_heads"]
    for layer in range(text["num_hidden_layers"]):
        at = f"language_model.model.layers.{layer}"
        for name, out in (("q_proj", width), ("k_proj", kv), ("v_proj", kv)):
            yield f"{at}.self_attn.{name}.weight", (out, width), "random"
            yield f"{at}.self_attn.{name}.bias", (out,), "zeros"
        yield f"{at}.self_attn.o_proj.weight", (width, width), "random"
        for name, out, inputs in (("gate_proj", inner, width), ("up_proj", inner, width), ("down_proj", width, inner)):
            yield f"{at}.mlp.{name}.weight", (out, inputs), "random"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{at}.{norm}.weight", (width,), "ones"
    yield "language_model.model.norm.weight", (width,), "ones"
    yield "language_model.lm_head.weight", (text["vocab_size"], width), "random"


class Values:
    """bf16 values of a normal distribution (0.02): a block that is repeated, of a prime length so that no two rows are equal."""

    def __init__(self, seed):
        rng = random.Random(seed)
        normal = (struct.unpack("<I", struct.pack("<f", rng.gauss(0, 0.02)))[0] >> 16 for _ in range(1048573))
        self.block = array.array("H", normal).tobytes()
        self.at = 0

    def write(self, file, count):
        left = 2 * count
        while left:
            part = self.block[self.at:self.at + left]
            file.write(part)
            left -= len(part)
            self.at = (self.at + len(part)) % len(self.block)


def write_weights(path, vision, text, zeros):
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, shape, _ in tensors(vision, text):
        count = 1
        for size in shape:
            count *= size
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + 2 * count]}
        offset += 2 * count
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    if zeros:
        with open(path, "wb") as file:
            file.write(struct.pack("<Q", len(encoded)) + encoded)
            file.truncate(8 + len(encoded) + offset)
        return offset // 2
    values = Values(0)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for name, _, kind in tensors(vision, text):
            first, end = header[name]["data_offsets"]
            if kind == "random":
                values.write(file, (end - first) // 2)
            else:
                file.write((b"\x80\x3f" if kind == "ones" else b"\0\0") * ((end - first) // 2))
    return offset // 2


def byte_characters():
    """The characters that byte-level tokenizers write bytes as."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def write_processors(model, vision):
    """A tokenizer with a token for each byte, and CLIP's image processor."""
    vocabulary = {character: id for id, character in enumerate(byte_characters())}
    added = [{"id": 256 + i, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
              "special": True} for i, token in enumerate(SPECIAL)]
    by_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    put(model / "tokenizer.json", {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None, "pre_tokenizer": by_bytes,
        "post_processor": None, "decoder": by_bytes,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": False, "byte_fallback": False, "vocab": vocabulary, "merges": []}})
    put(model / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "pad_token": SPECIAL[0], "clean_up_tokenization_spaces": False,
        "additional_special_tokens": ["<image>"],
        "chat_template": "{% for message in messages %}{{ message['content'] + '" + END + "' }}{% endfor %}"})
    put(model / "preprocessor_config.json", {
        "image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": {"shortest_edge": vision["image_size"]}, "resample": 3,
        "do_center_crop": True, "crop_size": {"height": vision["image_size"], "width": vision["image_size"]}, "do_convert_rgb": True,
        "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]})


def write_model(model, vision, text, zeros):
    model.mkdir(parents=True, exist_ok=True)
    end, pad, image = 256 + SPECIAL.index(END), 256, 256 + SPECIAL.index("<image>")
    put(model / "config.json", {
        "architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", "image_token_index": image, "pad_token_id": pad,
        "projector_hidden_act": "gelu", "multimodal_projector_bias": True, "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default", "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "vision_config": vision, "text_config": {**text, "bos_token_id": pad, "eos_token_id": end, "torch_dtype": "bfloat16"}})
    put(model / "generation_config.json", {"eos_token_id": end, "pad_token_id": pad, "do_sample": False})
    write_processors(model, vision)
    return write_weights(model / "model.safetensors", vision, text, zeros)


def picture(path, side, seed):
    rng = random.Random(seed)
    colours = [bytes(rng.randrange(256) for _ in range(3)) for _ in range(16)]
    rows = [b"\0" + b"".join(colours[y // 32 * 4 % 16 + x * 4 // side % 4] for x in range(side)) for y in range(side)]

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"".join(rows), 1)) + chunk(b"IEND", b""))


def write_data(data, vision, rows):
    images = data / "images"
    images.mkdir(parents=True, exist_ok=True)
    rng, written = random.Random(1), []
    system = len("You are a helpful assistant.") + 1
    # A byte is a token, and each turn ends with a special one. What is left for the question beside CLIP-L/336's features:
    question = ROW_TOKENS - 576 - system - 1 - ANSWER_BYTES - 1
    for row in range(rows):
        name = f"{row:06}.png"
        picture(images / name, vision["image_size"], row)
        words = "".join(rng.choice("abcdefghij klmnop") for _ in range(question))
        answer = "".join(rng.choice("abcdefghijklmnop") for _ in range(ANSWER_BYTES))
        turns = [{"from": "human", "value": "<image>" + words}, {"from": "gpt", "value": answer}]
        written.append({"id": f"{row:06}", "image": name, "conversations": turns})
    put(data / "chat.json", written)


def put(path, value):
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--text-layers", type=int, default=TEXT["num_hidden_layers"])
    parser.add_argument("--vision-layers", type=int, default=VISION["num_hidden_layers"])
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--tiny", action="store_true", help="widths of 128 and pictures of 56 pixels")
    parser.add_argument("--zeros", action="store_true", help="all weights 0, in a file that takes no space on most disks")
    args = parser.parse_args()
    vision, text = dict(VISION, num_hidden_layers=args.vision_layers), dict(TEXT, num_hidden_layers=args.text_layers)
    if args.tiny:
        vision.update(TINY[0])
        text.update(TINY[1])
    count = write_model(args.out / "model", vision, text, args.zeros)
    write_data(args.out / "data", vision, args.rows)
    print(f"{args.out}: {count / 1e9:.2f} billion values, {args.rows} rows")


main()
