"""What every node sets up from its spec: threads, device, seeds, plugins, data."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..contracts import PRECISIONS, Preparation, Task
from ..data.sources import DataSource, read_tables
from ..engine import process_group
from ..errors import (
    UsageError,
)
from ..plugin.registry import import_file
from ..plugin.specs import DataSpec, ModelSpec, resolve
from ..training import models


def set_threads(threads: int) -> None:
    if threads:
        torch.set_num_threads(threads)


def log(message: str) -> None:
    print(message, flush=True)


def device_of(run: Mapping[str, Any]) -> torch.device:
    """``auto`` is the first GPU where there is one."""
    name = run.get("device", "auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and process_group.processes() > 1:
        name = f"cuda:{process_group.local_rank()}"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"run.device = {name!r}: no GPU is visible here; use --device cpu")
    return torch.device(name)


def seed_everything(seed: int) -> None:
    """Global generators too: a stranger's method may use them."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _model_spec(spec: Mapping[str, Any]) -> ModelSpec:
    return ModelSpec(**{key: value for key, value in spec["model"].items() if key != "fingerprint"})


def load_plugin_files(spec: Mapping[str, Any]) -> None:
    for plugin in spec["plugins"].values():
        if os.sep in plugin["source"]:
            import_file(Path(plugin["source"]))


def prepare_task(spec: Mapping[str, Any], encoder: Any) -> tuple[Any, Task]:
    """The benchmark object and its prepared task; ``encoder`` as ``Preparation.encoder``."""
    entry = spec["benchmark"]
    data = entry["data"]
    tables = read_tables(_data_spec(data), DataSource(**spec["data"]))
    benchmark = resolve(entry["target"], entry["qualified"])(**entry["values"], **entry["fixed"])
    generated = spec["data"]["kind"] == "generated"
    return benchmark, benchmark.prepare(Preparation(tables, encoder, not spec["model"]["architecture"], generated))


def _data_spec(data: Mapping[str, Any]) -> DataSpec:
    fields = {key: value for key, value in data.items() if key != "fingerprints"}
    return DataSpec(**{**fields, "tables": {name: tuple(names) for name, names in data["tables"].items()}})


def autocast_of(spec: ModelSpec, device: torch.device) -> str:
    dtype = models.compute_dtype(spec, device)
    return next((name for name, precision in PRECISIONS.items() if precision == dtype), "no")


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
