"""Records what ggml's own quantiser (in xllamacpp) makes of 1,024 values, into tests/data/ggml_blocks.json.

The values are those of `values` in infer/src/export/blocks/tests.rs. Written by

    python tests/reference/record_ggml_blocks.py
"""
import ctypes
import json
import pathlib

import gguf
import numpy as np
import xllamacpp

library = ctypes.CDLL(str(next(pathlib.Path(xllamacpp.__file__).parent.glob("*.so"))))
quantize = library.ggml_quantize_chunk
quantize.restype = ctypes.c_size_t
quantize.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]


def values(count):
    """Sums of four numbers of a linear congruential generator, in 1/65536; each block of 64 is of another size; zeros, an outlier."""
    state, made = 1, []
    for index in range(count):
        total = 0
        for _ in range(4):
            state = (state * 1664525 + 1013904223) % 2**32
            total += (state >> 16) - 32768
        made.append(total / 65536 / 2 ** (index // 64 % 5))
    made[100], made[512:544] = 8.0, [0.0] * 32
    return np.array(made, np.float32)


count = 1024
expected = {}
for kind in ["Q8_0", "Q5_0", "Q4_K", "Q6_K"]:
    kind = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    data, output = values(count), np.zeros(count // block * size, np.uint8)
    assert quantize(int(kind), data.ctypes.data, output.ctypes.data, 0, 1, count, None) == len(output)
    read = gguf.dequantize(output, kind).astype(np.float64)
    expected[kind.name] = {"bytes": output.tobytes().hex(), "squared_error": float(((read - data) ** 2).sum()),
                           "sum_of_values": float(read.sum())}
path = pathlib.Path(__file__).parents[1] / "data" / "ggml_blocks.json"
path.write_text(json.dumps({"xllamacpp": xllamacpp.__version__, "gguf": "0.19.0", "values": count, **expected}, indent=1) + "\n")
