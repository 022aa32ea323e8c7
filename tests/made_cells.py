"""Cells with the forgetting and utility that a test asks for, made from a finished run."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from unlearnbench.records.run_folder import StoredCell, stored_cells

# Values of TOFU's parts for the two references, and what unlearning moves from one to the other.
ORIGINAL = {"forget_rouge": 0.9, "forget_probability": 0.9, "forget_truth_ratio": 0.4, "model_utility": 0.6}
RETAINED = {"forget_rouge": 0.3, "forget_probability": 0.1, "forget_truth_ratio": 0.7, "model_utility": 0.6}
NOISE = 0.02


def part_values(forgetting: float, utility: float) -> dict[str, float]:
    values = {name: ORIGINAL[name] + forgetting * (RETAINED[name] - ORIGINAL[name]) for name in ORIGINAL}
    return {**values, "model_utility": utility * ORIGINAL["model_utility"]}


def stored(values: Any) -> str:
    return base64.b64encode(np.asarray(values, dtype="<f4").tobytes()).decode()


def with_parts(cell: StoredCell, values: Mapping[str, float], own: int) -> StoredCell:
    """The cell with these values, resampled with noise that all cells share and some of its own."""
    scores = dict(cell.record.scores)
    for name, value in values.items():
        shared = np.random.default_rng(sum(map(ord, name))).normal(0, NOISE, 1000)
        mine = np.random.default_rng([own, *map(ord, name)]).normal(0, NOISE / 4, 1000)
        update = {"value": value, "interval": None, "resamples": stored(value + shared + mine)}
        editions = {key: score.model_copy(update=update) for key, score in scores[name].editions.items()}
        scores[name] = scores[name].model_copy(update={**update, "editions": editions})
    return replace(cell, record=cell.record.model_copy(update={"scores": scores}))


@pytest.fixture
def cells_with(small_run: Any) -> Callable[..., list[StoredCell]]:
    """Makes references and methods; a method's numbers are (forgetting, utility), one pair for each seed."""
    found = {cell.identity.method: cell for cell in stored_cells(small_run[0])}

    def make(methods: Mapping[str, Any], validation: Mapping[str, Any] | None = None) -> list[StoredCell]:
        cells = []
        everything = {"original": (0.0, 1.0), "retained": (1.0, 1.0), **methods}
        for number, (label, numbers) in enumerate(everything.items()):
            method, _, setting = label.partition(":")
            runs = numbers if isinstance(numbers, list) else [numbers]
            for seed, (forgetting, utility) in enumerate(runs):
                cell = with_parts(found[method], part_values(forgetting, utility), 100 * number + seed)
                if setting or seed:
                    cell = renamed(cell, setting, seed, (validation or {}).get(label))
                elif validation and method in ("original", "retained"):
                    cell = renamed(cell, "", 0, numbers)
                cells.append(cell)
        return cells

    return make


def renamed(cell: StoredCell, setting: str, seed: int, validation: Any = None) -> StoredCell:
    """The cell as one of a sweep, or of another seed of unlearning from the same references."""
    identity = replace(cell.identity, setting=setting, repeat=seed)
    held_back = part_values(*validation) if validation else {}
    hyperparameters = {**cell.record.identity.hyperparameters, **({"setting": setting} if setting else {})}
    own = cell.record.identity.model_copy(
        update={"setting": setting, "repeat": seed, "hyperparameters": hyperparameters}
    )
    # A reference keeps its key, by which other cells name it.
    key = f"{cell.key}{setting}{seed}" if setting or seed else cell.key
    record = cell.record.model_copy(
        update={
            "identity": own,
            "cell": key,
            "selection": "score" if setting else "",
            "validation": {name: {"paper": value} for name, value in held_back.items()},
        }
    )
    return replace(cell, key=key, identity=identity, record=record)
