"""Runs one cell: load, unlearn, attack where it is one of an attack, measure, record."""

from __future__ import annotations

import hashlib
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..contracts import Benchmark, Context, Method, Task, UnlearningData, derived_seed
from ..data.encoder import Encoder
from ..domain import Measurement
from ..engine import process_group
from ..engine.memory import release
from ..engine.numerics import cast
from ..errors import NotApplicable
from ..plugin.specs import resolve
from ..records.judging import NOT_JUDGED, is_judged, judged_rows
from ..records.node_spec import CellSpec
from ..records.run_folder import RECORD
from ..storage import write_bytes
from ..training import models
from .attack import checked_model, leave_model, left_model, measure_attacked
from .record_builder import Measured, build_record
from .reference import checkpoint
from .setup import (
    check_fits,
    context_of,
    device_of,
    load_plugin_files,
    prepare_task,
    seed_everything,
    synchronise,
)
from .stage_meter import StageMeter


@dataclass(frozen=True)
class _Loaded:
    """A cell's benchmark, and the model that it starts from."""

    encoder: Encoder
    benchmark: Benchmark
    task: Task
    model: Any


def run_cell(folder: Path, spec: CellSpec) -> dict[str, str]:
    """Run the cell and write its samples and record; returns what its status says of them.

    Raises:
        NotApplicable, Diverged, HarnessError: as the pairing, the method or the benchmark has it.
    """
    load_plugin_files(spec)
    device = device_of(spec.run.device)
    meter = StageMeter(device)
    if spec.method.trains and not spec.attack:
        check_fits(spec, device)
    with meter("load"):
        loaded = _load(spec, device)
    again = (f"repeat {spec.repeat}",) if spec.repeat else ()
    seed = derived_seed(spec.seed, spec.method.name, spec.benchmark.name, spec.model.name, *again)
    seed_everything(seed)
    if spec.method.requires.retain and not loaded.task.retain:
        raise NotApplicable(f"{spec.method.name} needs a retain set, and {spec.benchmark.name} has none here")
    dtype = models.compute_dtype(spec.model.spec, device)
    ctx = context_of(spec, spec.method.name, seed, device)
    encoder, benchmark, task = loaded.encoder, loaded.benchmark, loaded.task
    model = left_model(folder, spec, device) if spec.attack else None
    if model is None:
        with meter("unlearn"):
            model, ctx = _unlearn_requests(spec, loaded, ctx, dtype)
            synchronise(device)
    del loaded
    if process_group.rank():
        return {}
    ctx = ctx.for_request(None, "measure")
    release()
    model = cast(model, dtype).eval()
    facts = None
    if spec.attack:
        measurement, facts, ctx = measure_attacked(spec, spec.attack, model, benchmark, task, ctx, meter)
    else:
        with meter("measure"):
            measurement = benchmark.measure(model, task, ctx)
    notes = [*task.notes]
    if is_judged(benchmark):
        # A judge may be a model itself, and needs the room.
        model = model.cpu()
        release()
        with meter("judge"):
            measurement = _judged(benchmark, measurement, notes)
    measured = Measured(benchmark, measurement, encoder, dtype, tuple(notes), ctx, meter, facts)
    record = build_record(folder, spec, measured)
    if spec.run.keep_model:
        models.save_checkpoint(folder / "model", model.cpu(), encoder.tokenizer)
    if spec.leaves_model:
        leave_model(folder, model, encoder)
    content = record.model_dump_json(indent=1).encode() + b"\n"
    write_bytes(folder / RECORD, content)
    return {
        "record_sha256": hashlib.sha256(content).hexdigest(),
        "samples_sha256": record.samples.sha256,
        "scoring": spec.benchmark.scoring,
        "incomplete": measurement.incomplete,
    }


def _judged(benchmark: Benchmark, measurement: Measurement, notes: list[str]) -> Measurement:
    """The measurement with what the benchmark's scorer says; without it, and with a note, where the scorer fails."""
    try:
        return replace(measurement, rows=tuple(judged_rows(benchmark, measurement.rows)))
    except Exception as error:  # noqa: BLE001 - whatever an outside scorer raises, what was measured is kept
        traceback.print_exception(error)
        why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        notes.append(f"{NOT_JUDGED} ({why}); 'unlearnbench rescore RUN --judge' judges the stored samples")
        return measurement


def _load(spec: CellSpec, device: torch.device) -> _Loaded:
    start, revision = checkpoint(spec.cache, spec.start)
    encoder = models.saved_encoder(spec.model.spec, start, revision)
    benchmark, task = prepare_task(spec, lambda _: encoder)
    model = models.load_checkpoint(start, spec.model.spec, revision, device=device)
    return _Loaded(encoder, benchmark, task, model)


def _unlearn_requests(spec: CellSpec, loaded: _Loaded, ctx: Context, dtype: torch.dtype) -> tuple[Any, Context]:
    """The model after every request to forget, one after another, and the context of the last."""
    requires = spec.method.requires
    method: Method = resolve(spec.method.target, spec.method.qualified)(**spec.method.hyperparameters)
    model = loaded.model
    for forget in (*loaded.task.earlier, loaded.task.forget):
        data = UnlearningData(spec.method.name, requires, loaded.encoder, forget, loaded.task.retain, spec.templates)
        ctx = ctx.for_request(models.frozen_copy(model, dtype) if requires.original == "model" else None)
        model = _unlearn(spec, method, model, data, ctx)
    return model, ctx


def _unlearn(spec: CellSpec, method: Method, model: Any, data: UnlearningData, ctx: Context) -> Any:
    """The method's verb, with what it returns checked."""
    name, rank = spec.method.qualified, spec.model.spec.lora_rank
    adapted = rank and not spec.method.reference
    if adapted:
        model = models.with_adapter(model, rank)
    vocabulary = model.get_input_embeddings().num_embeddings
    unlearned = method.unlearn(model, data.encoder.tokenizer, data, ctx)
    if adapted and hasattr(unlearned, "merge_and_unload"):
        unlearned = unlearned.merge_and_unload()
    return checked_model(unlearned, name, "unlearn", vocabulary)
