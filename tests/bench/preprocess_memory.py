"""Peak memory at the real dataset's size: 595,375 rows, a chat.json of 330 MB, an images.zip of 7 GB (zip64, mostly holes of a sparse file).

    python preprocess_memory.py PREPROCESS MODEL FOLDER [OPTIONS OF preprocess shards …]

FOLDER gets the dataset (about 1 GB on disk) and the shards. Prints rows, wall and CPU seconds and peak RSS.
"""
import json
import os
import pathlib
import resource
import subprocess
import sys
import time
import zipfile

ROWS, CHAT_BYTES, ZIP_BYTES = 595_375, 330_000_000, 7_000_000_000
preprocess, model, folder, *options = sys.argv[1:]
folder = pathlib.Path(folder)
data, photos = folder / "data", []
data.mkdir(parents=True, exist_ok=True)


def name(row):
    return f"{row // 1000:05}/{row:09}.jpg"


def thumbnails():
    """Small photos, so that the disk and the time suffice; the sizes that matter here are counts and offsets."""
    from PIL import Image
    import io
    for path in sorted((pathlib.Path(os.environ["LLAVA_SHARED"]) / "data/coco224_main/images").iterdir()):
        out = io.BytesIO()
        Image.open(path).convert("RGB").resize((32, 32)).save(out, format="JPEG", quality=75)
        photos.append(out.getvalue())


def write_zip():
    step = ZIP_BYTES // ROWS
    with zipfile.ZipFile(data / "images.zip", "w", zipfile.ZIP_STORED) as archive:
        for row in range(ROWS):
            photo = photos[row % len(photos)]
            archive.writestr(zipfile.ZipInfo(name(row)), photo)
            archive.start_dir = step * (row + 1)  # a hole before the next entry


def write_chat():
    question = "Provide a brief description of the given image.\n<image>"
    with open(data / "chat.json", "w") as file:
        file.write("[\n")
        for row in range(ROWS):
            answer = f"picture number {row} of many , each with a caption of its own"
            record = dict(id=f"{row:09}", image=name(row), conversations=[{"from": "human", "value": question}, {"from": "gpt", "value": answer}])
            text = json.dumps(record, indent=2)
            # The mean length of a row makes the file's size; the rest is white space, as in the original.
            text += " " * (CHAT_BYTES * (row + 1) // ROWS - file.tell() - len(text) - 3) + (",\n" if row + 1 < ROWS else "\n")
            file.write(text)
        file.write("]\n")


if not (data / "complete").exists():
    thumbnails()
    write_zip()
    write_chat()
    (data / "complete").touch()
for file in ("chat.json", "images.zip"):
    print(file, (data / file).stat().st_size, "bytes")
began = time.perf_counter()
child = subprocess.Popen([preprocess, "shards", "--model", model, "--data", data, "--output", folder / "shards", *options])
peak = 0
while child.poll() is None:
    # Not getrusage: a child's peak there begins with what this process had at the fork.
    try:
        status = pathlib.Path(f"/proc/{child.pid}/status").read_text()
    except FileNotFoundError:
        continue
    peak = max([peak, *(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))])
    time.sleep(0.1)
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps(dict(exit_code=child.returncode, wall_s=round(time.perf_counter() - began, 1), cpu_s=round(usage.ru_utime + usage.ru_stime, 1),
                      peak_rss_mb=round(peak / 1024, 1))))
