"""Pictures in every mode that the formats have, with the pixel values that transformers' PIL processor gives them.

    python pictures.py PHOTO FOLDER

FOLDER/NAME is a picture made from PHOTO, FOLDER/NAME.values its pixel_values (f32, little-endian, [3, 112, 112]), FOLDER/NAME.error
Pillow's message where it refuses the file.
"""
import io
import pathlib
import random
import struct
import sys
import zlib

import numpy as np
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

photo, folder = Image.open(sys.argv[1]).convert("RGB"), pathlib.Path(sys.argv[2])
photo = photo.crop((50, 60, 50 + 97, 60 + 61))  # odd in both directions
alpha = Image.linear_gradient("L").resize(photo.size)
rgba = photo.copy()
rgba.putalpha(alpha)
files = {}


def save(name, image, **options):
    data = io.BytesIO()
    image.save(data, **options)
    files[name] = data.getvalue()


def jpegs():
    for quality in (100, 90, 30):
        for subsampling in ("4:4:4", "4:2:2", "4:2:0"):
            save(f"q{quality}-{subsampling.replace(':', '')}.jpg", photo, format="JPEG", quality=quality, subsampling=subsampling)
    save("progressive.jpg", photo, format="JPEG", progressive=True)
    save("progressive-422.jpg", photo, format="JPEG", progressive=True, subsampling="4:2:2", optimize=True)
    save("restart.jpg", photo, format="JPEG", restart_marker_blocks=3)
    save("gray.jpg", photo.convert("L"), format="JPEG")
    save("gray-progressive.jpg", photo.convert("L"), format="JPEG", progressive=True)
    save("rgb.jpg", photo, format="JPEG", keep_rgb=True)
    save("cmyk.jpg", photo.convert("CMYK"), format="JPEG", quality=90)
    # Adobe's transform byte says YCCK; the numbers are then read that way.
    files["ycck.jpg"] = files["cmyk.jpg"].replace(b"Adobe\0\x64\0\0\0\0\0", b"Adobe\0\x64\0\0\0\0\2")
    assert files["ycck.jpg"] != files["cmyk.jpg"]
    # Without Adobe's marker.
    start = files["cmyk.jpg"].index(b"\xff\xee")
    length = struct.unpack(">H", files["cmyk.jpg"][start + 2:start + 4])[0]
    files["cmyk-plain.jpg"] = files["cmyk.jpg"][:start] + files["cmyk.jpg"][start + 2 + length:]
    # Sampling factors that Pillow does not write: 4:2:2 turned on its side, with as many blocks as before.
    for name, factors in (("440", 0x12), ("411", 0x41)):
        scrambled = bytearray(jpeg_of(64, 64, "4:2:2" if name == "440" else "4:2:0"))
        frame = scrambled.index(b"\xff\xc0")
        scrambled[frame + 11] = factors
        files[f"sampled-{name}.jpg"] = bytes(scrambled)
    whole = files["q90-420.jpg"]
    files["cut.jpg"] = whole[:len(whole) // 2]
    files["cut-with-end-marker.jpg"] = whole[:len(whole) // 2] + b"\xff\xd9"
    files["without-end-marker.jpg"] = whole[:-2]
    files["bit-flipped.jpg"] = whole[:-600] + bytes([whole[-600] ^ 0x10]) + whole[-599:]
    files["garbage-between-markers.jpg"] = whole[:2] + b"\0\0" + whole[2:]


def jpeg_of(width, height, subsampling):
    data = io.BytesIO()
    photo.resize((width, height)).save(data, format="JPEG", quality=90, subsampling=subsampling)
    return data.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


PASSES = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]


def png_rows(samples, depth, filters):
    """Filtered rows of samples [height, width, channels]."""
    height, width, channels = samples.shape
    if depth == 16:
        packed = samples.astype(">u2").reshape(height, -1).view(np.uint8).reshape(height, -1)
    else:
        bits = np.unpackbits(samples.astype(np.uint8).reshape(height, -1, 1), axis=2)[:, :, 8 - depth:]
        packed = np.packbits(bits.reshape(height, -1), axis=1)
    step = max(1, depth * channels // 8)
    above = np.zeros(packed.shape[1], np.uint8)
    out = b""
    for row in packed:
        left = np.concatenate([np.zeros(step, np.uint8), row])[:len(row)]
        corner = np.concatenate([np.zeros(step, np.uint8), above])[:len(row)]
        a, b, c = (v.astype(int) for v in (left, above, corner))
        pa, pb, pc = abs(b - c), abs(a - c), abs(a + b - 2 * c)
        paeth = np.where((pa <= pb) & (pa <= pc), a, np.where(pb <= pc, b, c))
        kind = filters.randrange(5)
        predicted = (0 * a, a, b, (a + b) // 2, paeth)[kind]
        out += bytes([kind]) + (row.astype(int) - predicted).astype(np.uint8).tobytes()
        above = row
    return out


def png(color_type, depth, interlaced, extra=b"", width=31, height=23, entries=256):
    """A PNG written by hand: every colour type, depth, filter, and Adam7."""
    filters = random.Random(color_type * 100 + depth)
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color_type]
    wide = np.asarray(rgba.resize((width, height)), np.uint32)
    values = {0: wide[:, :, :1], 2: wide[:, :, :3], 3: wide[:, :, :1], 4: wide[:, :, [1, 3]], 6: wide}[color_type]
    samples = (values * 257 + 91 * np.arange(width)[None, :, None]) % 65536 if depth == 16 else values >> (8 - depth)
    assert samples.shape == (height, width, channels)
    parts = [samples[y::dy, x::dx] for x, y, dx, dy in PASSES] if interlaced else [samples]
    data = b"".join(png_rows(part, depth, filters) for part in parts if part.size)
    palette = b""
    if color_type == 3:
        palette = chunk(b"PLTE", bytes(random.Random(depth).randrange(256) for _ in range(3 * min(entries, 2 ** depth))))
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, int(interlaced))
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + chunk(b"IHDR", header) + palette + extra + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def pngs():
    for color_type, depths in {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}.items():
        for depth in depths:
            key = {0: struct.pack(">H", min(200, 2 ** depth - 1)), 2: struct.pack(">HHH", 255, 255, 255), 3: bytes([0, 90])}.get(color_type)
            for interlaced in (False, True):
                name = f"png-{color_type}-{depth}{'-adam7' if interlaced else ''}"
                files[name + ".png"] = png(color_type, depth, interlaced)
                if key:
                    files[name + "-trns.png"] = png(color_type, depth, interlaced, chunk(b"tRNS", key))
    files["png-short-palette.png"] = png(3, 8, False, entries=20)
    files["png-broken-unknown-chunk.png"] = png(2, 8, False, chunk(b"teSt", b"abc")[:-1] + b"x")
    files["gamma.png"] = png(2, 8, False, chunk(b"gAMA", struct.pack(">I", 100000)))
    save("icc.png", photo, format="PNG", icc_profile=b"\0" * 128)
    save("apng.png", photo, format="PNG", save_all=True, append_images=[photo.rotate(180)])
    save("apng-hidden-default.png", photo, format="PNG", save_all=True, append_images=[photo.rotate(180)], default_image=True)
    whole = png(2, 8, False)
    files["cut.png"] = whole[:len(whole) * 2 // 3]
    files["without-end.png"] = whole[:-12]


def gifs():
    save("plain.gif", photo.convert("P"), format="GIF", interlace=0)
    save("interlaced.gif", photo.convert("P"), format="GIF", interlace=1)
    save("gray.gif", photo.convert("L"), format="GIF")
    save("bilevel.gif", photo.convert("1"), format="GIF")
    save("transparent.gif", photo.convert("P"), format="GIF", transparency=7)
    save("alpha.gif", rgba, format="GIF")
    save("animated.gif", photo.convert("P"), format="GIF", save_all=True, append_images=[photo.rotate(180).convert("P")])
    moved = bytearray(files["plain.gif"])
    frame = moved.index(b"\x2c")  # the frame starts beyond the canvas's corner
    moved[frame + 1:frame + 5] = struct.pack("<HH", 3, 5)
    files["offset.gif"] = bytes(moved)
    short = bytearray(files["plain.gif"])  # half of the palette taken away, then all of it
    size = 3 << (short[10] & 7) + 1
    files["short-palette.gif"] = bytes(short[:10] + bytes([short[10] - 1]) + short[11:13 + size // 2] + short[13 + size:])
    files["no-palette.gif"] = bytes(short[:10] + bytes([short[10] & 0x7F]) + short[11:13] + short[13 + size:])
    files["cut.gif"] = files["plain.gif"][:-400]


def webps():
    for quality in (1, 60, 100):
        save(f"q{quality}.webp", photo, format="WEBP", quality=quality)
        save(f"alpha-q{quality}.webp", rgba, format="WEBP", quality=quality)
    save("lossless.webp", photo, format="WEBP", lossless=True)
    save("lossless-alpha.webp", rgba, format="WEBP", lossless=True, exact=True)
    save("gray.webp", photo.convert("L"), format="WEBP", quality=80)
    save("animated.webp", photo, format="WEBP", save_all=True, append_images=[photo.rotate(180)], duration=100)
    save("animated-alpha.webp", rgba, format="WEBP", save_all=True, append_images=[rgba.rotate(180)], duration=100)
    for side in (1, 2, 15, 16, 17, 33):
        save(f"side-{side}.webp", photo.resize((side, side)), format="WEBP", quality=80)
    files["cut.webp"] = files["q60.webp"][:len(files["q60.webp"]) // 2]


def bmp_of(bits, compression, data, width=8, height=4, masks=b"", palette=b"", signed_height=None):
    offset = 14 + 40 + len(masks) + len(palette)
    header = struct.pack("<IiiHHIIiiII", 40, width, signed_height or height, 1, bits, compression, len(data), 0, 0, len(palette) // 4, 0)
    return struct.pack("<2sIHHI", b"BM", offset + len(data), 0, 0, offset) + header + masks + palette + data


def bmps():
    for mode in ("1", "L", "P", "RGB"):
        save(f"{mode}.bmp", photo.convert(mode), format="BMP")
    save("rgba.bmp", rgba, format="BMP")
    words = bytes(random.Random(1).randrange(256) for _ in range(8 * 4 * 2))
    files["555.bmp"] = bmp_of(16, 0, words)
    files["565.bmp"] = bmp_of(16, 3, words, masks=struct.pack("<III", 0xF800, 0x07E0, 0x001F))
    wide = bytes(random.Random(2).randrange(256) for _ in range(8 * 4 * 4))
    files["32.bmp"] = bmp_of(32, 0, wide)
    files["top-down.bmp"] = bmp_of(32, 0, wide, signed_height=-4)
    colours = bytes(random.Random(3).randrange(256) for _ in range(4 * 256))
    files["rle8.bmp"] = bmp_of(8, 1, b"\x08\x05\0\0" + b"\0\x08abcdefgh\0\0" + b"\x03\x07\x05\x09\0\0" + b"\x08\x01\0\1", palette=colours)
    # Skipped pixels, rows that end early, runs across the edge, odd literal counts, colour 0 that is not black.
    skips = b"\x03\x07\0\0" + b"\0\x02\x02\x01\x02\x09\0\0" + b"\0\x03abc\0\x09\x05\0\0"
    files["rle8-skips.bmp"] = bmp_of(8, 1, skips + b"\0\1", palette=colours)
    files["rle8-whole.bmp"] = bmp_of(8, 1, skips + b"\x08\x01", palette=colours)
    files["rle8-few-colours.bmp"] = bmp_of(8, 1, b"\x08\x05\0\0" * 4, palette=colours[:4 * 200])
    files["rle4.bmp"] = bmp_of(4, 2, b"\x08\x5A\0\0" + b"\0\x05\x12\x34\x50\0\x03\x67\0\0" + b"\x0B\x21\0\0" + b"\x08\x01\0\1", palette=colours[:64])
    files["rle8-top-down.bmp"] = bmp_of(8, 1, b"\x08\x05\0\0\x08\x07\0\0\x08\x02\0\0\x08\x01", palette=colours, signed_height=-4)
    files["rle-cut.bmp"] = files["rle4.bmp"][:-9]
    files["short-palette.bmp"] = bmp_of(8, 0, words[:32], palette=colours[:4 * 60])
    files["4.bmp"] = bmp_of(4, 0, words[:16], palette=colours[:64])
    files["cut.bmp"] = files["RGB.bmp"][:-500]


def tiffs():
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        save(f"rgb-{compression}.tiff", photo, format="TIFF", compression=compression)
    for mode in ("1", "L", "P", "CMYK", "I;16", "F", "I", "LAB", "YCbCr", "LA"):
        source = photo.convert("L") if mode in ("I;16", "F", "I") else photo
        save(f"{mode.replace(';', '')}.tiff", source.convert("I").convert("I;16") if mode == "I;16" else source.convert(mode), format="TIFF")
    save("rgba.tiff", rgba, format="TIFF")
    save("rgba-lzw.tiff", rgba, format="TIFF", compression="tiff_lzw")
    save("group4.tiff", photo.convert("1"), format="TIFF", compression="group4")
    save("pages.tiff", photo, format="TIFF", save_all=True, append_images=[photo.rotate(180)])
    files["cut.tiff"] = files["rgb-tiff_lzw.tiff"][:-300]
    for orientation in range(10):
        save(f"orientation-{orientation}.tiff", photo, format="TIFF", tiffinfo={274: orientation})
    save("orientation-gray-lzw.tiff", photo.convert("L"), format="TIFF", compression="tiff_lzw", tiffinfo={274: 7})
    save("orientation-jpeg.tiff", photo, format="TIFF", compression="jpeg", tiffinfo={274: 8})
    save("orientation-xmp.tiff", photo, format="TIFF", tiffinfo={700: b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'})
    save("gray-jpeg.tiff", photo.convert("L"), format="TIFF", compression="jpeg")
    save("cmyk-jpeg.tiff", photo.convert("CMYK"), format="TIFF", compression="jpeg")
    save("ycbcr-jpeg.tiff", photo.convert("YCbCr"), format="TIFF", compression="jpeg", quality=60)
    save("strips-jpeg.tiff", photo.resize((90, 80)), format="TIFF", compression="jpeg", strip_size=90 * 3 * 16)
    save("strips-ycbcr-jpeg.tiff", photo.resize((90, 83)).convert("YCbCr"), format="TIFF", compression="jpeg", strip_size=90 * 3 * 32)
    wide = np.asarray(rgba.resize((31, 23)), np.uint16)
    for order in "<>":
        name = {"<": "little", ">": "big"}[order]
        def words(values):
            return (values * 257 + 91 * np.arange(31)[None, :, None]).astype(order + "u2")
        for extra in (None, 0, 1, 2, 999):
            files[f"rgb4-{extra}-{name}.tiff"] = tiff_of(order, 2, wide.astype(np.uint8), extra)
            files[f"rgb4-16-{extra}-{name}.tiff"] = tiff_of(order, 2, words(wide), extra)
        files[f"rgb5-{name}.tiff"] = tiff_of(order, 2, wide[:, :, [0, 1, 2, 3, 0]].astype(np.uint8), 2)
        files[f"premultiplied-{name}.tiff"] = tiff_of(order, 2, (wide * [1, 1, 1, 0] * wide[:, :, 3:] // 255 + wide * [0, 0, 0, 1]).astype(np.uint8), 1)
        for photometric in (0, 1):
            files[f"gray16-{photometric}-{name}.tiff"] = tiff_of(order, photometric, (wide[:, :, :1] * 2 + 1).astype(order + "u2"))
            files[f"gray8-{photometric}-{name}.tiff"] = tiff_of(order, photometric, wide[:, :, :1].astype(np.uint8))
            files[f"gray8-extra-{photometric}-{name}.tiff"] = tiff_of(order, photometric, wide[:, :, [0, 3]].astype(np.uint8), 2)
            files[f"gray8-reversed-{photometric}-{name}.tiff"] = tiff_of(order, photometric, wide[:, :, :1].astype(np.uint8), fill_order=2)
        files[f"rgb-reversed-{name}.tiff"] = tiff_of(order, 2, wide[:, :, :3].astype(np.uint8), fill_order=2)
        files[f"cmyk4-{name}.tiff"] = tiff_of(order, 5, wide.astype(np.uint8))
        files[f"cmyk4-16-{name}.tiff"] = tiff_of(order, 5, words(wide))
        files[f"cmyk5-{name}.tiff"] = tiff_of(order, 5, wide[:, :, [0, 1, 2, 3, 0]].astype(np.uint8), 0)


def tiff_of(order, photometric, samples, extra=None, fill_order=None):
    """An uncompressed TIFF of one strip, written by hand: samples [height, width, channels] in the file's byte order."""
    height, width, channels = samples.shape
    bits = 8 * samples.dtype.itemsize
    tags = {256: width, 257: height, 258: [bits] * channels, 259: 1, 262: photometric, 273: 8, 277: channels, 278: height, 279: samples.nbytes}
    if extra is not None:
        tags[338] = [extra] + [0] * (channels - (5 if photometric == 5 else 4 if photometric == 2 else 2))
    if fill_order:
        tags[266] = fill_order
    entries, outside = b"", b""
    end = 8 + samples.nbytes + samples.nbytes % 2
    after = end + 2 + 12 * len(tags) + 4
    for tag, value in sorted(tags.items()):
        values = value if isinstance(value, list) else [value]
        kind = 4 if tag in (273, 279) else 3
        packed = struct.pack(f"{order}{len(values)}{'HI'[kind == 4]}", *values)
        if len(packed) > 4:
            outside += packed
            packed = struct.pack(order + "I", after + len(outside) - len(packed))
        entries += struct.pack(order + "HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    start = {"<": b"II", ">": b"MM"}[order] + struct.pack(order + "HI", 42, end)
    data = samples.tobytes() + b"\0" * (samples.nbytes % 2)
    return start + data + struct.pack(order + "H", len(tags)) + entries + b"\0\0\0\0" + outside


for make in (jpegs, pngs, gifs, webps, bmps, tiffs):
    make()
processor = CLIPImageProcessorPil(size={"shortest_edge": 112}, crop_size={"height": 112, "width": 112})
for name, data in files.items():
    (folder / name).write_bytes(data)
    try:
        values = processor(Image.open(folder / name), return_tensors="np")["pixel_values"][0]
    except Exception as error:
        (folder / f"{name}.error").write_text(f"{type(error).__name__}: {error}")
    else:
        (folder / f"{name}.values").write_bytes(np.ascontiguousarray(values, "<f4").tobytes())
print(len(files), "pictures")
