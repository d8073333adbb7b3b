"""Writes tables of questions with libraries that people write them with: three rows for each picture, without ids.

make_questions.py PICTURES OUTPUT
"""

import sys
from pathlib import Path

from datasets import Dataset, Features, Image, Value, disable_progress_bars

source, output = Path(sys.argv[1]), Path(sys.argv[2])
disable_progress_bars()
names = sorted(path.name for path in source.iterdir())
rows = [(name, number) for name in names for number in range(3)]


def picture(name, path):
    return {"path": path, "bytes": (source / name).read_bytes()}


def write(name, features, entries):
    (output / name).mkdir()
    Dataset.from_list(entries, Features(features)).to_parquet(output / name / "rows.parquet")


texts = {"image": Image(), "question": Value("string"), "answer": Value("string")}
asked = [{"question": f"Question {number}?", "answer": f"Answer {number}."} for _, number in rows]
write("bytes", texts, [{"image": picture(name, None), **row} for (name, _), row in zip(rows, asked)])
# Names of rows: each has another one for the same picture.
write(
    "paths",
    texts,
    [{"image": picture(name, f"{index}.jpg"), **row} for index, ((name, _), row) in enumerate(zip(rows, asked))],
)
messages = [
    [{"role": "user", "content": "<image>\n" + row["question"]}, {"role": "assistant", "content": row["answer"]}]
    for row in asked
]
write(
    "messages",
    {"images": [Image()], "messages": [{"role": Value("string"), "content": Value("string")}]},
    [{"images": [picture(name, None)], "messages": turns} for (name, _), turns in zip(rows, messages)],
)
