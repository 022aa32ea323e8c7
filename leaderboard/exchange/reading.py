"""Reads scores back from the formats that this package writes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from unlearnbench.errors import RecordError, UsageError

from . import every_eval_ever, lm_eval_results, model_card, spreadsheets
from .lines import ScoreLine, read_object


def read_scores(path: Path) -> list[ScoreLine]:
    """The scores of a file, or of all files below a folder that hold scores.

    Raises:
        UsageError: it does not exist.
        RecordError: nothing there is in a known format, or it was not written by unlearnbench.
    """
    if not path.exists():
        raise UsageError(f"{str(path)!r} does not exist; name a file or a folder that 'render --reporter' wrote")
    files = list(_files(path)) if path.is_dir() else [path]
    if not files:
        raise RecordError(f"{path} holds no file of scores: JSON of Every-Eval-Ever or lm-eval, README.md, or CSV")
    return [line for file in files for line in _read(file)]


def _files(folder: Path) -> Iterator[Path]:
    """The files of a folder that may hold scores; descriptions and samples beside them do not."""
    for path in sorted(folder.rglob("*")):
        is_scores = path.suffix == ".json" or path.name == "README.md" or path.suffix == ".csv"
        if is_scores and path.is_file() and not path.name.endswith(("-places.csv", "croissant.json", "records.json")):
            yield path


def _read(path: Path) -> list[ScoreLine]:
    if path.suffix == ".csv":
        return spreadsheets.read(path)
    if path.suffix == ".md":
        return model_card.read(path)
    content = read_object(path)
    if "evaluation_results" in content:
        return every_eval_ever.read(path)
    if "results" in content and "higher_is_better" in content:
        return lm_eval_results.read(path)
    raise RecordError(f"{path} is neither an Every-Eval-Ever record nor an lm-eval result")
