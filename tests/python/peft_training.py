"""Kinds of LoRA as PEFT makes, trains and merges them, on a reference LLaVA.

peft_training.py train REFERENCE OUT KIND...       for each kind: OUT/KIND/init (an adapter with random values), OUT/KIND/trained (the same
                                                   after STEPS of the reference's job) and OUT/KIND/log.json (every step of the job)
peft_training.py fresh BASE OUT ARGUMENTS...       OUT/0, OUT/1, …: the adapters that PEFT makes of LoraConfig(**ARGUMENTS)
peft_training.py merge BATCH OUT ADAPTER...        OUT/0.safetensors, …: every tensor after merge_and_unload, by published name; and
                                                   "logits", those with the adapter at the batch's supervised positions
peft_training.py layer VALUES OUT                  OUT: output and gradients of a DoRA layer in training, whose dropout is VALUES' mask
"""

import json
import sys
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration, TrainingArguments

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "reference"))
from make_reference import IGNORE_INDEX, InOrderTrainer, Rows, canonical  # noqa: E402

warnings.filterwarnings("ignore")
torch.set_num_threads(1)
TEXT_QV = r".*language_model.*\.(q_proj|v_proj)"
PROJECTOR = "multi_modal_projector"
KINDS = {
    "rslora_all_linear": dict(target_modules="all-linear", use_rslora=True, modules_to_save=[PROJECTOR]),
    "all_linear_alone": dict(target_modules="all-linear"),
    "dora": dict(target_modules=TEXT_QV, use_dora=True, modules_to_save=[PROJECTOR]),
    "dora_all_linear": dict(target_modules="all-linear", use_dora=True, use_rslora=True),
    "head": dict(target_modules=r".*language_model.*\.q_proj|lm_head", modules_to_save=[PROJECTOR]),
    "patterns": dict(
        target_modules=TEXT_QV, use_rslora=True, modules_to_save=[PROJECTOR], rank_pattern={"layers.1.self_attn.q_proj": 3, "v_proj": 2},
        alpha_pattern={r"layers\.\d+\.self_attn\.q_proj": 24},
    ),
    "patterns_head_dora": dict(
        target_modules=["linear_1", "lm_head", "o_proj"], use_dora=True, rank_pattern={"lm_head": 2}, alpha_pattern={"linear_1": 3}),
    "saved_parts": dict(target_modules=TEXT_QV, modules_to_save=[PROJECTOR, "embed_tokens", "lm_head", "vision_tower"]),
}
STEPS = 4


def base_model(folder):
    return LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)


def rows_of(reference, model):
    """The reference's rows, each <image> repeated for its features."""
    image = model.config.image_token_index
    pixels = load_file(reference / "pixels.safetensors")["pixel_values"]
    with torch.no_grad():
        features = len(model.get_image_features(pixels[:1], return_dict=True).pooler_output[0])
    repeat = lambda values, ids: [v for v, t in zip(values, ids) for _ in range(features if t == image else 1)]
    for sample, pixel_values in zip(json.loads((reference / "samples.json").read_text()), pixels):
        ids, labels = sample["input_ids"], sample["labels"]
        yield dict(input_ids=repeat(ids, ids), labels=repeat(labels, ids), pixel_values=pixel_values)


def collate(rows, pad_id):
    width = max(len(row["input_ids"]) for row in rows)
    pad = lambda values, filler: [filler] * (width - len(values)) + values
    return dict(
        input_ids=torch.tensor([pad(row["input_ids"], pad_id) for row in rows]),
        labels=torch.tensor([pad(row["labels"], IGNORE_INDEX) for row in rows]),
        attention_mask=torch.tensor([pad([1] * len(row["input_ids"]), 0) for row in rows]),
        pixel_values=torch.stack([row["pixel_values"] for row in rows]),
    )


def train(reference, out, kinds):
    job = json.loads((reference / "spec.json").read_text())["train"]
    for kind in kinds:
        torch.manual_seed(3)
        model = base_model(reference / "llava")
        rows = list(rows_of(reference, model))
        pad_id = model.config.pad_token_id
        lora = dict(r=job["lora_r"], lora_alpha=job["lora_alpha"], lora_dropout=0.0, task_type="CAUSAL_LM")
        model = get_peft_model(model, LoraConfig(**lora, **KINDS[kind]))
        for name, parameter in model.named_parameters():
            if ".lora_" in name and parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.02)
            if ".lora_magnitude_vector" in name:
                parameter.data *= 1 + 0.1 * torch.randn_like(parameter)
        model.save_pretrained(out / kind / "init")
        arguments = TrainingArguments(
            output_dir=str(out / kind / "trainer"), max_steps=STEPS, per_device_train_batch_size=job["micro_batch"],
            gradient_accumulation_steps=job["accumulation"], learning_rate=job["lr"], weight_decay=job["weight_decay"],
            max_grad_norm=1.0, lr_scheduler_type=job["schedule"], warmup_steps=job["warmup_steps"], logging_steps=1,
            save_strategy="no", report_to=[], use_cpu=True, remove_unused_columns=False, disable_tqdm=True, seed=3)
        trainer = InOrderTrainer(
            model=model, args=arguments, train_dataset=Rows(rows), data_collator=lambda rows: collate(rows, pad_id))
        trainer.train()
        log = [line for line in trainer.state.log_history if "loss" in line]
        (out / kind / "log.json").write_text(json.dumps(log))
        model.save_pretrained(out / kind / "trained")


def fresh(base, out, *arguments):
    for index, text in enumerate(arguments):
        get_peft_model(base_model(base), LoraConfig(**json.loads(text))).save_pretrained(Path(out) / str(index))


@torch.no_grad()
def merge(batch, out, *adapters):
    inputs = load_file(batch)
    for index, adapter in enumerate(adapters):
        base = json.loads((Path(adapter) / "adapter_config.json").read_text())["base_model_name_or_path"]
        model = PeftModel.from_pretrained(base_model(base), adapter).eval()
        logits = model(**{key: inputs[key] for key in ("input_ids", "attention_mask", "pixel_values")}).logits
        shifted = torch.nn.functional.pad(inputs["labels"][:, 1:], (0, 1), value=IGNORE_INDEX)
        merged = model.merge_and_unload().named_parameters()
        tensors = {canonical(name): parameter.detach().clone().contiguous() for name, parameter in merged}
        tensors["logits"] = logits[shifted != IGNORE_INDEX].contiguous()
        save_file(tensors, Path(out) / f"{index}.safetensors")


class Masked(torch.nn.Module):
    """Dropout with a given mask."""

    def __init__(self, mask):
        super().__init__()
        self.mask = mask

    def forward(self, x):
        return x * self.mask


def layer(values, out):
    """Output and gradients of a DoRA layer in training, with the mask of `values` as its dropout."""
    given = load_file(values)
    rank, inputs = given["a"].shape
    outputs, _ = given["b"].shape
    module = torch.nn.Sequential(torch.nn.Linear(inputs, outputs))
    module[0].weight.data, module[0].bias.data = given["weight"], given["bias"]
    config = LoraConfig(r=rank, lora_alpha=rank * given["scale"].item(), target_modules=["0"], use_dora=True, lora_dropout=0.5)
    linear = get_peft_model(module, config).train().base_model.model[0]
    linear.lora_A["default"].weight.data, linear.lora_B["default"].weight.data = given["a"], given["b"]
    linear.lora_magnitude_vector["default"].weight.data = given["magnitude"]
    linear.lora_dropout["default"] = Masked(given["mask"])
    x = given["x"].requires_grad_()
    y = linear(x)
    (y * given["outer"]).sum().backward()
    tensors = {"y": y, "x": x.grad, "a": linear.lora_A["default"].weight.grad, "b": linear.lora_B["default"].weight.grad,
               "magnitude": linear.lora_magnitude_vector["default"].weight.grad}
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, out)


command, *arguments = sys.argv[1:]
if command == "train":
    train(Path(arguments[0]), Path(arguments[1]), arguments[2:])
else:
    {"fresh": fresh, "merge": merge, "layer": layer}[command](*arguments)
