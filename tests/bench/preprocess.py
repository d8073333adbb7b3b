"""python preprocess.py PROGRAMS SHARED REPEAT: see preprocess.sh. Prints a table; CPU seconds are those of all processes and threads."""
import collections
import json
import os
import pathlib
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time

programs, shared, repeat = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve(), int(sys.argv[3])
data, rounds = shared / "data/coco224_main", 3
configs = pathlib.Path(__file__).resolve().parents[1] / "configs"
quiet = dict(os.environ, TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")


def make_model(folder):
    """The real job's processors: CLIP ViT-L/14-336 and the Qwen1.5 tokenizer. Weights are not needed."""
    vision = json.loads((configs / "clip-vit-large-patch14-336/config.json").read_text())
    text = json.loads((configs / "qwen1.5-4b-chat/config.json").read_text())
    config = dict(model_type="llava", image_token_index=151646, vision_config=vision.get("vision_config", vision), text_config=text)
    (folder / "config.json").write_text(json.dumps(config))
    for file in (shared / "tokenizer/qwen1.5-image").iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "preprocessor_config.json").symlink_to(configs / "clip-vit-large-patch14-336/preprocessor_config.json")


def make_data(folder, source, copies):
    """The rows of `source`, several times under ids of their own, in `folder`/data; gives their number."""
    (folder / "data").mkdir(parents=True)
    (folder / "data/images").symlink_to(source / "images")
    records = json.loads((source / "chat.json").read_text())
    rows = [dict(record, id=f"{record['id']}-{copy}") for copy in range(copies) for record in records]
    (folder / "data/chat.json").write_text(json.dumps(rows))
    return len(rows)


def against_decoding(model, folder, source, copies):
    """Runs long enough that their start counts little, beside nothing but decoding the same files."""
    rows = make_data(folder, source, copies)
    decoding, made = [], []
    for _ in range(rounds):
        decoding.append(bench("decode_images", folder / "data/images", copies // 5))
        made.append(ours(model, folder, 2))
        shutil.rmtree(made[-1]["output"])
    alone = statistics.median(run["rows_per_cpu_s"] for run in decoding)
    whole = statistics.median(run["rows_per_cpu_s"] for run in made)
    side = round(decoding[0]["pixels_per_row"] ** 0.5)
    print(f"| {source.name}, {side}² pixels on average | {rows} | {alone:.0f} | {whole:.0f} | {100 * whole / alone:.0f} % |", flush=True)


def threads_cpu(pid, into):
    """CPU seconds of each named thread, as last seen."""
    while True:
        try:
            for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
                into[task.name] = ((task / "comm").read_text().strip(), int((task / "schedstat").read_text().split()[0]) / 1e9)
        except (FileNotFoundError, ProcessLookupError):
            return
        time.sleep(0.02)


def ours(model, folder, workers, pixels="predicted"):
    output = pathlib.Path(tempfile.mkdtemp(dir=folder))
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    child = subprocess.Popen([programs / "preprocess", "shards", "--model", model, "--data", folder / "data", "--output", output,
                              "--workers", str(workers), "--pixels", pixels], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    threads = {}
    watcher = threading.Thread(target=threads_cpu, args=(child.pid, threads), daemon=True)
    watcher.start()
    assert child.wait() == 0
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    by_name = collections.Counter()
    for name, seconds in threads.values():
        by_name[name] += seconds
    index = json.loads((output / "index.json").read_text())
    rows = index["counts"]["train"]
    stored = sum(shard["bytes"] for shard in index["shards"])
    return dict(output=output, rows=rows, rows_per_cpu_s=rows / cpu, rows_per_s=rows / wall, kb_per_row=stored / rows / 1000,
                threads={name: seconds / rows * 1000 for name, seconds in by_name.items()})


def bench(name, *arguments):
    command = ["cargo", "bench", "--quiet", "-p", "preprocess", "--bench", name, "--", *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def peer(model, folder, backend):
    script = pathlib.Path(__file__).resolve().parent / "peers/peer_preprocess.py"
    run = subprocess.run([sys.executable, script, "--model", model, "--data", data, "--output", folder / "peer.parquet", "--backend", backend,
                          "--repeat", str(repeat)], capture_output=True, text=True, env=quiet)
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout.splitlines()[-1])


def main():
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        model = folder / "model"
        model.mkdir()
        make_model(model)
        rows = make_data(folder, data, repeat)

        peers = {backend: peer(model, folder, backend) for backend in ("pil", "torchvision")}
        runs = collections.defaultdict(list)
        for _ in range(rounds):
            runs["decode"].append(bench("decode_images", data / "images", repeat))
            for workers in (1, 2):
                runs[workers].append(ours(model, folder, workers))
        medians = {key: statistics.median(run["rows_per_cpu_s"] for run in found) for key, found in runs.items()}
        print(f"{rows} rows; medians of {rounds} runs\n")
        print("| | rows a CPU-second | rows a second | KB a row |\n|---|---|---|---|")
        for backend, run in peers.items():
            print(f"| transformers ({backend}) + datasets, 2 processes | {run['rows_per_cpu_s']:.1f} | {run['rows_per_s']:.1f} | {run['bytes_per_row'] / 1000:.0f} |")
        for workers in (1, 2):
            wall = statistics.median(run["rows_per_s"] for run in runs[workers])
            print(f"| preprocess shards, --workers {workers} | {medians[workers]:.0f} | {wall:.0f} | {runs[workers][0]['kb_per_row']:.1f} |")
        print(f"| decoding the JPEGs alone, 1 thread | {medians['decode']:.0f} | | |")
        best = max(run["rows_per_cpu_s"] for run in peers.values())
        print(f"\nrows a CPU-second against the better Python backend: {medians[2] / best:.1f} times")
        print("CPU milliseconds a row by thread (2 workers): ", {name: round(ms, 3) for name, ms in sorted(runs[2][0]["threads"].items())})
        print("\n| photos | rows | decoding alone, rows a CPU-second | shards, rows a CPU-second | |\n|---|---|---|---|---|")
        against_decoding(model, folder / "large", shared / "data/coco_tiny", 100)
        against_decoding(model, folder / "small", data, 50)
        print("\n| format | KB a row | rows read a CPU-second, at random |\n|---|---|---|")
        for pixels in ("predicted", "u8", "f32", "f16", "jpeg"):
            made = ours(model, folder, 2, pixels)
            read = [bench("read_rows", made["output"], 1500) for _ in range(rounds)]
            print(f"| {pixels} | {made['kb_per_row']:.1f} | {statistics.median(run['rows_per_cpu_s'] for run in read):.0f} |")


main()
