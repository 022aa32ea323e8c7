"""Observers that keep a run in an experiment tracker: losses, scores, cost and samples of every cell.

One shape, that of wandb: trackio has it, Weights & Biases is it, and MLflow is put into it. None needs an account or a
network: without settings of their own in the environment they write into the run's folder.
"""

from __future__ import annotations

import importlib
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from unlearnbench.domain import CellStatus
from unlearnbench.errors import UsageError
from unlearnbench.records.record import SAMPLES, Record, read_record
from unlearnbench.records.run_folder import RECORD
from unlearnbench.storage import read_rows

SHOWN = 100
"""Most samples of a cell that a tracker is given."""


class Tracker(Protocol):
    """What the observer needs of a tracker; one run of it for each cell."""

    def start(self, project: str, name: str, group: str, config: Mapping[str, Any]) -> None:
        """Begin a run."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Finite numbers by name."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]], step: int) -> None:
        """A table of texts."""

    def finish(self) -> None:
        """End the run."""


class WandbShaped:
    """A module with ``init``, ``log``, ``Table`` and ``finish``.

    Args:
        more: further arguments of ``init``.
    """

    def __init__(self, module: Any, **more: Any) -> None:
        self._module, self._more = module, more

    def start(self, project: str, name: str, group: str, config: Mapping[str, Any]) -> None:
        self._module.init(project=project, name=name, group=group, config=dict(config), **self._more)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._module.log(dict(values), step=step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]], step: int) -> None:
        table = self._module.Table(columns=list(columns), data=[list(row) for row in rows])
        self._module.log({name: table}, step=step)

    def finish(self) -> None:
        self._module.finish()


class Mlflow:
    """MLflow's fluent functions in that shape: a project is an experiment, a table an artifact."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def start(self, project: str, name: str, group: str, config: Mapping[str, Any]) -> None:
        self._module.set_experiment(project)
        self._module.start_run(run_name=name, tags={"benchmark": group})
        self._module.log_params({_plain(key): str(value)[:6000] for key, value in config.items()})

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._module.log_metrics({_plain(name): value for name, value in values.items()}, step=step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]], step: int) -> None:
        self._module.log_dict({"columns": list(columns), "data": [list(row) for row in rows]}, f"{_plain(name)}.json")

    def finish(self) -> None:
        self._module.end_run()


def _plain(name: str) -> str:
    """A name in the letters that MLflow takes."""
    return re.sub(r"[^\w\-. :/]", "_", name)[:250]


def _trackio(run: Path) -> Tracker:
    os.environ.setdefault("TRACKIO_DIR", str(run / "trackio"))
    return WandbShaped(importlib.import_module("trackio"), embed=False, auto_log_gpu=False, auto_log_cpu=False)


def _wandb(run: Path) -> Tracker:
    os.environ.setdefault("WANDB_MODE", "offline")
    os.environ.setdefault("WANDB_SILENT", "true")
    return WandbShaped(importlib.import_module("wandb"), dir=str(run))


def _mlflow(run: Path) -> Tracker:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    if "MLFLOW_TRACKING_URI" not in os.environ:
        # Its folder of files needs no database, but MLflow wants to be told that it is meant.
        os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
        os.environ["MLFLOW_TRACKING_URI"] = (run / "mlruns").resolve().as_uri()
    return Mlflow(importlib.import_module("mlflow"))


TRACKERS: Mapping[str, Callable[[Path], Tracker]] = {"trackio": _trackio, "wandb": _wandb, "mlflow": _mlflow}


class TrackerObserver:
    """A plugin that tells a tracker of every cell that a run finishes.

    Cells that the run kept from before were told then.

    Raises:
        UsageError: there is no such tracker, or its package is not installed.
    """

    def __init__(self, name: str, run: Path) -> None:
        if name not in TRACKERS:
            raise UsageError(f"no tracker {name!r}; there are {', '.join(TRACKERS)}")
        try:
            self._tracker = TRACKERS[name](run)
        except ImportError as error:
            raise UsageError(f"--tracker {name}: {error}; pip install 'unlearnbench[{name}]'") from error
        self._run = run

    def unlearnbench_cell_finished(self, cell: str, status: Mapping[str, Any]) -> None:
        if status["status"] == CellStatus.DONE and not status["kept"]:
            folder = self._run / "cells" / cell
            tell(self._tracker, self._run.name, read_record(folder / RECORD), folder)


def tell(tracker: Tracker, project: str, record: Record, folder: Path) -> None:
    """Tell a tracker of one cell, as a run of its own."""
    who = record.identity
    facts = {
        name: getattr(who, name) for name in ("method", "benchmark", "model", "seed", "repeat", "setting", "attack")
    }
    tracker.start(project, record.cell, who.benchmark, {**who.hyperparameters, **facts, "cell": record.cell})
    try:
        for step, loss in enumerate(record.losses, 1):
            if math.isfinite(loss):
                tracker.log({"loss": loss}, step)
        last = len(record.losses) + 1
        scores = {f"scores/{name}": entry.value for name, entry in record.scores.items() if math.isfinite(entry.value)}
        cost = {f"cost/{stage} seconds": seconds for stage, seconds in record.cost.seconds.items()}
        cost |= {
            "cost/optimiser steps": float(record.cost.optimiser_steps),
            "cost/training tokens": float(record.cost.training_tokens),
            "cost/peak memory bytes": float(record.cost.peak_memory_bytes),
        }
        tracker.log({**scores, **cost}, last)
        if record.samples.shown == "public":
            rows = [row for row in read_rows(folder / SAMPLES) if "generation" in row][:SHOWN]
            columns = ("part", "prompt", "truth", "generation")
            tracker.table("samples", columns, [[str(row.get(name, "")) for name in columns] for row in rows], last)
    finally:
        tracker.finish()
