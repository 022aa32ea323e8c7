"""The origin of a result: versions, commit, machine. Imports no torch."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "unlearnbench torch transformers tokenizers accelerate datasets peft torchao numpy scipy rouge-score nltk "
    "sacrebleu pluggy lm_eval"
).split()
DRIVER = Path("/proc/driver/nvidia")
"""The folder in which NVIDIA's driver lists its version and its GPUs."""


def device_kind(device: str) -> str:
    """``cpu`` or ``cuda`` for a device setting: ``auto`` is a GPU where a driver shows one. Imports no torch."""
    if device != "auto":
        return device.partition(":")[0]
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") == ""
    return "cuda" if (DRIVER / "version").exists() and not hidden else "cpu"


def devices(device: str) -> list[str]:
    """The devices that a setting allows: ``auto`` is every visible GPU, or the CPU. Imports no torch."""
    if device != "auto":
        return [device]
    if device_kind(device) == "cpu":
        return ["cpu"]
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = len(named.split(",")) if named else len(list((DRIVER / "gpus").glob("*")))
    return [f"cuda:{number}" for number in range(max(count, 1))]


def device_memory(device: str) -> float | None:
    """Bytes of memory of the smallest GPU that a setting allows; None where nvidia-smi does not say."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    entries = [entry.strip() for entry in named.split(",") if entry.strip()]
    place = device.partition(":")[2]
    if place:
        entries = entries[int(place) :][:1] if entries else [place]
    words = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(
            [*words, *([f"--id={','.join(entries)}"] if entries else [])],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        ).stdout
        return min(float(line) for line in said.split()) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


@cache
def provenance() -> dict[str, Any]:
    """Package versions, the harness's git commit where it runs from a checkout, and the machine."""
    return {
        "python": platform.python_version(),
        "packages": {name: version for name, version in versions(PACKAGES).items() if version},
        "git": _git(Path(__file__).resolve().parents[1]),
        "machine": {
            "system": f"{platform.system()} {platform.release()}",
            "processor": _processor(),
            "cores": usable_cores(),
        },
    }


def usable_cores() -> int:
    """Number of processors that this process may use, by affinity, control group and ``OMP_NUM_THREADS``."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:
        cores = os.cpu_count() or 1
    bounds = [cores, *_control_group_cores()]
    named = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    if named.isdigit() and int(named):
        bounds.append(int(named))
    return max(1, min(bounds))


CONTROL_GROUP = Path("/sys/fs/cgroup")


def _control_group_cores() -> list[int]:
    """A container's quota of processor time in whole processors; empty without a quota."""
    try:
        quota, period = (CONTROL_GROUP / "cpu.max").read_text(encoding="ascii").split()
        return [] if quota == "max" else [max(1, int(quota) // int(period))]
    except (OSError, ValueError, ZeroDivisionError):
        return []


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The installed version of every distribution; an empty text where it is not installed."""
    return {name: _version(name) for name in packages}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _git(folder: Path) -> dict[str, Any] | None:
    """Commit and whether tracked files differ from it; None outside a checkout of this project."""
    if not (folder.parent / ".git").exists():
        return None

    def ask(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in text.split("\n") if line.startswith("model name")]
    return names[0] if names else platform.processor()
