"""What every node sets up from its spec: threads, device, seeds, plugins, data."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..contracts import Benchmark, Context, Preparation, Task
from ..data.sources import read_tables
from ..engine import process_group
from ..engine.engine import Engine
from ..engine.numerics import PRECISIONS
from ..errors import UsageError
from ..plugin.registry import import_file
from ..plugin.specs import resolve
from ..records.code_digest import engine_digest
from ..records.node_spec import NodeSpec
from ..records.provenance import provenance
from ..training import models
from ..training.footprint import refuse_unfit, training_bytes


def log(message: str) -> None:
    """A line in the node's log."""
    print(message, flush=True)


def set_threads(threads: int) -> None:
    """Let torch use so many threads; 0 leaves it its own choice."""
    if threads:
        torch.set_num_threads(threads)


def use_deterministic() -> None:
    """Let torch refuse operations that may give other bits when they are run again. To be asked before CUDA starts.

    https://docs.pytorch.org/docs/stable/notes/randomness.html
    """
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    # It would fill all memory that is about to be written anyway.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def check_environment(spec: NodeSpec) -> None:
    """See that this process computes with the code and the libraries for which the node was planned.

    Raises:
        UsageError: it does not, and the study does not allow it.
    """
    if spec.run.other_environments or spec.engine == engine_digest():
        return
    planned, here = spec.provenance.get("packages", {}), provenance()["packages"]
    unequal = [f"{name} {here.get(name, 'none')} in place of {planned.get(name, 'none')}"
               for name in sorted(planned.keys() | here.keys()) if planned.get(name) != here.get(name)]  # fmt: skip
    raise UsageError(
        f"this worker's environment is not the one that the study was planned in: "
        f"{', '.join(unequal) or 'other source code of unlearnbench'}; install the same in both, or allow it with "
        "--set run.other_environments=true, which keeps such rows from being ranked together"
    )


def device_of(name: str) -> torch.device:
    """The device that a setting names; ``auto`` is the first GPU where there is one.

    Of several GPUs this process sees from then on only the one that is named, as its first: libraries take the first
    for theirs. To be asked before anything starts CUDA.

    Raises:
        UsageError: a GPU is named and none is visible.
    """
    if name.startswith("cuda:"):
        _see_only(name)
        place = "cuda:0"
    elif name == "auto":
        place = "cuda" if torch.cuda.is_available() else "cpu"
    else:
        place = name
    if place == "cuda" and process_group.processes() > 1:
        place = f"cuda:{process_group.local_rank()}"
    if place.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"run.device = {name!r}: no GPU is visible here; use --device cpu")
    return torch.device(place)


def _see_only(name: str) -> None:
    """Hide all GPUs but ``cuda:N``, the N-th of those that are visible."""
    place = int(name.removeprefix("cuda:"))
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = None if shown is None else [entry.strip() for entry in shown.split(",") if entry.strip()]
    if visible is not None and place >= len(visible):
        raise UsageError(f"run.device = {name!r}: CUDA_VISIBLE_DEVICES shows {len(visible)}; they are numbered from 0")
    # Numbers name the same cards in every process, and those that nvidia-smi shows.
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    os.environ["CUDA_VISIBLE_DEVICES"] = str(place) if visible is None else visible[place]


def check_fits(spec: NodeSpec, device: torch.device) -> None:
    """Refuse to train what a GPU has no room for, before its weights are loaded.

    Raises:
        UsageError: the trained weights with their states alone are larger than its memory.
    """
    shape, rank, count = spec.model.shape, spec.model.spec.lora_rank, spec.run.processes
    if device.type == "cuda" and shape:
        available = torch.cuda.mem_get_info(device)[1]
        refuse_unfit(
            spec.title,
            spec.run.optimiser,
            available,
            lambda optimiser: training_bytes(shape, optimiser, rank=rank, processes=count),
        )


def seed_everything(seed: int) -> None:
    """Seed the global generators too: a stranger's method may use them."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def load_plugin_files(spec: NodeSpec) -> None:
    """Import the plugins that are files, so that their targets resolve in this process."""
    for plugin in spec.plugins.values():
        if os.sep in plugin.source:
            import_file(Path(plugin.source))


def prepare_task(spec: NodeSpec, encoder: Any) -> tuple[Benchmark, Task]:
    """The benchmark object and its prepared task; ``encoder`` as ``Preparation.encoder``."""
    planned = spec.benchmark
    tables = read_tables(planned.data, spec.source)
    benchmark: Benchmark = resolve(planned.target, planned.qualified)(**planned.settings)
    preparation = Preparation(
        tables, encoder, pretrained=not spec.model.from_scratch, generated=spec.source.kind == "generated"
    )
    return benchmark, benchmark.prepare(preparation)


def context_of(spec: NodeSpec, name: str, seed: int, device: torch.device) -> Context:
    """What a node's method or training is given: in the precision of its model, and with the study's optimiser."""
    dtype = models.compute_dtype(spec.model.spec, device)
    autocast = next((name for name, precision in PRECISIONS.items() if precision == dtype), "no")
    return Context(name, seed, Engine(device), log, autocast=autocast, optimiser=spec.run.optimiser)


def synchronise(device: torch.device) -> None:
    """Wait for a GPU, so that its work is in the time of this stage."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
