"""Part `ranks` of tests/gpu/run: several ranks, and NCCL with one.

The exact comparisons are of a tiny model without clipping, because the norm of a gradient is summed in another order on a device. On a
machine with one GPU, NCCL has one rank, and two ranks share the GPU through the host's memory; with more, two ranks have a GPU each.
"""
import os
import shutil

STEPS = 8
EXACT = ["--max_grad_norm", "0"]
# Largest relative difference of a loss: the same sums, sums of two ranks in f32, and NCCL's order of sums.
SAME, OF_RANKS, OF_NCCL = 1e-6, 1e-3, 1e-4


def part(machine, failed):
    """`failed`: the exception of a command that fails. Gives results and lines of the table."""
    report = Report(machine)
    said = machine.command([machine.programs / "train", "devices"])
    rows = {line.split()[0]: line for line in said.splitlines() if line.strip()}
    nccl = rows.get("NCCL", "")
    has_nccl = bool(nccl) and "no NCCL" not in nccl
    gpus = sum(line.startswith("cuda:") for line in said.splitlines())

    host = losses(machine, "--collective", "host")
    if has_nccl:
        report.compare("NCCL, one rank, against no collective", losses(machine, "--collective", "nccl"), host, SAME)
    else:
        report.lines.append(f"left out, NCCL with one rank: {nccl or 'no row NCCL in train devices'}")
    report.compare("two ranks on one GPU through the host, against one rank with their rows",
                   losses(machine, "--nproc", 2, "--collective", "host", rows=4), host, OF_RANKS)
    if gpus < 2 and has_nccl:
        report.refused(failed, "two threads on one GPU by NCCL", "found 1 GPU", "--nproc", 2, "--collective", "nccl")
    if has_nccl and shutil.which("mpiexec"):
        report.refused(failed, "two processes on one GPU by NCCL", "share a GPU", "--collective", "nccl", before=["mpiexec", "-n", 2],
                       env={"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]})
    if has_nccl and gpus > 1:
        two = losses(machine, "--nproc", 2, "--collective", "host", rows=4)
        report.compare("two GPUs by NCCL, against the host", losses(machine, "--nproc", 2, "--collective", "nccl", rows=4), two, OF_NCCL)
        for collective in ("host", "nccl"):
            steps = machine.train(False, "lora", "cuda", 5, "--bf16", "true", "--nproc", 2, "--collective", collective)
            seconds = sorted(line["step_seconds"] for line in steps[2:])
            rate = 2 * 8 / seconds[len(seconds) // 2]
            report.found[f"real job, two GPUs, {collective}: rows/s"] = rate
            report.lines.append(f"the real job with LoRA on two GPUs, {collective}: {rate:.1f} rows/s")
    elif gpus < 2:
        report.lines.append("left out, two GPUs by NCCL: there is one GPU")
    return report.found, report.lines


def losses(machine, *options, rows=8):
    """Of each step; `rows` of each rank."""
    lines = machine.train(True, "full", "cuda", STEPS, *EXACT, "--per_device_train_batch_size", rows, *options)
    return [line["loss"] for line in lines if "loss" in line]


class Report:
    def __init__(self, machine):
        self.machine, self.found, self.lines = machine, {}, []

    def add(self, line, is_right):
        self.lines.append(line if is_right else f"{line}: WRONG")
        if not is_right and not self.machine.dry:
            self.found.setdefault("wrong", []).append(line)

    def compare(self, name, found, expected, most):
        if len(found) != len(expected) or not found:
            return self.add(f"{name}: {len(found)} losses, {len(expected)} expected", False)
        # Beside the driver that counts, losses are 0.
        error = max(abs(a - b) / max(abs(b), 1e-30) for a, b in zip(found, expected))
        self.found[name] = {"losses": found, "expected": expected, "error": error}
        self.add(f"{name}: largest relative difference of {len(found)} losses: {error:.1e} (at most {most:g})", error <= most)

    def refused(self, failed, name, words, *options, before=(), env=None):
        """A run that must end before it begins, with some words."""
        model, shards, _ = self.machine.job(True)
        output = self.machine.work / "refused"
        command = [*before, self.machine.programs / "train", "--model_name_or_path", model, "--data_path", shards, "--output_dir", output,
                   "--device", "cuda", "--train_type", "none", "--max_steps", 1, *options]
        try:
            self.machine.command(command, env=env or {})
        except failed as error:
            return self.add(f"{name}: refused", words in str(error))
        self.add(f"{name}: expected an error with {words!r}, it ran", False)
