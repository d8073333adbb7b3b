"""llama_cpp.py DATA_DIR ROWS (GGUF_DIR MODEL_DIR)…: greedy text of llama.cpp (through xllamacpp) for the first rows of a data folder.

Every row is asked with its picture and without. Pictures are brought to the tower's size first, as llama.cpp resizes in its own
way. Prints JSON: for each model, of every row the `prompt` and the text without the picture (`plain`), the text with it (`seen`),
and what transformers says with the picture (`published`) and, of a CLIP, with the class token behind the patches (`class_last`),
where llama.cpp puts it: https://github.com/ggml-org/llama.cpp/issues/25814. Spaces before an answer are left out: of a SentencePiece
tokenizer's first space, llama.cpp writes one.
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
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, LlavaForConditionalGeneration

MAX_NEW_TOKENS = 24
data_dir = pathlib.Path(sys.argv[1])
rows = json.loads((data_dir / "chat.json").read_text())[: int(sys.argv[2])]
torch.set_num_threads(1)


def serve(gguf_dir):
    params = xllamacpp.CommonParams()
    params.model.path = str(gguf_dir / "model-f16.gguf")
    params.mmproj.path = str(gguf_dir / "mmproj-model-f16.gguf")
    params.n_ctx, params.n_parallel, params.warmup, params.verbosity = 512, 1, False, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    return xllamacpp.Server(params)


def prompts(model_dir, tokenizer):
    """The function that makes a prompt of a question: by the tokenizer's template, or by the processor's, as LLaVA-1.5 has it."""
    if tokenizer.chat_template:
        system = {"role": "system", "content": "You are a helpful assistant."}
        return lambda question: tokenizer.apply_chat_template(
            [system, {"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
    processor = AutoProcessor.from_pretrained(model_dir, backend="pil")

    def ask(question):
        images = [{"type": "image"}] * question.count("<image>")
        parts = [*images, {"type": "text", "text": question.replace("<image>", "").strip()}]
        return processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)

    return ask


def ask_all(gguf_dir, model_dir):
    server = serve(gguf_dir)

    def request(path, body=None):
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(server.listening_address + path, data, headers)) as answer:
            return json.load(answer)

    def complete(prompt):
        return request("/completion", {"prompt": prompt, "n_predict": MAX_NEW_TOKENS, "temperature": 0})["content"].lstrip()

    marker = request("/props")["media_marker"]
    processor = AutoImageProcessor.from_pretrained(model_dir, backend="pil")
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    ask = prompts(model_dir, tokenizer)
    model = LlavaForConditionalGeneration.from_pretrained(model_dir, dtype=torch.float32).eval()
    clip = [module for module in model.modules() if type(module).__name__ == "CLIPVisionEmbeddings"]
    published = [embeddings.forward for embeddings in clip]

    def class_last(pixel_values, interpolate_pos_encoding=False):
        (embeddings,) = clip
        patches = embeddings.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        tokens = torch.cat([patches, embeddings.class_embedding.expand(len(patches), 1, -1)], 1)
        return tokens + embeddings.position_embedding(embeddings.position_ids)

    def generate(question, pixel_values, forward):
        for embeddings, made in zip(clip, forward):
            embeddings.forward = made
        tower = model.config.vision_config
        features = (tower.image_size // tower.patch_size) ** 2
        ids = tokenizer(ask(question).replace("<image>", "<image>" * features), return_tensors="pt")["input_ids"]
        with torch.no_grad():
            found = model.generate(input_ids=ids, pixel_values=pixel_values, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        return tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True).lstrip()

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
                "class_last": generate(question, pixel_values, [class_last]) if clip else None,
            }
        )
    return answers


pairs = list(map(pathlib.Path, sys.argv[3:]))
json.dump([ask_all(*pair) for pair in zip(pairs[::2], pairs[1::2])], sys.stdout)
