#!/usr/bin/env python3
"""SHA-256 of the pixel_values (f32, little-endian, [3, S, S]) that transformers' PIL processors give each file.

    python pixel_hashes.py DIR... < LIST

A DIR holds a preprocessor_config.json. Prints `<sha256> <index of DIR> <file>` for each processor and file, or
`error <index> <file>` where Pillow refuses the file.
"""
import hashlib
import sys

import numpy as np
from PIL import Image
from transformers import AutoImageProcessor

processors = [AutoImageProcessor.from_pretrained(folder, backend="pil") for folder in sys.argv[1:]]
assert all(processor.backend == "pil" for processor in processors)
for path in sys.stdin.read().splitlines():
    try:
        image = Image.open(path)
        image.load()
    except Exception:
        image = None
    for index, processor in enumerate(processors):
        try:
            values = processor(image, return_tensors="np")["pixel_values"][0]
        except Exception:
            print("error", index, path)
            continue
        print(hashlib.sha256(np.ascontiguousarray(values, "<f4").tobytes()).hexdigest(), index, path)
