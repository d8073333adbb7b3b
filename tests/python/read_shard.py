"""A shard in Python: python read_shard.py SHARD.parquet MODEL_DIR IMAGES_DIR DOCUMENT

Runs the snippet that DOCUMENT publishes (its first python block) on every row, and compares with transformers' PIL image processor, bit
for bit. Then counts the rows with the other readers that are installed.
"""
import pathlib
import re
import sys

from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

path, model, images, document = sys.argv[1:]
text = pathlib.Path(document).read_text()
block = re.search(r"```python\n(.*?)```", text, re.S).group(1)
snippet = re.sub(r"^//! ?", "", block, flags=re.M)
assert '"shard-00000.parquet"' in snippet and len(snippet.splitlines()) <= 12, snippet
code = compile(snippet.replace('"shard-00000.parquet"', "path"), document, "exec")

processor = CLIPImageProcessorPil.from_pretrained(model)
names, row, rows = dict(path=path), 0, None
while rows is None or row < rows:
    names["row"] = row
    exec(code, names)
    pixel_values, shard = names["pixel_values"], names["shard"]
    expected = processor(Image.open(pathlib.Path(images) / shard["image"][row].as_py()), return_tensors="np")["pixel_values"]
    assert pixel_values.dtype == expected.dtype and pixel_values.shape == expected.shape, (pixel_values.shape, expected.shape)
    assert (pixel_values == expected).all(), f"row {row}: largest difference {abs(pixel_values - expected).max()}"
    rows, row = shard.num_rows, row + 1
print(f"pyarrow: {rows} rows equal transformers' pixel_values bit for bit")


def polars_rows():
    import polars
    return polars.read_parquet(path).height


def duckdb_rows():
    import duckdb
    return duckdb.sql(f"select count(*) from '{path}' where octet_length(pixel_values) > 0").fetchone()[0]


for reader in (polars_rows, duckdb_rows):
    try:
        found = reader()
    except ImportError as error:
        print(f"not run: {error}")
        continue
    assert found == rows, (reader.__name__, found, rows)
    print(f"{reader.__name__}: {found}")
