"""A hub model card for each unlearned model, with its results as ``model-index``, and the hub's ``.eval_results``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml
from huggingface_hub.repocard_data import model_index_to_eval_results

from unlearnbench.errors import RecordError
from unlearnbench.plugin.registry import Registry
from unlearnbench.plugin.specs import BenchmarkSpec
from unlearnbench.records.record import Record
from unlearnbench.records.results import Results
from unlearnbench.storage import write_bytes

from ..precision import precision_of
from .lines import (
    ScoreLine,
    base_model,
    benchmark_spec,
    data_source,
    definition_of,
    direction_of,
    export_time,
    finished_cells,
    hub_data,
    identity_of,
    lines_of,
    plain_name,
    read_identity,
)

TASK = "text-generation"


def render(results: Sequence[Results], out: Path, registry: Registry) -> Path:
    """Write ``out/<cell>/README.md`` and ``out/<cell>/.eval_results/<benchmark>.yaml`` for each cell.

    Returns ``out``. Cells of an attack have none: nobody publishes an attacked model.

    Raises:
        StorageError: the disk refused a write.
    """
    for _, cell in finished_cells(results):
        record = cell.record
        if record.identity.attack:
            continue
        folder, spec = out / plain_name(record.cell), benchmark_spec(record, registry)
        write_bytes(folder / "README.md", _card(record, spec).encode("utf-8", "replace"))
        name = f"{plain_name(record.identity.benchmark)}.yaml"
        write_bytes(folder / ".eval_results" / name, _eval_results(record, spec).encode("utf-8", "replace"))
    return out


def _card(record: Record, spec: BenchmarkSpec | None) -> str:
    lines = lines_of(record)
    measured = [line for line in lines if math.isfinite(line.value)]
    data = ModelCardData(
        model_name=plain_name(record.cell),
        base_model=base_model(record),
        tags=["unlearning", "unlearnbench"],
        pipeline_tag=TASK,
        eval_results=[_result(line, record, spec) for line in measured],
    )
    return f"---\n{data.to_yaml()}\n---\n{_text(record, lines, spec)}"


def _dataset(record: Record, spec: BenchmarkSpec | None) -> str:
    return hub_data(record, spec) or record.identity.benchmark


def _result(line: ScoreLine, record: Record, spec: BenchmarkSpec | None) -> EvalResult:
    return EvalResult(
        task_type=TASK,
        task_name="Unlearning",
        dataset_type=_dataset(record, spec),
        dataset_name=line.benchmark,
        dataset_config=line.benchmark,
        dataset_args={**identity_of(line), "data": data_source(record)},
        metric_type=line.metric,
        metric_name=line.label,
        metric_value=line.value,
        metric_args={
            "edition": line.edition,
            "better": line.better,
            "rows": line.n,
            "low": None if line.interval is None else line.interval[0],
            "high": None if line.interval is None else line.interval[1],
            "passes": line.passes,
            "reason": line.reason,
        },
    )


def _text(record: Record, lines: Sequence[ScoreLine], spec: BenchmarkSpec | None) -> str:
    who = record.identity
    title = f"# {who.model} after {who.method} on {who.benchmark}\n"
    departures = "".join(f"\n- {name}: {value}" for name, value in record.limits.items())
    table = [
        "| metric | value | 95 % interval | rows | what it measures |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for line in lines:
        written = precision_of([line.value], record.scores[line.metric].scale == "log")
        ends = written.range(line.interval) if line.interval else "–"
        about = definition_of(spec, line.metric) or line.reason
        table.append(
            f"| {_cell(line.label)} ({line.better}) | {written(line.value)} | {ends} | {line.n} | {_cell(about)} |"
        )
    settings = "".join(f"\n- `{name}`: {_cell(str(value))}" for name, value in who.hyperparameters.items())
    return "\n".join(
        [
            title,
            f"What unlearning by `{who.method_qualified}` left of `{base_model(record)}` (seed {who.seed}), measured "
            f"by unlearnbench on `{who.benchmark_qualified}`, metrics of edition {record.edition}.",
            f"\n## How this run departs from a full one\n{departures}\n" if departures else "",
            "## Results\n",
            *table,
            "",
            "Intervals are bootstrap intervals over rows. Scores recompute from the samples of the cell "
            f"`{record.cell}` (SHA-256 `{record.samples.sha256}`).",
            f"\n## Hyperparameters\n{settings}\n",
            *([f"## Source of the benchmark\n\n{spec.citation}\n"] if spec and spec.citation else []),
        ]
    )


def _cell(text: str) -> str:
    """A text inside a cell of a Markdown table or a line of a list."""
    return " ".join(text.split()).replace("|", "\\|")


def _eval_results(record: Record, spec: BenchmarkSpec | None) -> str:
    date = datetime.fromtimestamp(export_time(), UTC).date().isoformat()
    entries = [
        EvalResultEntry(
            dataset_id=_dataset(record, spec),
            task_id=f"{line.benchmark}/{line.metric}",
            value=line.value,
            date=date,
            notes="; ".join(
                [
                    record.cell,
                    f"edition {line.edition}",
                    f"{line.better} is better",
                    f"{line.n} rows",
                    *(f"{name}: {value}" for name, value in record.limits.items()),
                ]
            ),
        )
        for line in lines_of(record)
        if math.isfinite(line.value)
    ]
    return str(yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True))


def read(path: Path) -> list[ScoreLine]:
    """The scores of a card that this module wrote; metrics that were not measured stand in its text alone.

    Raises:
        RecordError: it is no such card.
    """
    try:
        content: dict[str, Any] = ModelCard.load(path).data.to_dict()
        _, found = model_index_to_eval_results(content["model-index"])
        return [_read(result, path) for result in found]
    except (OSError, KeyError, TypeError, ValueError, AttributeError, yaml.YAMLError) as error:
        raise RecordError(f"{path} is no model card of unlearnbench: {error!r}"[:300]) from error


def _read(result: EvalResult, path: Path) -> ScoreLine:
    told, facts = result.metric_args or {}, result.dataset_args or {}
    low, high = told.get("low"), told.get("high")
    return ScoreLine(
        **read_identity(facts, path),
        metric=result.metric_type,
        label=str(result.metric_name),
        edition=told["edition"],
        better=direction_of(told["better"], path),
        value=float(result.metric_value),
        interval=None if low is None or high is None else (float(low), float(high)),
        n=int(told["rows"]),
        passes=told.get("passes"),
        reason=told.get("reason", ""),
    )
