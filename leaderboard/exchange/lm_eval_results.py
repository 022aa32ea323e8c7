"""Results in the shape of lm-eval's JSON, so that what reads its results reads ours: a file for each cell.

The shape is that of lm_eval's ``EvaluationTracker`` (0.4); lm-eval did not compute the scores, and no version of it is
named. It holds no intervals, and of a metric's direction whether higher is better.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from unlearnbench.domain import Direction
from unlearnbench.errors import RecordError
from unlearnbench.plugin.registry import Registry
from unlearnbench.records.record import Record
from unlearnbench.records.results import Results
from unlearnbench.storage import write_bytes

from .lines import (
    ScoreLine,
    base_model,
    benchmark_spec,
    export_time,
    finished_cells,
    hub_data,
    identity_of,
    lines_of,
    plain_name,
    read_identity,
    read_object,
    standard_error,
    unlearned_model,
)

FILTER = "none"
"""The name of lm-eval's filter that changes nothing."""


def render(results: Sequence[Results], out: Path, registry: Registry) -> Path:
    """Write ``out/<model>--<method>/results_<cell>.json`` for each cell, and return ``out``.

    Raises:
        StorageError: the disk refused a write.
    """
    for _, cell in finished_cells(results):
        record = cell.record
        model = unlearned_model(record)
        content = json.dumps(_content(record, model, registry), indent=2, ensure_ascii=False)
        write_bytes(out / model / f"results_{plain_name(record.cell)}.json", content.encode("utf-8", "replace") + b"\n")
    return out


def _content(record: Record, model: str, registry: Registry) -> dict[str, Any]:
    lines = lines_of(record)
    task, seconds = plain_name(record.identity.benchmark), export_time()
    spec = benchmark_spec(record, registry)
    scores: dict[str, Any] = {"name": task, "alias": record.identity.benchmark, "sample_len": max(_rows(lines))}
    for line in lines:
        error = standard_error(record.scores[line.metric])
        measured = math.isfinite(line.value)
        scores[f"{line.metric},{FILTER}"] = line.value if measured else "N/A"
        scores[f"{line.metric}_stderr,{FILTER}"] = error if measured and error is not None else "N/A"
    return {
        "results": {task: scores},
        "group_subtasks": {task: []},
        "configs": {
            task: {
                "task": task,
                "dataset_path": hub_data(record, spec) or record.identity.benchmark,
                "output_type": "generate_until",
                "num_fewshot": 0,
                "metric_list": [{"metric": line.metric, "higher_is_better": line.better == "higher"} for line in lines],
                "metadata": {
                    "version": record.identity.benchmark_version,
                    "edition": record.edition,
                    "labels": {line.metric: line.label for line in lines},
                    "rows": {line.metric: line.n for line in lines},
                    "not measured": {line.metric: line.reason for line in lines if line.reason},
                },
            }
        },
        "versions": {task: record.identity.benchmark_version},
        "n-shot": {task: 0},
        "higher_is_better": {task: {line.metric: line.better == "higher" for line in lines}},
        "n-samples": {task: {"original": record.samples.rows, "effective": record.samples.rows}},
        "config": {
            "model": "unlearnbench",
            "model_args": {
                **record.identity.hyperparameters,
                "pretrained": base_model(record),
                **identity_of(lines[0]),
            },
            "batch_size": None,
            "limit": None,
        },
        "git_hash": None,
        "date": float(seconds),
        "date_of_export": datetime.fromtimestamp(seconds, UTC).isoformat(),
        "model_source": "unlearnbench",
        "model_name": model,
        "model_name_sanitized": model,
        "task_hashes": {},
    }


def _rows(lines: Sequence[ScoreLine]) -> list[int]:
    return [line.n for line in lines] or [0]


def read(path: Path) -> list[ScoreLine]:
    """The scores of a file that this module wrote. A target's direction comes back as lower: the format has no third.

    Raises:
        RecordError: it is no such file, or lacks what unlearnbench writes.
    """
    content = read_object(path)
    try:
        (task,) = content["results"]
        identity = read_identity(content["config"]["model_args"], path)
        scores, higher = content["results"][task], content["higher_is_better"][task]
        facts = content["configs"][task]["metadata"]
        lines = []
        for metric, is_higher in higher.items():
            value = scores[f"{metric},{FILTER}"]
            better: Direction = "higher" if is_higher else "lower"
            lines.append(
                ScoreLine(
                    **identity,
                    metric=metric,
                    label=facts["labels"][metric],
                    edition=facts["edition"],
                    better=better,
                    value=math.nan if value == "N/A" else float(value),
                    n=int(facts["rows"][metric]),
                    reason=facts["not measured"].get(metric, ""),
                )
            )
        return lines
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RecordError(f"{path} is no lm-eval result of unlearnbench: {error!r}"[:300]) from error
