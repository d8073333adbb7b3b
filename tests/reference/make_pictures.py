#!/usr/bin/env python3
"""Datasets and awkward image files that the tests work on, made from nothing.

    python make_pictures.py OUT_DIR

OUT_DIR/pictures        32 pictures of 224 x 224 in the layout of LLaVA-CC3M-Pretrain-595K: chat.json, images/, images.zip, and
                        references.json (five captions each)
OUT_DIR/pictures_large  24 pictures of 640 x 480 and other sizes, the same layout
OUT_DIR/edge            image files that are difficult or damaged; manifest.json has Pillow's verdict on each

A picture is coloured noise at several scales with a few shapes over it: content that JPEG and resampling have work with.
The same numpy and Pillow give the same bytes.
"""
import hashlib
import io
import json
import pathlib
import struct
import sys
import zipfile
import zlib

import numpy as np
from PIL import Image, ImageDraw

COLOURS = ["red", "green", "blue", "yellow", "purple", "orange", "white", "black"]
SHAPES = ["circle", "square", "triangle", "ring", "stripe"]
SIZES = ["small", "large"]
NOUNS = (
    "anchor apple bakery balloon barn basket bench bicycle blanket boat bottle bridge bucket bus cabin camera candle castle cat chair "
    "clock cloud coat corner crowd cup curtain dog donkey door eagle engine fence ferry field fireplace fish flag flower forest "
    "fountain fridge fruit garden gate giraffe glass glove guitar hammer harbour hat helmet hill horse house island jacket jar kettle "
    "kitchen kite ladder lake lamp laptop leaf library lighthouse lion lorry market meadow mirror monkey mountain mug museum "
    "notebook ocean onion orchard oven owl palace parrot path pencil piano pigeon pillow pizza plate pond pumpkin puppet "
    "rabbit raft railway river roof rope sandwich saucer scarf sheep shelf ship shovel skateboard snow sofa spoon station street "
    "suitcase table teapot tent tiger tower train tree truck tulip umbrella vase village violin wagon wall watch waterfall "
    "wheel whistle window windmill yard zebra").split()
PLACES = ["on the left", "on the right", "at the top", "at the bottom", "in the middle"]
QUESTIONS = [
    "Give a brief, clear account of the picture shown.", "Write a terse but informative summary of the picture.",
    "What is in the photo?", "Describe the image concisely.", "Share a concise interpretation of the image provided.",
    "Render a clear and concise summary of the photo.", "Présente l'image en une phrase, s'il te plaît.", "请简要描述这张图片。",
]


def noise(random, height, width):
    """[height, width, 3] u8: random colours at scales from the whole picture to single pixels."""
    sum_of_scales = np.zeros((height, width, 3))
    for cells in (2, 5, 13, 40, 160):
        grid = random.integers(0, 256, (cells, cells, 3)).astype(np.uint8)
        smooth = Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)
        sum_of_scales += np.asarray(smooth, np.float64) / np.sqrt(cells)
    low, high = sum_of_scales.min(), sum_of_scales.max()
    return ((sum_of_scales - low) * (255 / (high - low))).astype(np.uint8)


def picture(random, width, height):
    """An image and five captions that say what was drawn."""
    image = Image.fromarray(noise(random, height, width))
    draw = ImageDraw.Draw(image)
    parts = []
    for _ in range(random.integers(1, 4)):
        size, colour, shape, place = (str(random.choice(words)) for words in (SIZES, COLOURS, SHAPES, PLACES))
        side = min(width, height) // (3 if size == "large" else 7)
        x, y = int(random.integers(0, width - side)), int(random.integers(0, height - side))
        box = (x, y, x + side, y + side)
        if shape == "circle":
            draw.ellipse(box, fill=colour)
        elif shape == "square":
            draw.rectangle(box, fill=colour)
        elif shape == "ring":
            draw.ellipse(box, outline=colour, width=max(2, side // 8))
        elif shape == "stripe":
            draw.line(box, fill=colour, width=max(2, side // 6))
        else:
            draw.polygon([(x + side // 2, y), (x + side, y + side), (x, y + side)], fill=colour)
        near, beside = (str(noun) for noun in random.choice(NOUNS, 2, replace=False))
        parts.append(f"a {size} {colour} {shape} {place}, near a {near} and a {beside}")
    return image, [start + " and ".join(parts) + end for start, end in (
        ("", ""), ("", " on a coloured background"), ("There is ", "."), ("The picture shows ", "."), ("One sees ", " before noise."))]


def ids(seed, count):
    """Names of which `preprocess shards --validation-fraction 0.25` holds out a quarter, whose choice is by a hash of the id."""
    room = {True: count // 4, False: count - count // 4}
    number = 0
    while sum(room.values()):
        name = f"{seed}{number:08}"
        held_out = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") < 2 ** 62
        if room[held_out]:
            room[held_out] -= 1
            yield name
        number += 1


# How the files of a dataset are written, one after another.
JPEGS = [
    dict(quality=90), dict(quality=75, subsampling="4:2:0"), dict(quality=95, subsampling="4:4:4"), dict(quality=60, subsampling="4:2:2"),
    dict(quality=85, progressive=True), dict(quality=80, optimize=True, restart_marker_blocks=4),
]


def dataset(folder, seed, sizes):
    random = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    rows, references = [], []
    with zipfile.ZipFile(folder / "images.zip", "w", zipfile.ZIP_STORED) as archive:
        for number, (name, (width, height)) in enumerate(zip(ids(seed, len(sizes)), sizes)):
            image, captions = picture(random, width, height)
            if number % 11 == 7:
                image = image.convert("L")
            image.save(folder / "images" / f"{name}.jpg", **JPEGS[number % len(JPEGS)])
            archive.writestr(zipfile.ZipInfo(f"{name}.jpg"), (folder / "images" / f"{name}.jpg").read_bytes())
            question = QUESTIONS[number % len(QUESTIONS)]
            question = f"{question}\n<image>" if number % 3 == 1 else f"<image>\n{question}"
            answer = captions[number % len(captions)]
            rows.append({"id": name, "image": f"{name}.jpg", "conversations": [
                {"from": "human", "value": question}, {"from": "gpt", "value": answer}]})
            references.append({"id": name, "captions": captions})
    (folder / "chat.json").write_text(json.dumps(rows, ensure_ascii=False, indent=2))
    (folder / "references.json").write_text(json.dumps(references, indent=1))


def encoded(image, **options):
    data = io.BytesIO()
    image.save(data, **options)
    return data.getvalue()


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb():
    """A PNG whose header declares 60,000 x 60,000 pixels."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(b"")) + png_chunk(b"IEND", b"")


def edge_files(random):
    photo = Image.fromarray(noise(random, 320, 214))
    alpha = Image.linear_gradient("L").resize(photo.size)
    rgba = photo.copy()
    rgba.putalpha(alpha)
    whole = encoded(photo, format="JPEG", quality=90)
    png = encoded(photo, format="PNG")
    rotated = Image.Exif()
    rotated[274] = 6
    return {
        "rgb_baseline.jpg": whole, "gray.jpg": encoded(photo.convert("L"), format="JPEG"),
        "cmyk.jpg": encoded(photo.convert("CMYK"), format="JPEG"),
        "progressive.jpg": encoded(photo, format="JPEG", progressive=True),
        "restart_markers.jpg": encoded(photo, format="JPEG", restart_marker_blocks=2),
        "exif_rot6.jpg": encoded(photo, format="JPEG", exif=rotated),
        "trailing_garbage.jpg": whole + bytes(range(256)) * 20, "truncated.jpg": whole[:len(whole) // 2],
        "truncated_head.jpg": whole[:200], "1x1.jpg": encoded(photo.resize((1, 1)), format="JPEG"),
        "wide_2000x8.jpg": encoded(photo.resize((2000, 8)), format="JPEG"),
        "tall_8x2000.jpg": encoded(photo.resize((8, 2000)), format="JPEG"),
        "odd_335x337.jpg": encoded(photo.resize((335, 337)), format="JPEG"),
        "big_4000x3000.jpg": encoded(photo.resize((4000, 3000)), format="JPEG", quality=60),
        "rgba.png": encoded(rgba, format="PNG"), "la.png": encoded(rgba.convert("LA"), format="PNG"),
        "palette.png": encoded(photo.quantize(64), format="PNG"), "bilevel.png": encoded(photo.convert("1"), format="PNG"),
        "gray16.png": encoded(Image.fromarray((np.asarray(photo.convert("L"), np.uint16) * 257)), format="PNG"),
        "1x1.png": encoded(photo.resize((1, 1)), format="PNG"), "png_named.jpg": png, "jpg_named.png": whole,
        "crc_bad.png": png[:60] + bytes([png[60] ^ 1]) + png[61:], "bomb_header.png": bomb(),
        "lossy.webp": encoded(photo, format="WEBP", quality=70), "lossless_alpha.webp": encoded(rgba, format="WEBP", lossless=True),
        "still.gif": encoded(photo.convert("P"), format="GIF"),
        "animated.gif": encoded(photo.convert("P"), format="GIF", save_all=True, append_images=[photo.rotate(90).convert("P")]),
        "photo.bmp": encoded(photo, format="BMP"), "photo.tiff": encoded(photo, format="TIFF", compression="tiff_lzw"),
        "zero.jpg": b"", "text.jpg": b"404: this picture is not here any more\n", "json.jpg": b'{"error": "no"}',
        "page.jpg": b"<!DOCTYPE html><html><body>Not found</body></html>",
    }


def verdict(path):
    try:
        with Image.open(path) as image:
            image.convert("RGB")
            size = image.size
    except Exception as error:  # Whatever Pillow raises is its verdict.
        return {"expect": "error", "pil_error": f"{type(error).__name__}: {error}"}
    return {"expect": "ok", "pil": {"size": list(size)}}


def main(out):
    out = pathlib.Path(out)
    dataset(out / "pictures", 1, [(224, 224)] * 32)
    sizes = [(640, 480), (480, 640), (500, 375), (427, 640), (612, 612), (333, 500)]
    dataset(out / "pictures_large", 2, [sizes[number % len(sizes)] for number in range(24)])
    edge = out / "edge"
    edge.mkdir()
    manifest = []
    for name, data in edge_files(np.random.default_rng(3)).items():
        (edge / name).write_bytes(data)
        manifest.append({"file": name, "bytes": len(data), **verdict(edge / name)})
    (edge / "a_directory.jpg").mkdir()
    manifest.append({"file": "a_directory.jpg", "expect": "error", "pil_error": "a folder"})
    (edge / "manifest.json").write_text(json.dumps({"files": manifest}, indent=1))


if __name__ == "__main__":
    main(sys.argv[1])
