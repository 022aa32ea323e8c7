"""Reads the logs of muse_bench's evaluation, one folder a model, into measurements."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from unlearnbench import DataError, LogFile, Measurement

from .benchmark import MuseNews

PARTS = ("verbmem_f", "knowmem_f", "knowmem_r")
MIN_K = "Min-40%"

Row = dict[str, Any]


def read(path: Path, retained: Path | None, align: bool) -> LogFile:
    """The rows of ``<path>/<part>/log.json`` as a measurement, with the retained model's if its folder is given.

    Raises:
        DataError: a file is absent, truncated or not this format; or ``align`` is on, which these logs do not
            support (their privleak rows hold numbers alone).
    """
    if align:
        raise DataError("--align: muse logs name no privleak texts, so their rows cannot be told apart; leave it out")
    mine = _rows(path)
    notes = [f"{part}: {sum(row['part'] == part for row in mine)} rows" for part in sorted({r["part"] for r in mine})]
    theirs = None if retained is None else Measurement(tuple(_rows(retained)))
    return LogFile("muse-news", MuseNews(), Measurement(tuple(mine)), theirs, tuple(notes))


def _rows(folder: Path) -> list[Row]:
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; name one with verbmem_f/log.json, knowmem_f/log.json, …")
    rows = [row for part in PARTS for row in _written(folder / part / "log.json", part)]
    path = folder / "privleak" / "log.json"
    log = _parsed(path)
    for part in ("forget", "holdout"):
        if not isinstance(log, dict) or not isinstance(log.get(part), list):
            raise DataError(f"{path} has no list {part!r}; expected muse_bench's privleak log")
        for index, entry in enumerate(log[part]):
            try:
                value = float(entry[MIN_K])
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                raise DataError(f"{path}, {part}, text {index}: no {MIN_K} ({type(error).__name__})") from error
            min40 = None if math.isnan(value) else value
            rows.append({"part": f"privleak_{part}", "index": index, "min40": min40})
    return rows


def _written(path: Path, part: str) -> list[Row]:
    log = _parsed(path)
    if not isinstance(log, list):
        raise DataError(f"{path} is not a list of rows; expected muse_bench's {part} log")
    rows = []
    for index, entry in enumerate(log):
        try:
            texts = {"truth": entry["gt"], "generation": entry["response"], "prompt": entry["prompt"]}
        except (KeyError, TypeError) as error:
            raise DataError(f"{path}, row {index}: incomplete ({type(error).__name__}: {error})") from error
        for field, text in texts.items():
            if not isinstance(text, str):
                raise DataError(f"{path}, row {index}: its {field} is {type(text).__name__}, expected text")
        rows.append({"part": part, "index": index, **texts})
    return rows


def _parsed(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise DataError(
            f"{path} does not exist; a muse log folder has verbmem_f, knowmem_f, knowmem_r and privleak, "
            "each with a log.json"
        ) from None
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(f"{path} is not a JSON log ({error}); copy it again") from error
