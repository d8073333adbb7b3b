#!/usr/bin/env python3
"""SHA-256 of the pixel_values (f32, little-endian, [3, 336, 336]) that transformers' PIL processor gives each file.

    python pixel_hashes.py < LIST        prints `<sha256> <file>` per file, or `error <file>` where Pillow refuses it
"""
import hashlib
import sys

import numpy as np
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

processor = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
for path in sys.stdin.read().splitlines():
    try:
        values = processor(Image.open(path), return_tensors="np")["pixel_values"][0]
    except Exception:
        print("error", path)
        continue
    print(hashlib.sha256(np.ascontiguousarray(values, "<f4").tobytes()).hexdigest(), path)
