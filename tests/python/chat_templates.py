"""Chat templates and added tokens in transformers: python chat_templates.py CASES.json

CASES: [{dir, text?, messages?, as_list?, as_processor?}]. Prints one line of JSON, per case: `ids` of the text; `prompt` (with generation prompt) and
`finished` (all messages) as ids. `as_list` hands contents over as parts, the way processors of image models take them; `as_processor` begins texts the way `ProcessorMixin.apply_chat_template` does.
"""
import json
import sys
import warnings

import transformers
from transformers import AutoTokenizer

warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()


def parts(text):
    found = []
    for index, piece in enumerate(text.split("<image>")):
        if index:
            found.append(dict(type="image"))
            piece = piece.removeprefix("\n")
        if piece:
            found.append(dict(type="text", text=piece))
    return found


results = []
for case in json.load(open(sys.argv[1], encoding="utf-8")):
    tokenizer = AutoTokenizer.from_pretrained(case["dir"])
    starts = lambda text: case.get("as_processor", False) and not text.startswith(tokenizer.bos_token)
    encode = lambda text: tokenizer(text, add_special_tokens=starts(text))["input_ids"]
    result = {}
    if "text" in case:
        result["ids"] = encode(case["text"])
    if "messages" in case:
        messages = case["messages"]
        if case.get("as_list"):
            messages = [dict(role=m["role"], content=parts(m["content"])) for m in messages]
        render = lambda messages, prompt: encode(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt))
        result["prompt"] = render(messages[:-1], True)
        result["finished"] = render(messages, False)
    results.append(result)
print(json.dumps(results))
