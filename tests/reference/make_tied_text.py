#!/usr/bin/env python3
"""A tiny language model unlike the one of make_reference.py: python make_tied_text.py DATA_DIR OUT_DIR

Tied embeddings, grouped queries, other rotary base and norm epsilon, and a tokenizer that has <image> already.
"""
import json
import pathlib
import sys

import torch
from make_reference import SYSTEM, train_tokenizer
from transformers import Qwen2Config, Qwen2ForCausalLM

data, out = map(pathlib.Path, sys.argv[1:])
torch.manual_seed(2)
texts = [turn["value"] for row in json.loads((data / "chat.json").read_text()) for turn in row["conversations"]]
tokenizer = train_tokenizer(texts + [SYSTEM, "system\nuser\nassistant\n"], 512)
tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
config = Qwen2Config(
    hidden_size=64, intermediate_size=172, num_hidden_layers=5, num_attention_heads=8, num_key_value_heads=4, vocab_size=520,
    rope_theta=10000.0, rms_norm_eps=1e-5, max_position_embeddings=512, tie_word_embeddings=True, pad_token_id=None,
    bos_token_id=tokenizer.convert_tokens_to_ids("<|endoftext|>"), eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"))
Qwen2ForCausalLM(config).save_pretrained(out)
tokenizer.save_pretrained(out)
