"""llama_cpp.py GGUF_DIR MODEL_DIR DATA_DIR ROWS: greedy text of llama.cpp (through xllamacpp) for the first rows of a data folder.

Every row is asked with its picture and without. Pictures are brought to the tower's size first, as llama.cpp resizes in its own
way. Prints JSON: of every row the text without the picture (`plain`), the text with it (`seen`), and what transformers says with
the class token where CLIP has it (`published`) and behind the patches (`class_last`), where llama.cpp puts it:
https://github.com/ggml-org/llama.cpp/issues/25814.
"""
import base64
import io
import json
import pathlib
import sys
import urllib.request

import torch
import xllamacpp
from PIL import Image
from transformers import AutoTokenizer, CLIPImageProcessor, LlavaForConditionalGeneration

gguf_dir, model_dir, data_dir = map(pathlib.Path, sys.argv[1:4])
MAX_NEW_TOKENS = 24
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
rows = json.loads((data_dir / "chat.json").read_text())[: int(sys.argv[4])]

torch.set_num_threads(1)
params = xllamacpp.CommonParams()
params.model.path = str(gguf_dir / "model-f16.gguf")
params.mmproj.path = str(gguf_dir / "mmproj-model-f16.gguf")
params.n_ctx, params.n_parallel, params.warmup, params.verbosity = 512, 1, False, 0
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(params)


def request(path, body=None):
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(server.listening_address + path, data, headers)) as answer:
        return json.load(answer)


def complete(prompt):
    return request("/completion", {"prompt": prompt, "n_predict": MAX_NEW_TOKENS, "temperature": 0})["content"]


def ask(question):
    return f"{SYSTEM}<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


marker = request("/props")["media_marker"]
processor = CLIPImageProcessor.from_pretrained(model_dir)
tokenizer = AutoTokenizer.from_pretrained(model_dir)
model = LlavaForConditionalGeneration.from_pretrained(model_dir, dtype=torch.float32).eval()
(embeddings,) = [module for module in model.modules() if type(module).__name__ == "CLIPVisionEmbeddings"]
published = embeddings.forward


def class_last(pixel_values, interpolate_pos_encoding=False):
    patches = embeddings.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
    tokens = torch.cat([patches, embeddings.class_embedding.expand(len(patches), 1, -1)], 1)
    return tokens + embeddings.position_embedding(embeddings.position_ids)


def generate(question, pixel_values, forward):
    embeddings.forward = forward
    features = (model.config.vision_config.image_size // model.config.vision_config.patch_size) ** 2
    ids = tokenizer(ask(question).replace("<image>", "<image>" * features), return_tensors="pt")["input_ids"]
    with torch.no_grad():
        found = model.generate(input_ids=ids, pixel_values=pixel_values, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
    return tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True)


answers = []
for row in rows:
    question = row["conversations"][0]["value"]
    # Cut as the processor cuts it: then nothing is left to resize, here or there.
    picture = Image.open(data_dir / "images" / row["image"]).convert("RGB")
    picture = processor(picture, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"][0]
    picture = Image.fromarray(picture.transpose(1, 2, 0).astype("uint8"))
    file = io.BytesIO()
    picture.save(file, "PNG")
    pixel_values = processor(picture, return_tensors="pt")["pixel_values"]
    seen = {
        "prompt_string": ask(question).replace("<image>", marker),
        "multimodal_data": [base64.b64encode(file.getvalue()).decode()],
    }
    plain = question.replace("<image>", "").strip()
    answers.append(
        {
            "question": plain,
            "plain": complete(ask(plain)),
            "seen": complete(seen),
            "published": generate(question, pixel_values, published),
            "class_last": generate(question, pixel_values, class_last),
        }
    )
json.dump(answers, sys.stdout)
