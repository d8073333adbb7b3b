"""Puts what packaging/build has made ($LLAVA_STAGE) into the wheel, and names the platform ($LLAVA_PLATFORM)."""

import os
import subprocess
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

PROGRAMS = ["preprocess", "train", "infer", "pipelines"]


def stage() -> Path:
    given = os.environ.get("LLAVA_STAGE")
    if not given:
        raise SystemExit("LLAVA_STAGE is not set: start packaging/build, which sets it")
    return Path(given)


class Version(MetadataHookInterface):
    """The version of the programs is that of the wheel."""

    def update(self, metadata: dict) -> None:
        told = subprocess.run([stage() / "bin/pipelines", "-V"], check=True, capture_output=True, text=True)
        metadata["version"] = told.stdout.split()[1]


class Programs(BuildHookInterface):
    """Files and tag."""

    def initialize(self, version: str, build_data: dict) -> None:
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{os.environ['LLAVA_PLATFORM']}"
        for name in PROGRAMS:
            build_data["force_include"][str(stage() / "bin" / name)] = f"llava_rs/bin/{name}"
        build_data["force_include"][str(stage() / "LICENSE")] = "llava_rs/LICENSE"
        # Man pages, completions and recipes, below the environment's share/.
        build_data["shared_data"][str(stage() / "share")] = "share"
