"""A conversation with a picture as lists of parts through models' processors: python list_contents.py PICTURE MODEL_DIR…

Prints one line of JSON, per model: the text that apply_chat_template writes, and the ids that the model gets.
"""
import json
import sys
import warnings

import transformers
from transformers import AutoProcessor

warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()
text = lambda words: dict(type="text", text=words)
messages = [
    dict(role="system", content=[text("Be brief.")]),
    dict(role="user", content=[dict(type="image", path=sys.argv[1]), text("What is it?")]),
    dict(role="assistant", content=[text("A cat.")]),
    dict(role="user", content="Sure?"),
]
results = []
for model in sys.argv[2:]:
    processor = AutoProcessor.from_pretrained(model)
    written = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt")
    assert inputs["pixel_values"].shape[0] == 1
    results.append(dict(text=written, input_ids=inputs["input_ids"][0].tolist()))
print(json.dumps(results))
