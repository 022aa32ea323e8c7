"""From what a cell measured to its record."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..contracts import Benchmark, Context
from ..data.encoder import Encoder
from ..data.model_folder import prepared_folder, reference_facts
from ..domain import Measurement
from ..engine import process_group
from ..plugin.parameters import Training
from ..records.code_digest import engine_digest
from ..records.node_spec import CellSpec
from ..records.provenance import provenance
from ..records.recomputation import DividedScores, divided_scores
from ..records.record import (
    SAMPLES,
    AttackFacts,
    Comparability,
    Cost,
    Identity,
    Record,
    Samples,
    comparability,
    score_entries,
    validation_values,
)
from ..records.tries import leaking_share
from ..storage import digest, read_rows, rows_as_bytes, write_bytes
from .stage_meter import StageMeter


@dataclass(frozen=True)
class Measured:
    """What a cell comes to before it is scored; ``task_notes`` is what the benchmark says of its data."""

    benchmark: Benchmark
    measurement: Measurement
    encoder: Encoder
    dtype: torch.dtype
    task_notes: tuple[str, ...]
    ctx: Context
    meter: StageMeter
    attack: AttackFacts | None = None


def build_record(folder: Path, spec: CellSpec, measured: Measured) -> Record:
    """Write the samples, score them, and put together the cell's record."""
    rows = measured.measurement.rows
    content = rows_as_bytes(rows)
    write_bytes(folder / SAMPLES, content)
    identity = _identity(spec)
    with measured.meter("score"):
        found = _scores(folder, spec, measured.benchmark, identity)
        metrics = spec.benchmark.metrics
        scores = score_entries(found.reported, metrics, spec.edition)
        validation = validation_values(found.validation, metrics, spec.edition)
    measured.meter.seconds.update(measured.measurement.seconds)
    return Record(
        cell=spec.key,
        content=spec.content,
        edition=spec.edition,
        identity=identity,
        scores=scores,
        samples=Samples(
            file=SAMPLES,
            sha256=hashlib.sha256(content).hexdigest(),
            rows=len(rows),
            references={str(role): key for role, key in spec.references.items()},
            shown="public" if spec.source.kind == "generated" else spec.benchmark.samples,
        ),
        cost=_cost(measured),
        comparability=_comparability(spec, measured, "reported half" if validation else "all"),
        provenance=_provenance(spec, measured),
        limits=_limits(spec),
        unranked=list(spec.departures),
        notes=[
            *_start_notes(spec),
            *measured.task_notes,
            *([f"selected on its test rows: {found.whole}"] if found.whole else []),
        ],
        losses=[round(loss, 6) for loss in measured.ctx.meter.losses],
        selection=spec.selection if spec.setting else "",
        settings_tried=spec.settings_tried if spec.setting else 0,
        split=spec.split,
        validation=validation,
        attack=measured.attack and measured.attack.model_copy(update={"leaking": leaking_share(rows)}),
    )


def _identity(spec: CellSpec) -> Identity:
    method, benchmark = spec.method, spec.benchmark
    return Identity(
        method=method.name,
        method_qualified=method.qualified,
        method_edition=str(method.values.get("edition", "")),
        hyperparameters=method.hyperparameters,
        requires=method.requires,
        reference=method.reference,
        benchmark=benchmark.name,
        benchmark_qualified=benchmark.qualified,
        benchmark_version=benchmark.version,
        model=spec.model.name,
        seed=spec.seed,
        repeat=spec.repeat,
        setting=spec.setting,
        attack=spec.attack.name if spec.attack else "",
    )


def _scores(folder: Path, spec: CellSpec, benchmark: Benchmark, identity: Identity) -> DividedScores:
    """Scores are computed from what the sample files give back, so that they recompute from them exactly."""

    def stored(key: str) -> Measurement:
        return Measurement(tuple(read_rows(folder.parent / key / SAMPLES)))

    references = {str(role): stored(key) for role, key in spec.references.items()}
    return divided_scores(benchmark, identity, stored(folder.name), references, spec.split)


def _cost(measured: Measured) -> Cost:
    work, meter = measured.ctx.meter, measured.meter
    return Cost(
        seconds={name: round(value, 4) for name, value in meter.seconds.items()},
        cpu_seconds={name: round(value, 4) for name, value in meter.cpu_seconds.items()},
        optimiser_steps=work.optimiser_steps,
        fastest_step_cpu_seconds=work.fastest_step,
        training_tokens=work.tokens,
        peak_memory_bytes=max(meter.peaks.resident.values()),
        peak_device_memory_bytes=max(meter.peaks.device.values(), default=None),
        stage_memory_bytes=meter.peaks.resident,
        stage_device_memory_bytes=meter.peaks.device,
    )


def _provenance(spec: CellSpec, measured: Measured) -> dict[str, Any]:
    """Where the record came from: versions, machine, plugins, weights, data, and the ways the engine took."""
    model, device = spec.model, measured.ctx.device
    return {
        # This process's own: on a cluster the plan was made on another machine.
        **provenance(),
        "plugins": {part: asdict(plugin) for part, plugin in spec.plugins.items()},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "processes": process_group.processes(),
        "paths": measured.ctx.engine.counters.as_dict(),
        "model": {"path": model.spec.path, "revision": model.spec.revision, "fingerprint": model.fingerprint},
        "data": {**asdict(spec.source), "tables": spec.benchmark.fingerprints},
        "prompt_format": measured.encoder.style.name,
        "recipe": spec.recipe,
        "method_source": spec.method.source,
        "templates": digest(spec.templates) if spec.templates else "",
    }


def _comparability(spec: CellSpec, measured: Measured, rows: str) -> Comparability:
    """Everything that must agree before two rows may be ranked together."""
    benchmark, model = spec.benchmark, spec.model
    published = {"original": model.spec.original, "retained": model.spec.retained}
    return comparability(
        {
            "benchmark": benchmark.qualified,
            "benchmark_version": benchmark.version,
            "benchmark_settings": benchmark.settings,
            "benchmark_packages": benchmark.packages,
            "data": digest(benchmark.fingerprints),
            "data_source": spec.source.kind,
            "data_departures": list(spec.departures),
            "model": model.name,
            "model_weights": model.fingerprint or digest(model.spec.architecture),
            "references": {
                role: {"published": path} if path else {"published": "", "recipe": spec.recipe}
                for role, path in published.items()
            },
            "prompt_format": measured.encoder.style.name,
            # What every question is put into, special tokens included, and what ends an answer.
            "prompt": measured.encoder.shown_prompt,
            "ends": sorted(measured.encoder.ends),
            "precision": str(measured.dtype).removeprefix("torch."),
            "lora_rank": model.spec.lora_rank,
            "edition": spec.edition,
            "rows": rows,
            **({"environment": engine_digest()} if engine_digest() != spec.engine else {}),
            **({"optimiser": spec.run.optimiser} if spec.run.optimiser != "adamw" else {}),
            **({"attack": [spec.attack.qualified, spec.attack.hyperparameters]} if spec.attack else {}),
        }
    )


def _limits(spec: CellSpec) -> dict[str, Any]:
    """What sets this run apart from a full one, for the record and the page."""
    benchmark, model = spec.benchmark, spec.model
    limits: dict[str, Any] = {
        name.replace("_", " "): value for name, value in benchmark.values.items() if value != benchmark.defaults[name]
    }
    usual = int({"epochs": Training().epochs, **benchmark.recipe}["epochs"])
    epochs = int(spec.recipe["epochs"])
    if not (model.spec.original and model.spec.retained) and epochs < usual:
        limits["epochs of the reference models"] = epochs
    unlearning = int(spec.method.values.get("epochs", Training().epochs))
    if unlearning < Training().epochs:
        limits["epochs of unlearning"] = unlearning
    if spec.run.optimiser != "adamw":
        limits["optimiser"] = spec.run.optimiser
    if spec.source.kind == "generated":
        limits["data"] = "generated, not the published data set"
    if model.from_scratch:
        limits["model"] = "trained from scratch, without pretraining"
    return limits


def _start_notes(spec: CellSpec) -> list[str]:
    """What had to be made up for the encoder of the model that the cell started from; a saved one does not say."""
    return list(reference_facts(prepared_folder(spec.cache, spec.start))["notes"])
