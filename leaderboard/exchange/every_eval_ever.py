"""Every-Eval-Ever records (schema 0.3.0): a file of scores for each cell, and its public samples beside it.

Source: the schema of evaleval/every_eval_ever. An unlearned model is a model of its own, so that the method is part of
its id; seeds and settings are part of the evaluation's.
"""

from __future__ import annotations

import hashlib
import json
import math
import uuid
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from unlearnbench.domain import RESAMPLES
from unlearnbench.errors import HarnessError, RecordError
from unlearnbench.metrics.overlap import rouge_l_recall
from unlearnbench.plugin.registry import Registry
from unlearnbench.plugin.specs import BenchmarkSpec
from unlearnbench.records.record import Record
from unlearnbench.records.results import Results
from unlearnbench.records.run_folder import FinishedCell
from unlearnbench.storage import write_bytes

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
    read_identity,
    read_object,
    standard_error,
    unlearned_model,
)

SCHEMA = "0.3.0"
DEVELOPER = "unlearnbench"
"""The developer of unlearned models, as a part of their ids and paths."""


def render(results: Sequence[Results], out: Path, registry: Registry) -> Path:
    """Write ``out/data/unlearnbench/…`` as the project's data store has it, and return ``out``.

    Raises:
        StorageError: the disk refused a write.
    """
    for some, cell in finished_cells(results):
        _write(some, cell, out, registry)
    return out


def _write(some: Results, cell: FinishedCell, out: Path, registry: Registry) -> None:
    record = cell.record
    model = unlearned_model(record)
    # Version 4 by its form, but the same for the same record.
    name = uuid.UUID(bytes=hashlib.sha256(record.model_dump_json().encode()).digest()[:16], version=4)
    folder = Path("data") / DEVELOPER / DEVELOPER / model
    content = _aggregate(record, f"{DEVELOPER}/{model}", registry)
    rows = list(_instances(some, record, content)) if record.samples.shown == "public" else []
    if rows:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8", "replace")
        samples = folder / f"{name}_samples.jsonl"
        write_bytes(out / samples, text)
        content["detailed_evaluation_results"] = {
            "format": "jsonl",
            "file_path": samples.as_posix(),
            "hash_algorithm": "sha256",
            "checksum": hashlib.sha256(text).hexdigest(),
            "total_rows": len(rows),
        }
    write_bytes(out / folder / f"{name}.json", json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n")


def _aggregate(record: Record, model_id: str, registry: Registry) -> dict[str, Any]:
    lines, spec = lines_of(record), benchmark_spec(record, registry)
    missing = {line.metric: _missing_facts(line) for line in lines if not math.isfinite(line.value)}
    more = {"missing": json.dumps(missing)} if missing else {}
    return {
        "schema_version": SCHEMA,
        "evaluation_id": f"{record.identity.benchmark}/{model_id}/{record.cell}",
        "retrieved_timestamp": str(export_time()),
        "source_metadata": {
            "source_type": "evaluation_run",
            "source_name": "unlearnbench",
            "source_organization_name": "unlearnbench",
            "evaluator_relationship": "other",
            "additional_details": {**identity_of(lines[0]), **more},
        },
        "eval_library": {
            "name": "unlearnbench",
            "version": str(record.provenance["packages"].get("unlearnbench") or metadata.version("unlearnbench")),
        },
        "model_info": {
            "name": f"{record.identity.model} after {record.identity.method}",
            "id": model_id,
            "developer": DEVELOPER,
            "additional_details": {
                "deployment_type": "self_deployed",
                "model_availability": "unknown",
                "base_model": base_model(record),
                "hyperparameters": json.dumps(record.identity.hyperparameters),
            },
        },
        "evaluation_results": [_result(line, record, spec) for line in lines if math.isfinite(line.value)],
    }


def _missing_facts(line: ScoreLine) -> dict[str, Any]:
    return {
        "label": line.label,
        "better": line.better,
        "edition": line.edition,
        "value": str(line.value),
        "n": line.n,
        "passes": line.passes,
        "reason": line.reason,
        "interval": None if line.interval is None else [str(end) for end in line.interval],
    }


def _result(line: ScoreLine, record: Record, spec: BenchmarkSpec | None) -> dict[str, Any]:
    details = {"edition": line.edition, "reason": line.reason, "passes": json.dumps(line.passes)}
    uncertainty: dict[str, Any] = {"num_samples": line.n, "num_bootstrap_samples": RESAMPLES}
    error = standard_error(record.scores[line.metric])
    if error is not None and math.isfinite(error):
        uncertainty["standard_error"] = {"value": error, "method": "bootstrap over rows"}
    if line.interval and all(map(math.isfinite, line.interval)):
        low, high = line.interval
        uncertainty["confidence_interval"] = {
            "lower": low,
            "upper": high,
            "confidence_level": 0.95,
            "method": "bootstrap over rows",
        }
    elif line.interval:
        details["interval"] = json.dumps([str(end) for end in line.interval])
    data = {
        "dataset_name": line.benchmark,
        "additional_details": {"data": data_source(record)},
    }
    hub = hub_data(record, spec)
    return {
        "evaluation_result_id": f"{line.cell}/{line.metric}",
        "evaluation_name": line.benchmark,
        "source_data": data | ({"source_type": "hf_dataset", "hf_repo": hub} if hub else {"source_type": "other"}),
        "metric_config": {
            "metric_id": f"unlearnbench.{line.metric}",
            "metric_name": line.label,
            "evaluation_description": definition_of(spec, line.metric),
            "lower_is_better": line.better == "lower",
            "additional_details": {"better": line.better, "metric": line.metric},
        },
        "score_details": {"score": line.value, "details": details, "uncertainty": uncertainty},
    }


def _instances(some: Results, record: Record, content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A row for each answer, with ROUGE-L recall of the truth; nothing where samples are missing."""
    try:
        rows = some.samples_of(record.cell)
    except HarnessError:
        return
    for number, row in enumerate(rows):
        if "generation" not in row:
            continue
        raw, truth = str(row.get("asked") or row.get("prompt", "")), str(row.get("truth", ""))
        score = rouge_l_recall(truth, str(row["generation"]))
        if math.isnan(score):
            continue
        yield {
            "schema_version": SCHEMA,
            "evaluation_id": content["evaluation_id"],
            "model_id": content["model_info"]["id"],
            "evaluation_name": record.identity.benchmark,
            "sample_id": f"{row.get('part', '')}/{row.get('index', number)}",
            "interaction_type": "single_turn",
            "input": {"raw": raw, "reference": [truth]},
            "output": {"raw": [str(row["generation"])]},
            "answer_attribution": [],
            "evaluation": {"score": score, "is_correct": score == 1.0},
            "metadata": {"score": "ROUGE-L recall of the truth", "part": str(row.get("part", ""))},
        }


def read(path: Path) -> list[ScoreLine]:
    """The scores of a file of the format that this module wrote.

    Raises:
        RecordError: it is no such file, or lacks what unlearnbench writes.
    """
    content = read_object(path)
    try:
        facts = content["source_metadata"]["additional_details"]
        identity = read_identity(facts, path)
        lines = [_read_result(result, identity, path) for result in content["evaluation_results"]]
        for metric, told in json.loads(facts.get("missing", "{}")).items():
            interval = told["interval"] and (float(told["interval"][0]), float(told["interval"][1]))
            known = {name: told[name] for name in ("label", "edition", "n", "passes", "reason")}
            better, value = direction_of(told["better"], path), float(told["value"])
            lines.append(ScoreLine(**identity, **known, metric=metric, better=better, value=value, interval=interval))
        return lines
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise RecordError(f"{path} is no Every-Eval-Ever record of unlearnbench: {error!r}"[:300]) from error


def _read_result(result: dict[str, Any], identity: dict[str, Any], path: Path) -> ScoreLine:
    config, found = result["metric_config"], result["score_details"]
    details, uncertainty = found["details"], found["uncertainty"]
    ends = uncertainty.get("confidence_interval")
    interval = (float(ends["lower"]), float(ends["upper"])) if ends else None
    if "interval" in details:
        low, high = json.loads(details["interval"])
        interval = (float(low), float(high))
    return ScoreLine(
        **identity,
        metric=config["additional_details"]["metric"],
        label=config["metric_name"],
        edition=details["edition"],
        better=direction_of(config["additional_details"]["better"], path),
        value=float(found["score"]),
        interval=interval,
        n=int(uncertainty["num_samples"]),
        passes=json.loads(details["passes"]),
        reason=details["reason"],
    )
