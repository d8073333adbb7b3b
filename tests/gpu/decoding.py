"""Part `decode` of tests/gpu/run: tokens a second of one row, by format of the weights, and of eight; the share of the memory's
bandwidth that reading the weights takes."""
import json
import time

# Bytes/s of memory.
BANDWIDTH = {"H200": 4.8e12, "H100": 3.35e12, "GH200": 4.0e12, "B200": 8.0e12, "A100": 2.0e12, "L40S": 0.864e12, "4090": 1.008e12}
# Bytes of a value.
FORMATS = {"stored": 2, "int8": 1, "nf4": 0.52}
ROWS = 8


def part(machine, failed):
    """`failed`: the exception of a command that fails. Gives results and lines of the table."""
    model, _, image = machine.job(False)
    infer, options = machine.programs / "infer", ["--model", model, "--device", "cuda"]
    tokens = 12 if machine.dry else 136
    found, lines = {}, []
    for name, bytes_of_value in FORMATS.items():
        command = [infer, "generate", *options, "--weights", name, "--image", image, "--prompt", "what is it", "--max-new-tokens", tokens, "--json"]
        try:
            said = json.loads(machine.command(command, env=machine.zeros).splitlines()[-1])
        except failed as error:
            # The other formats have their own kernels: without one of them the rest still counts.
            if name == "stored":
                raise
            found[name] = {"failed": str(error)}
            lines.append(f"one row, {name}: {error}")
            continue
        rate = said["decode_tokens_per_second"]
        found[name] = {"tokens_per_second": rate, "first_token_seconds": said["first_token_seconds"]}
        lines.append(f"one row, {name}: {rate:.1f} tokens/s{share(machine, found[name], rate, read_values(model) * bytes_of_value)}; "
                     f"first token after {said['first_token_seconds']:.2f} s")
    seconds = {}
    for count in (tokens // 4, tokens):
        start = time.monotonic()
        output = machine.work / f"captions-{count}.jsonl"
        machine.command([infer, "caption", *options, "--images", image.parent, "--limit", ROWS, "--batch-size", ROWS, "--max-new-tokens", count,
                         "--output", output], env=machine.zeros)
        seconds[count] = time.monotonic() - start
        output.unlink(missing_ok=True)
    # Random weights: rows may end before the limit, which makes the rate a lower bound.
    each = max(seconds[tokens] - seconds[tokens // 4], 1e-9) / (tokens - tokens // 4)
    found["eight rows"] = {"seconds": seconds, "tokens_per_second": ROWS / each}
    lines.append(f"{ROWS} rows, stored: {ROWS / each:.1f} tokens/s of all{share(machine, found['eight rows'], 1 / each, read_values(model) * 2)}")
    return found, lines


def read_values(model):
    """Values of the language model that a step reads: all but the embeddings."""
    text = json.loads((model / "config.json").read_text())["text_config"]
    width, inner, layers = text["hidden_size"], text["intermediate_size"], text["num_hidden_layers"]
    kv = width // text["num_attention_heads"] * text["num_key_value_heads"]
    return layers * (2 * width * width + 2 * width * kv + 3 * width * inner) + text["vocab_size"] * width


def share(machine, found, steps_per_second, bytes_of_step):
    peak = next((peak for name, peak in BANDWIDTH.items() if name in machine.gpu), None)
    if peak is None:
        return ""
    found["share_of_bandwidth"] = bytes_of_step * steps_per_second / peak
    return f", {found['share_of_bandwidth']:.0%} of {machine.gpu}'s memory bandwidth"
