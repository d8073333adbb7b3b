"""A shard in Python: python read_shard.py SHARD.parquet MODEL_DIR IMAGES_DIR DOCUMENT …

Runs the snippet that each DOCUMENT publishes (its first python block) on every row that has an image, and compares with transformers' PIL image processor, bit
for bit. Then polars and duckdb have to find the same values in the same rows.
"""
import pathlib
import re
import sys

import duckdb
import polars
import pyarrow.parquet as pq
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

path, model, images, *documents = sys.argv[1:]
images = pathlib.Path(images)
processor = CLIPImageProcessorPil.from_pretrained(model)


def snippet_of(document):
    text = pathlib.Path(document).read_text()
    block = re.search(r"```python\n(.*?)```", text, re.S).group(1)
    snippet = re.sub(r"^//! ?", "", block, flags=re.M)
    assert '"shard-00000.parquet"' in snippet and len(snippet.splitlines()) <= 12, snippet
    return compile(snippet.replace('"shard-00000.parquet"', "path"), document, "exec")


table = pq.read_table(path, columns=["image", "more_images"]).to_pylist()
rows = len(table)
for document in documents:
    code, compared = snippet_of(document), 0
    for row, record in enumerate(table):
        if record["image"] is None:
            continue
        names = dict(path=path, row=row)
        exec(code, names)
        files = [record["image"], *(image["image"] for image in record["more_images"])]
        expected = processor([Image.open(images / file) for file in files], return_tensors="np")["pixel_values"]
        found = names["pixel_values"]
        assert found.dtype == expected.dtype and found.shape == expected.shape, (found.shape, expected.shape)
        assert (found == expected).all(), f"row {row}: largest difference {abs(found - expected).max()}"
        compared += len(files)
    print(f"pyarrow, {pathlib.Path(document).name}: {compared} images of {rows} rows equal transformers' pixel_values bit for bit")


columns = ["id", "image", "input_ids", "labels", "pixel_values"]
expected = pq.read_table(path, columns=columns).to_pylist()
connection = duckdb.connect()
readers = {
    "polars": lambda: polars.read_parquet(path, columns=columns).to_dicts(),
    "duckdb": lambda: connection.sql(f"select {', '.join(columns)} from '{path}'").to_arrow_table().to_pylist(),
}
for reader, read in readers.items():
    found = read()
    assert len(found) == rows, (reader, len(found), rows)
    for row, (a, b) in enumerate(zip(found, expected)):
        for column in columns:
            assert a[column] == b[column], f"{reader}, row {row}: {column}"
    print(f"{reader}: {', '.join(columns)} of {rows} rows equal pyarrow's")
