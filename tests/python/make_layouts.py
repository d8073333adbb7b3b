"""Writes one dataset of pictures and captions in every layout, with the libraries that people write them with.

make_layouts.py PICTURES OUTPUT: PICTURES has pictures and captions.json, a list of [name, caption].
"""

import csv
import io
import json
import shutil
import sys
import tarfile
from pathlib import Path

from datasets import Dataset, Features, Image, Value, disable_progress_bars

source, output = Path(sys.argv[1]), Path(sys.argv[2])
rows = json.loads((source / "captions.json").read_text())
disable_progress_bars()


def folder(name, pictures=""):
    path = output / name
    if pictures is not None:
        (path / pictures).mkdir(parents=True, exist_ok=True)
        for name, _ in rows:
            shutil.copy(source / name, path / pictures / name)
    else:
        path.mkdir(parents=True)
    return path


def turns(caption):
    return [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": caption}]


def messages(caption):
    return [{"role": "user", "content": "<image>\nWhat is it?"}, {"role": "assistant", "content": caption}]


def lines(path, objects):
    path.write_text("".join(json.dumps(entry) + "\n" for entry in objects))


def table(path, columns, values, **options):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, **options)
        writer.writerow(columns)
        writer.writerows(values)


(folder("llava", "images") / "my_rows.json").write_text(
    json.dumps([{"image": name, "conversations": turns(caption)} for name, caption in rows])
)
lines(folder("llava_lines") / "train.jsonl", ({"image": name, "conversations": turns(text)} for name, text in rows))
(folder("sharegpt") / "train.json").write_text(
    json.dumps([{"images": [name], "messages": messages(caption)} for name, caption in rows], indent=1)
)
lines(folder("imagefolder_jsonl") / "metadata.jsonl", ({"file_name": name, "text": text} for name, text in rows))
table(folder("imagefolder_csv") / "metadata.csv", ["file_name", "text"], rows)
lines(folder("captions_jsonl") / "captions.jsonl", ({"image": name, "caption": text} for name, text in rows))
table(folder("captions_csv", "images") / "captions.csv", ["image", "caption"], rows)
table(folder("captions_tsv") / "flickr.tsv", ["", "image_name", "caption"], [[0, *row] for row in rows], delimiter="\t")

asked = [[name, "What is it?", text] for name, text in rows]
table(folder("questions_csv") / "vqa.csv", ["image", "question", "answer"], asked)
table(folder("questions_tsv", "images") / "asked.tsv", ["image", "prompt", "caption"], asked, delimiter="\t")

texts = folder("texts", "deeper")
for name, caption in rows:
    (texts / "deeper" / name).with_suffix(".txt").write_text(caption + "\n")

coco = folder("coco", "val2017")
(coco / "annotations").mkdir()
(coco / "annotations" / "instances_val2017.json").write_text(json.dumps({"images": [], "annotations": []}))
(coco / "annotations" / "captions_val2017.json").write_text(
    json.dumps(
        {
            "info": {"year": 2017},
            "annotations": [{"image_id": 100 + n, "id": n, "caption": text} for n, (_, text) in enumerate(rows)],
            "images": [{"id": 100 + n, "file_name": name, "height": 1} for n, (name, _) in enumerate(rows)],
        }
    )
)

tars = folder("webdataset", None)
for number, part in enumerate([rows[: len(rows) // 2], rows[len(rows) // 2 :]]):
    with tarfile.open(tars / f"shard-{number:06}.tar", "w") as tar:
        for name, caption in part:
            stem = "a" * 120 + "/" + Path(name).stem  # a name that takes a header of its own
            for ending, content in ((Path(name).suffix, (source / name).read_bytes()), (".txt", caption.encode())):
                member = tarfile.TarInfo(stem + ending)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))

tars = folder("webdataset_json", None)
with tarfile.open(tars / "rows.tar", "w", format=tarfile.PAX_FORMAT) as tar:
    for name, caption in rows:
        content = json.dumps({"conversations": turns(caption), "width": 3}).encode()
        for ending, content in ((".json", content), (Path(name).suffix, (source / name).read_bytes())):
            member = tarfile.TarInfo(Path(name).stem + ending)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))

features = Features({"image": Image(), "caption": Value("string")})
dataset = Dataset.from_list(
    [{"image": {"path": name, "bytes": (source / name).read_bytes()}, "caption": text} for name, text in rows], features
)
(folder("parquet", None) / "data").mkdir()
for split, part in (("train", dataset), ("test", dataset.select([0]))):
    part.to_parquet(output / "parquet" / "data" / f"{split}-00000-of-00001.parquet")

features = Features({"image": Image(), "instruction": Value("string"), "response": Value("string")})
Dataset.from_list(
    [
        {"image": {"path": None, "bytes": (source / name).read_bytes()}, "instruction": question, "response": text}
        for name, question, text in asked
    ],
    features,
).to_parquet(folder("questions_parquet", None) / "rows.parquet")

features = Features(
    {"images": [Image()], "messages": [{"role": Value("string"), "content": Value("string")}], "width": Value("int64")}
)
Dataset.from_list(
    [
        {"images": [{"path": None, "bytes": (source / name).read_bytes()}], "messages": messages(text), "width": 3}
        for name, text in rows
    ],
    features,
).to_parquet(folder("parquet_messages", None) / "rows.parquet")
