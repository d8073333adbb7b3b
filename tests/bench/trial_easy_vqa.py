#!/usr/bin/env python3
"""A trial on easy-VQA (PyPI `easy-vqa`, MIT): questions about coloured shapes, answered by a small LLaVA that is trained from nothing.

    python tests/bench/trial_easy_vqa.py WORK_DIR [--epochs N] [--questions N] [--test N] [--tokenizer DIR]

PYTHON needs `easy-vqa`, torch and transformers; the programs are those of `cargo build --release` (or --programs DIR). The tokenizer is that
of LLAVA_BACKBONES/smollm2. Makes a CLIP (64 × 64 pixels, patches of 8) and a Qwen2 with random weights, shards of the training questions, trains
everything, answers the test questions (`infer eval --metric exact`) and prints accuracy by kind of question, beside that of the answer that is
the most frequent one of its kind in training.
"""
import argparse
import collections
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
SUFFIX = "Answer with one word."


def run(*command):
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stderr}")
    return done.stdout


def kind(answer):
    return "yes or no" if answer in ("yes", "no") else "shape" if answer in ("circle", "rectangle", "triangle") else "colour"


def sample(questions, count):
    rows = list(zip(*questions))
    random.Random(0).shuffle(rows)
    return rows[:count]


def backbones(args, clip, qwen2):
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModel, CLIPImageProcessor, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    vision = CLIPVisionConfig(hidden_size=96, intermediate_size=192, num_hidden_layers=3, num_attention_heads=4, image_size=64, patch_size=8)
    CLIPVisionModel(vision).save_pretrained(clip)
    side = {"height": 64, "width": 64}
    CLIPImageProcessor(size={"shortest_edge": 64}, crop_size=side).save_pretrained(clip)
    tokenizer = json.loads((args.tokenizer / "config.json").read_text())
    text = Qwen2Config(
        vocab_size=tokenizer["vocab_size"], hidden_size=96, intermediate_size=192, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4,
        max_position_embeddings=256, tie_word_embeddings=True, bos_token_id=tokenizer.get("bos_token_id"), eos_token_id=tokenizer.get("eos_token_id"),
    )
    Qwen2ForCausalLM(text).save_pretrained(qwen2)
    for file in args.tokenizer.iterdir():
        if file.name.startswith(("tokenizer", "special_tokens", "generation_config", "vocab", "merges", "chat_template")):
            shutil.copy(file, qwen2)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--questions", type=int, default=40000, help="training questions, at most")
    parser.add_argument("--test", type=int, default=2000, help="test questions, at most")
    parser.add_argument("--tokenizer", type=pathlib.Path, default=pathlib.Path(os.environ.get("LLAVA_BACKBONES", ".")) / "smollm2")
    parser.add_argument("--programs", type=pathlib.Path, default=pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release")
    args = parser.parse_args()
    import easy_vqa

    work, programs = args.work, args.programs
    shutil.rmtree(work, ignore_errors=True)
    (work / "train").mkdir(parents=True)
    training, test = sample(easy_vqa.get_train_questions(), args.questions), sample(easy_vqa.get_test_questions(), args.test)
    rows = [
        {
            "id": f"{image}-{number}",
            "image": f"{image}.png",
            "conversations": [{"from": "human", "value": f"<image>\n{text}\n{SUFFIX}"}, {"from": "gpt", "value": answer}],
        }
        for number, (text, answer, image) in enumerate(training)
    ]
    (work / "train/chat.json").write_text(json.dumps(rows))
    paths = easy_vqa.get_train_image_paths()
    (work / "train/images").symlink_to(pathlib.Path(next(iter(paths.values()))).parent)
    asked = [{"question_id": number, "image": f"{image}.png", "text": text, "answer": answer} for number, (text, answer, image) in enumerate(test)]
    (work / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in asked))
    backbones(args, work / "clip", work / "qwen2")
    run(programs / "preprocess", "model", "--vision-tower", work / "clip", "--language-model", work / "qwen2", "--output", work / "llava")
    run(programs / "preprocess", "shards", "--model", work / "llava", "--data", work / "train", "--output", work / "shards")
    run(
        programs / "train", "--model_name_or_path", work / "llava", "--data_path", work / "shards", "--output_dir", work / "run", "--train_type", "none",
        "--num_train_epochs", args.epochs, "--per_device_train_batch_size", 32, "--learning_rate", "2e-3", "--lr_scheduler_type", "cosine",
        "--warmup_steps", 50, "--weight_decay", 0, "--save_strategy", "no", "--logging_steps", 20,
    )
    pictures = pathlib.Path(next(iter(easy_vqa.get_test_image_paths().values()))).parent
    scores = run(
        programs / "infer", "eval", "--model", work / "run", "--questions", work / "questions.jsonl", "--images", pictures, "--metric", "exact",
        "--prompt-suffix", SUFFIX, "--max-new-tokens", 6, "--output", work / "answers.jsonl",
    )
    print(scores.strip())
    answers = {line["question_id"]: line["text"] for line in map(json.loads, (work / "answers.jsonl").read_text().splitlines())}
    frequent = collections.defaultdict(collections.Counter)
    for _, answer, _ in training:
        frequent[kind(answer)][answer] += 1
    counts = collections.defaultdict(lambda: [0, 0, 0])
    for question in asked:
        right, guess = answers[question["question_id"]].strip().lower() == question["answer"], frequent[kind(question["answer"])].most_common(1)[0][0]
        for name in (kind(question["answer"]), "all"):
            counts[name] = [have + new for have, new in zip(counts[name], (1, right, guess == question["answer"]))]
    print("| questions | number | right, % | the most frequent answer, % |\n|---|---|---|---|")
    for name, (number, right, guessed) in counts.items():
        print(f"| {name} | {number} | {100 * right / number:.1f} | {100 * guessed / number:.1f} |")


main()
