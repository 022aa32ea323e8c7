"""From what a cell measured to its record."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..contracts import Context
from ..data.model_folder import prepared_folder, reference_facts
from ..domain import Measurement
from ..engine import process_group
from ..engine.counters import counts
from ..plugin.parameters import Training
from ..records.recomputation import scores_of
from ..records.record import (
    SAMPLES,
    Comparability,
    Cost,
    Identity,
    Record,
    Samples,
    comparability,
    metrics_of,
    score_entries,
)
from ..storage import (
    digest,
    read_rows,
    rows_as_bytes,
    write_bytes,
)
from .stage_meter import StageMeter


def build_record(
    path: Path,
    spec: Mapping[str, Any],
    benchmark: Any,
    measurement: Measurement,
    ctx: Context,
    clock: StageMeter,
    dtype: torch.dtype,
    encoder: Any,
    notes: Sequence[str],
) -> Record:
    entry, model = spec["method"], spec["model"]
    content = rows_as_bytes(measurement.rows)
    # Scores are computed from what the sample file gives back, so that they recompute from it exactly.
    write_bytes(path / SAMPLES, content)
    mine = Measurement(tuple(read_rows(path / SAMPLES)))
    others = {
        role: Measurement(tuple(read_rows(path.parent / key / SAMPLES))) for role, key in spec["references"].items()
    }
    values = entry["values"]
    identity = Identity(
        method=entry["name"],
        method_qualified=entry["qualified"],
        method_edition=values.get("edition", ""),
        hyperparameters={**values, **entry["fixed"]},
        requires=entry["requires"],
        reference=entry["reference"],
        benchmark=spec["benchmark"]["name"],
        benchmark_qualified=spec["benchmark"]["qualified"],
        benchmark_version=spec["benchmark"]["version"],
        model=model["name"],
        seed=spec["seed"],
    )
    metrics = metrics_of(spec["benchmark"]["metrics"])
    with clock("score"):
        scores = score_entries(scores_of(benchmark, identity, mine, others), metrics, spec["edition"])
    samples = Samples(
        file=SAMPLES,
        sha256=hashlib.sha256(content).hexdigest(),
        rows=len(measurement.rows),
        references=dict(spec["references"]),
        shown="public" if spec["data"]["kind"] == "generated" else spec["benchmark"]["samples"],
    )
    clock.seconds.update(measurement.seconds)
    return Record(
        cell=spec["key"],
        content=spec["content"],
        edition=spec["edition"],
        identity=identity,
        scores=scores,
        samples=samples,
        cost=Cost(
            seconds={name: round(value, 4) for name, value in clock.seconds.items()},
            cpu_seconds={name: round(value, 4) for name, value in clock.cpu_seconds.items()},
            optimiser_steps=ctx.meter.optimiser_steps,
            fastest_step_cpu_seconds=ctx.meter.fastest_step,
            training_tokens=ctx.meter.tokens,
            peak_memory_bytes=max(clock.peaks.resident.values()),
            peak_device_memory_bytes=max(clock.peaks.device.values(), default=None),
            stage_memory_bytes=clock.peaks.resident,
            stage_device_memory_bytes=clock.peaks.device,
        ),
        comparability=_comparability(spec, dtype, encoder),
        provenance={
            **spec["provenance"],
            "plugins": spec["plugins"],
            "device": torch.cuda.get_device_name(ctx.device) if ctx.device.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "processes": process_group.processes(),
            "paths": counts(),
            "model": {"path": model["path"], "revision": model["revision"], "fingerprint": model["fingerprint"]},
            "data": spec["data"] | {"tables": spec["benchmark"]["data"]["fingerprints"]},
            "prompt_format": encoder.style.name,
            "recipe": spec["recipe"],
            "method_source": entry["source"],
            "templates": digest(spec["templates"]) if spec["templates"] else "",
        },
        limits=_limits(spec),
        unranked=list(spec["departures"]),
        notes=[*_notes(spec), *notes],
        losses=[round(loss, 6) for loss in ctx.meter.losses],
    )


def _comparability(spec: Mapping[str, Any], dtype: torch.dtype, encoder: Any) -> Comparability:
    benchmark, model = spec["benchmark"], spec["model"]
    return comparability(
        {
            "benchmark": benchmark["qualified"],
            "benchmark_version": benchmark["version"],
            "benchmark_settings": {**benchmark["values"], **benchmark["fixed"]},
            "benchmark_packages": benchmark["packages"],
            "data": digest(benchmark["data"]["fingerprints"]),
            "data_source": spec["data"]["kind"],
            "data_departures": list(spec["departures"]),
            "model": model["name"],
            "model_weights": model["fingerprint"] or digest(model["architecture"]),
            "references": {
                role: {"published": model[role]} if model[role] else {"published": "", "recipe": spec["recipe"]}
                for role in ("original", "retained")
            },
            "prompt_format": encoder.style.name,
            # What every question is put into, special tokens included, and what ends an answer.
            "prompt": encoder.shown_prompt,
            "ends": sorted(encoder.ends),
            "precision": str(dtype).removeprefix("torch."),
            "lora_rank": model["lora_rank"],
            "edition": spec["edition"],
        }
    )  # fmt: skip


def _limits(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What sets this run apart from a full one, for the record and the page."""
    benchmark = spec["benchmark"]
    limits: dict[str, Any] = {
        name.replace("_", " "): value
        for name, value in benchmark["values"].items()
        if value != benchmark["defaults"][name]
    }
    usual = {"epochs": Training().epochs, **benchmark["recipe"]}["epochs"]
    trained = not all(spec["model"][role] for role in ("original", "retained"))
    if trained and spec["recipe"]["epochs"] < usual:
        limits["epochs of the reference models"] = spec["recipe"]["epochs"]
    if spec["method"]["values"].get("epochs", Training().epochs) < Training().epochs:
        limits["epochs of unlearning"] = spec["method"]["values"]["epochs"]
    if spec["data"]["kind"] == "generated":
        limits["data"] = "generated, not the published data set"
    if spec["model"]["architecture"]:
        limits["model"] = "trained from scratch, without pretraining"
    return limits


def _notes(spec: Mapping[str, Any]) -> list[str]:
    """What had to be made up for the encoder, which a saved one no longer says."""
    # Of the model that the cell started from: the other may not be there yet.
    start = spec["models"][spec["method"]["requires"]["start"]]
    return list(reference_facts(prepared_folder(spec["cache"], start))["notes"])
