"""The programs preprocess, train, infer and pipelines. Each entry point replaces this process by its program."""

import os
import sys
from pathlib import Path

PROGRAMS = ("preprocess", "train", "infer", "pipelines")


def path(name):
    """The file of a program."""
    return str(Path(__file__).parent / "bin" / name)


def _run(name, called, arguments):
    # The first word is how the program was called: command lines that it prints for the user begin with it.
    os.execv(path(name), [called, *arguments])


def preprocess():
    _run("preprocess", sys.argv[0], sys.argv[1:])


def train():
    _run("train", sys.argv[0], sys.argv[1:])


def infer():
    _run("infer", sys.argv[0], sys.argv[1:])


def pipelines():
    _run("pipelines", sys.argv[0], sys.argv[1:])


def prefixed():
    """`llava-rs PROGRAM …`"""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in PROGRAMS:
        is_help = name in ("", "-h", "--help")
        stream = sys.stdout if is_help else sys.stderr
        found = "" if is_help else f"error: {name}: no such program\n"
        print(f"{found}Usage: llava-rs {{{','.join(PROGRAMS)}}} [OPTIONS]", file=stream)
        raise SystemExit(0 if is_help else 2)
    beside = os.path.join(os.path.dirname(sys.argv[0]), name)
    # Under python -m there is nothing beside this file.
    _run(name, beside if os.path.exists(beside) else path(name), sys.argv[2:])
