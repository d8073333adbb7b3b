#!/usr/bin/env python3
"""A tiny model in the files of llava-hf/llava-1.5-7b-hf, and transformers' values: python make_published_llava.py DATA_DIR OUT_DIR

OUT_DIR/model: config.json with the published fields and no others (a Vicuna's defaults are transformers'), float16 weights in two
parts under the published names, a tokenizer.json that was made from SentencePiece's with <image> and <pad> behind its pieces,
special_tokens_map.json and added_tokens.json, the template in chat_template.json alone, processor and generation settings.

OUT_DIR/reference.json: of the first rows the processor's prompt ids and the greedy answers, and the losses of two steps.
"""
import json
import pathlib
import sys

import torch
from make_reference import IGNORE_INDEX, InOrderTrainer, Rows, canonical
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, trainers
from transformers import AutoProcessor, LlavaConfig, LlavaForConditionalGeneration, TrainingArguments

ROWS, PIECES, FIRST_STEPS, MAX_NEW_TOKENS = 24, 620, 60, 20
SPACE = "\u2581"
SPECIAL = ["<unk>", "<s>", "</s>"]
JOB = dict(max_steps=2, per_device_train_batch_size=2, gradient_accumulation_steps=2, learning_rate=0.001, weight_decay=0.05,
           warmup_steps=0, lr_scheduler_type="linear")
# llava-1.5-7b-hf's, whitespace included.
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{# Render all images first #}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}{# Render all text next #}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}{% endfor %}"
    "{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}")


def write(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2), encoding="utf-8")


def sentencepiece_tokenizer(texts):
    """tokenizer.json as transformers' convert_slow_tokenizer.py makes it of Llama 2's tokenizer.model.

    Of every piece, all ways to part it in two pieces are merges, and pieces are in the order of their scores.
    """
    trained = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    spaces = [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    trained.normalizer = normalizers.Sequence(spaces)
    special = SPECIAL + [f"<0x{byte:02X}>" for byte in range(256)]
    # SentencePiece parts words at spaces: only the first letter of a piece is one.
    words = [SPACE + word for text in texts for word in text.split(" ")]
    trained.normalizer = None
    trained.train_from_iterator(words, trainers.BpeTrainer(vocab_size=PIECES, special_tokens=special, show_progress=False))
    vocabulary = trained.get_vocab()
    pieces = sorted((piece for piece in vocabulary if piece not in special and len(piece) > 1), key=vocabulary.get)
    merges = [[piece[:at], piece[at:]] for piece in pieces for at in range(1, len(piece))
              if piece[:at] in vocabulary and piece[at:] in vocabulary]
    file = json.loads(trained.to_str())
    token = lambda index, text: dict(id=index, content=text, single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    start, one, two = {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}
    file |= dict(
        added_tokens=[token(i, text) for i, text in enumerate(SPECIAL)] + [token(PIECES, "<image>"), token(PIECES + 1, "<pad>")],
        normalizer=json.loads(Tokenizer.to_str(with_normalizer(normalizers.Sequence(spaces))))["normalizer"],
        pre_tokenizer=None,
        post_processor=dict(type="TemplateProcessing", single=[start, one], pair=[start, one, {"SpecialToken": {"id": "<s>", "type_id": 1}}, two],
                            special_tokens={"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}),
        decoder=dict(type="Sequence", decoders=[dict(type="Replace", pattern={"String": SPACE}, content=" "), dict(type="ByteFallback"),
                                                dict(type="Fuse"), dict(type="Strip", content=" ", start=1, stop=0)]))
    file["model"] |= dict(dropout=None, unk_token="<unk>", fuse_unk=True, byte_fallback=True, vocab=vocabulary, merges=[" ".join(pair) for pair in merges])
    assert len(vocabulary) == PIECES, len(vocabulary)
    return file


def with_normalizer(normalizer):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizer
    return tokenizer


def write_processors(texts, out):
    write(out / "tokenizer.json", sentencepiece_tokenizer(texts))
    flags = dict(lstrip=False, normalized=False, rstrip=False, single_word=False)
    added = {"0": "<unk>", "1": "<s>", "2": "</s>", str(PIECES): "<image>", str(PIECES + 1): "<pad>"}
    write(out / "tokenizer_config.json", {
        "add_bos_token": True, "add_eos_token": False,
        "added_tokens_decoder": {i: dict(flags, content=text, special=True) for i, text in added.items()},
        "bos_token": "<s>", "clean_up_tokenization_spaces": False, "eos_token": "</s>", "legacy": False,
        "model_max_length": 1000000000000000019884624838656, "pad_token": "<pad>", "padding_side": "left",
        "processor_class": "LlavaProcessor", "sp_model_kwargs": {}, "tokenizer_class": "LlamaTokenizer", "unk_token": "<unk>",
        "trust_remote_code": False, "use_default_system_prompt": False})
    token = lambda text: dict(flags, content=text)
    write(out / "special_tokens_map.json", {"bos_token": token("<s>"), "eos_token": token("</s>"), "pad_token": "<pad>", "unk_token": token("<unk>")})
    write(out / "added_tokens.json", {"<image>": PIECES, "<pad>": PIECES + 1})
    write(out / "chat_template.json", {"chat_template": TEMPLATE})
    write(out / "processor_config.json", {"image_token": "<image>", "num_additional_image_tokens": 1, "patch_size": 14,
                                          "processor_class": "LlavaProcessor", "vision_feature_select_strategy": "default"})
    write(out / "preprocessor_config.json", {
        "crop_size": {"height": 56, "width": 56}, "do_center_crop": True, "do_convert_rgb": True, "do_normalize": True,
        "do_rescale": True, "do_resize": True, "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "CLIPImageProcessor", "image_std": [0.26862954, 0.26130258, 0.27577711],
        "processor_class": "LlavaProcessor", "resample": 3, "rescale_factor": 0.00392156862745098, "size": {"shortest_edge": 56}})
    write(out / "generation_config.json", {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": PIECES + 1,
                                           "transformers_version": "4.36.0.dev0"})


# The published fields; sizes that the published file leaves to Llama's defaults have to be said of a tiny model.
CONFIG = {
    "architectures": ["LlavaForConditionalGeneration"], "ignore_index": -100, "image_token_index": PIECES, "model_type": "llava",
    "pad_token_id": PIECES + 1, "projector_hidden_act": "gelu",
    "text_config": {"_name_or_path": "lmsys/vicuna-7b-v1.5", "architectures": ["LlamaForCausalLM"], "max_position_embeddings": 4096,
                    "model_type": "llama", "rms_norm_eps": 1e-05, "torch_dtype": "float16", "vocab_size": PIECES + 64,
                    "hidden_size": 64, "intermediate_size": 176, "num_attention_heads": 4, "num_hidden_layers": 3},
    "tie_word_embeddings": False, "torch_dtype": "float16", "transformers_version": "4.36.0.dev0",
    "vision_config": {"hidden_size": 32, "image_size": 56, "intermediate_size": 64, "model_type": "clip_vision_model",
                      "num_attention_heads": 2, "num_hidden_layers": 3, "patch_size": 14, "projection_dim": 24, "vocab_size": 32000},
    "vision_feature_layer": -2, "vision_feature_select_strategy": "default", "vocab_size": PIECES + 64,
}


def save_in_two_parts(model, out):
    weights = {canonical(name): values.half().contiguous() for name, values in model.state_dict().items()}
    names = sorted(weights)
    parts = {"model-00001-of-00002.safetensors": names[: len(names) // 2], "model-00002-of-00002.safetensors": names[len(names) // 2 :]}
    for file, names in parts.items():
        save_file({name: weights[name] for name in names}, out / file, metadata={"format": "pt"})
    write(out / "model.safetensors.index.json", {"metadata": {"total_size": sum(v.nbytes for v in weights.values())},
                                                 "weight_map": {name: file for file, names in parts.items() for name in names}})


def main(data, out):
    torch.manual_seed(15)
    torch.use_deterministic_algorithms(True)
    directory = out / "model"
    directory.mkdir(parents=True)
    records = json.loads((data / "chat.json").read_text())[:ROWS]
    turns = [[turn["value"] for turn in record["conversations"][:2]] for record in records]
    write_processors([text.replace("<image>", "") for pair in turns for text in pair] + ["USER: ASSISTANT: "], directory)
    write(directory / "config.json", CONFIG)
    model = LlavaForConditionalGeneration(LlavaConfig.from_pretrained(directory)).float()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 and parameter.abs().sum() == parameter.numel() else 0.0, std=0.05)

    processor = AutoProcessor.from_pretrained(directory, backend="pil")
    rows, prompts = [], []
    for record, (question, answer) in zip(records, turns):
        parts = [{"type": "image"}, {"type": "text", "text": question.replace("<image>", "").strip()}]
        text = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
        image = Image.open(data / "images" / record["image"]).convert("RGB")
        encode = lambda text: processor(images=image, text=text, return_tensors="pt")
        # Behind an answer the template writes a space, and no end: `</s>` is what generation stops at.
        prompt, whole = encode(text), encode(f"{text} {answer}</s>")
        start = prompt["input_ids"].shape[1]
        ids = whole["input_ids"][0]
        assert ids[:start].equal(prompt["input_ids"][0])
        labels = torch.cat([torch.full([start], IGNORE_INDEX), ids[start:]])
        rows.append(dict(input_ids=ids, labels=labels, pixel_values=whole["pixel_values"][0]))
        prompts.append(prompt)

    def collate(batch):
        width = max(len(row["input_ids"]) for row in batch)
        pad = lambda values, value: torch.nn.functional.pad(values, (width - len(values), 0), value=value)
        return dict(input_ids=torch.stack([pad(row["input_ids"], PIECES + 1) for row in batch]),
                    labels=torch.stack([pad(row["labels"], IGNORE_INDEX) for row in batch]),
                    attention_mask=torch.stack([pad(torch.ones_like(row["input_ids"]), 0) for row in batch]),
                    pixel_values=torch.stack([row["pixel_values"] for row in batch]))

    def train(model, job):
        args = TrainingArguments(output_dir=str(out / "trainer"), max_grad_norm=1.0, logging_steps=1, save_strategy="no", report_to=[],
                                 use_cpu=True, remove_unused_columns=False, disable_tqdm=True, **job)
        trainer = InOrderTrainer(model=model, args=args, train_dataset=Rows(rows), data_collator=collate)
        trainer.train()
        return [{key: line[key] for key in ("step", "loss", "grad_norm")} for line in trainer.state.log_history if "loss" in line]

    # Some steps first: the answers of a random model are one token, over and over.
    train(model, JOB | dict(max_steps=FIRST_STEPS, gradient_accumulation_steps=4, learning_rate=0.003))
    save_in_two_parts(model, directory)

    load = lambda: LlavaForConditionalGeneration.from_pretrained(directory, dtype=torch.float32).eval()
    model, answers = load(), []
    for record, (question, _), prompt in list(zip(records, turns, prompts))[:6]:
        with torch.no_grad():
            new = model.generate(**prompt, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        answers.append(dict(image=record["image"], question=question, prompt_ids=prompt["input_ids"][0].tolist(), new_ids=new.tolist(),
                            text=processor.tokenizer.decode(new, skip_special_tokens=True)))
    write(out / "reference.json", dict(job=JOB, steps=train(load(), JOB), answers=answers))
    print("wrote", out)


if __name__ == "__main__":
    main(*map(pathlib.Path, sys.argv[1:3]))
