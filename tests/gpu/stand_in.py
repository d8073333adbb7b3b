"""A driver and a compiler in place of NVIDIA's, which count and record: programs built with CUDA run to their end where there is no
GPU, and compute nothing. See counting_driver.c and recording_nvrtc.c. With stand_in_cublas_lt.c, a library in cuBLASLt's place, which checks what it
is asked for and computes small products."""
import json
import os
import pathlib
import subprocess

HERE = pathlib.Path(__file__).resolve().parent
# As common/kernels/src/cuda/headers.rs looks for; nobody includes them here.
HEADERS = ["cuda_fp16.h", "cuda_bf16.h", "crt/mma.h", "cooperative_groups.h", "cuda/barrier"]


class StandIn:
    """Builds both libraries into a folder, and runs programs with them."""

    def __init__(self, folder, capability=90, cublas_lt=False):
        """With `cublas_lt`, products are asked of the library in cuBLASLt's place, else of burn's kernels."""
        self.folder, self.capability, self.cublas_lt = pathlib.Path(folder), capability, cublas_lt
        self.sources = self.folder / f"sources-sm{capability}"
        (self.folder / "lib64").mkdir(parents=True, exist_ok=True)
        self.sources.mkdir(exist_ok=True)
        for header in HEADERS:
            path = self.folder / "include" / header
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        compiler = os.environ.get("CC", "cc")
        for source, name in (("counting_driver.c", "libcuda.so.1"), ("recording_nvrtc.c", "libnvrtc.so.13"),
                             ("stand_in_cublas_lt.c", "libcublasLt.so.13")):
            library = self.folder / "lib64" / name
            if not library.exists() or library.stat().st_mtime < (HERE / source).stat().st_mtime:
                command = [compiler, "-O2", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", library, HERE / source, "-ldl", "-lm"]
                subprocess.run(command, check=True)

    def environment(self, counts, trace=None):
        library = str(self.folder / "lib64")
        return {
            **os.environ,
            **({"COUNTING_DRIVER_TRACE": str(trace), "LD_PRELOAD": str(self.folder / "lib64/libcuda.so.1")} if trace else {}),
            "LD_LIBRARY_PATH": os.pathsep.join(filter(None, [library, os.environ.get("LD_LIBRARY_PATH")])),
            "CUDA_PATH": str(self.folder),
            "COUNTING_DRIVER_LOG": str(counts),
            "COUNTING_DRIVER_CAPABILITY": str(self.capability),
            "RECORDING_NVRTC_SOURCES": str(self.sources),
            "LLAVA_CUDA_CUBLASLT": "1" if self.cublas_lt else "0",
            # Larger products are counted: the memory of their factors is never written.
            "STAND_IN_CUBLAS_LT_MOST": str(2**22),
            # What the driver computes is not the CPU's result.
            "LLAVA_CUDA_UNCHECKED": "1",
        }

    def said(self, command, timeout=600):
        """What a program writes to stdout, whatever its exit code."""
        words = [str(part) for part in command]
        done = subprocess.run(words, env=self.environment(self.folder / "counts.jsonl"), capture_output=True, text=True, timeout=timeout)
        return done.stdout or done.stderr

    def run(self, command, trace=None, timeout=600, zeros=False):
        """What a program asked of the driver. A process beside it (a guard) asks for nothing and is left out. `zeros`: all that it reads
        is zeros, for a program that goes on by what it reads."""
        counts, log = self.folder / "counts.jsonl", self.folder / "output.txt"
        counts.unlink(missing_ok=True)
        with open(log, "w") as output:
            environment = {**self.environment(counts, trace), **({"COUNTING_DRIVER_ZEROS": "1"} if zeros else {})}
            done = subprocess.run([str(part) for part in command], env=environment, stdout=output, stderr=subprocess.STDOUT,
                                  timeout=timeout)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(map(str, command))}\nended with {done.returncode}:\n{log.read_text()[-4000:]}")
        said = log.read_text()
        for wrong in ("panicked", "stand-in cuBLASLt:"):
            if wrong in said:
                raise RuntimeError(f"{' '.join(map(str, command))}\n{wrong}:\n{said[-4000:]}")
        lines = [json.loads(line) for line in counts.read_text().splitlines()]
        return max(lines, key=lambda line: line["launches"])
