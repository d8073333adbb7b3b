"""Largest differences of a log of tests/gpu/vulkan; fails where a test failed, was left out, or nothing was compared."""

import re
import sys

COMPARED = re.compile(
    r"^(?P<what>.*): (?:largest (?:relative )?difference|‖difference‖/‖[^‖]+‖) (?P<found>\S+)"
    r"(?: of the largest value)? \(tolerance (?P<tolerance>[0-9.e+-]+)"
)


def group(what):
    """The kernel and what it is held against; of the model, the number compared. None: another backend."""
    if what.startswith(("flex: ", "ndarray: ")):
        return None
    if what.startswith("vulkan: "):
        _, *where, part = what.split(": ")
        kind = "training" if any("ranks" in words or "train" in words for words in where) else "model"
        if "." in part:
            part = "weights" if kind == "training" else "gradients"
        return f"{kind}: {re.sub(r'row [0-9]+', 'decoding', part)}"
    against = re.search(r" (against the [a-zA-Z']+|with (NaN|-?inf)\b).*", what)
    kernel = re.match(r"its [a-z]+|[a-z_]+( of [a-z]+| on [a-z0-9]+)?", what)
    kernel = kernel[0] if kernel else what
    return f"{kernel}{re.sub(', part.*', '', against[0]) if against else ''}"


lines = open(sys.argv[1], encoding="utf-8").read().splitlines()
groups = {}
for line in lines:
    match = COMPARED.match(line)
    name = match and group(match["what"])
    if name:
        groups.setdefault(name, []).append((float(match["found"]), float(match["tolerance"])))
print(f"\n{'compared':52} number, largest difference, largest share of the tolerance")
for name, compared in sorted(groups.items()):
    share = max(found / tolerance if tolerance else found for found, tolerance in compared)
    print(f"{name:52} {len(compared):6} {max(compared)[0]:18.1e} {share:32.2f}")


def total(word):
    return sum(int(n) for line in lines for n in re.findall(rf"^test result: .* (\d+) {word};", line))


passed, failed, count = total("passed"), total("failed"), sum(map(len, groups.values()))
left_out = sorted({line for line in lines if line.startswith("not run: ")})
print("\n".join(left_out))
print(f"tests/gpu/vulkan: {passed} passed, {failed} failed, {count} comparisons, {len(left_out)} left out")
sys.exit(failed > 0 or not passed or not count or bool(left_out))
