"""Reads ``eval_log_aggregated.json``, the log of locuslab/tofu, into measurements."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unlearnbench import DataError, LogFile, Measurement

from .benchmark import Tofu

# The log's section for each part.
SECTIONS = {
    "retain": "eval_log.json",
    "real_authors": "eval_real_author_wo_options.json",
    "world_facts": "eval_real_world_wo_options.json",
    "forget": "eval_log_forget.json",
}
FIELDS = (
    "avg_gt_loss",
    "average_perturb_loss",
    "avg_paraphrased_loss",
    "generated_text",
    "num_token_gt",
    "num_token_paraphrased",
    "num_token_perturb",
)

Row = dict[str, Any]


def read(path: Path, retained: Path | None, align: bool) -> LogFile:
    """The log's rows as a measurement, with the retained model's if its log is given.

    Reads each metric as a mapping by row number, or as a list in row order (licong-lin's release of NPO).

    Args:
        align: keep the forget rows that both logs share, identified by question and answer.

    Raises:
        DataError: a file is absent, not this format, or (without ``align``) the logs hold different forget rows.
    """
    mine = _rows(path)
    notes = [f"{part}: {sum(row['part'] == part for row in mine)} rows" for part in SECTIONS]
    theirs = _rows(retained) if retained else None
    if theirs is not None and align:
        mine, theirs, shared = _aligned(mine, theirs)
        notes.append(f"forget rows shared by both logs: {shared}")
    measurement = None if theirs is None else Measurement(tuple(theirs))
    return LogFile("tofu", Tofu(), Measurement(tuple(mine)), measurement, tuple(notes))


def _rows(path: Path) -> list[Row]:
    try:
        log = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; name an eval_log_aggregated.json") from None
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(f"{path} is not a JSON log ({error}); copy it again") from error
    rows = []
    for part, section in SECTIONS.items():
        if not isinstance(log, dict) or section not in log:
            raise DataError(f"{path} has no section {section!r}; expected locuslab/tofu's eval_log_aggregated.json")
        rows += _section(path, part, section, log[section])
    return rows


def _section(path: Path, part: str, section: str, content: Any) -> list[Row]:
    where = f"{path}, {section}"
    if not isinstance(content, Mapping):
        raise DataError(f"{where}: expected metrics by name, found {_kind(content)}")
    for field in FIELDS:
        if field not in content:
            raise DataError(f"{where}: field {field!r} is missing")
    columns = {field: _by_row(where, field, content[field]) for field in FIELDS}
    rows = []
    for key in columns["avg_gt_loss"]:
        cells = {}
        for field, column in columns.items():
            if key not in column:
                raise DataError(f"{where}, row {key}: {field} has no value")
            cells[field] = column[key]
        try:
            prompt, generation, truth = cells["generated_text"]
            row = {
                "part": part,
                "index": key,
                "prompt": prompt,
                "truth": truth,
                "generation": generation,
                "answer": [float(cells["avg_gt_loss"]), int(cells["num_token_gt"])],
                "perturbed": _pairs(cells["average_perturb_loss"], cells["num_token_perturb"]),
            }
            # For real authors and world facts this is a second forward pass over the answer, equal up to bf16 noise.
            row["paraphrase"] = [float(cells["avg_paraphrased_loss"]), int(cells["num_token_paraphrased"])]
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(f"{where}, row {key}: a field is not what the release writes ({error})") from error
        if not all(isinstance(row[name], str) for name in ("prompt", "truth", "generation")):
            raise DataError(f"{where}, row {key}: generated_text is not prompt, generation and truth as texts")
        rows.append(row)
    return rows


def _by_row(where: str, field: str, column: Any) -> dict[int, Any]:
    """A metric's values by row number: locuslab/tofu writes a mapping, the release of NPO a list in row order."""
    if isinstance(column, list):
        return dict(enumerate(column))
    if not isinstance(column, Mapping):
        raise DataError(f"{where}: {field} is {_kind(column)}, expected a value for each row")
    try:
        return dict(sorted((int(key), value) for key, value in column.items()))
    except ValueError as error:
        raise DataError(f"{where}: {field} has a row that is no number ({error})") from error


def _kind(value: Any) -> str:
    return {list: "a list", dict: "a mapping", str: "a text", type(None): "nothing"}.get(type(value), "a number")


def _pairs(losses: Sequence[float], tokens: Sequence[int]) -> list[list[float]]:
    return [[float(loss), int(count)] for loss, count in zip(losses, tokens, strict=True)]


def _aligned(mine: list[Row], theirs: list[Row]) -> tuple[list[Row], list[Row], int]:
    """Both logs with the forget rows that they share, in the order of the first."""
    reference = {(row["prompt"], row["truth"]): row for row in theirs if row["part"] == "forget"}
    shared = [row for row in mine if row["part"] == "forget" and (row["prompt"], row["truth"]) in reference]
    if not shared:
        raise DataError("the two logs share no forget row, so forget quality has nothing to compare")
    partners = [reference[row["prompt"], row["truth"]] for row in shared]
    kept = [row for row in mine if row["part"] != "forget"]
    return kept + shared, [row for row in theirs if row["part"] != "forget"] + partners, len(shared)
