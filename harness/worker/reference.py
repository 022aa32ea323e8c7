"""Prepares a reference model: trains it into the cache, or checks that a published one loads."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..contracts import Context, derived_seed
from ..data.model_folder import REFERENCE, prepared_folder, reference_facts
from ..engine import process_group
from ..engine.counters import counts
from ..engine.memory import Peaks
from ..errors import (
    RecordError,
)
from ..plugin.specs import ModelSpec
from ..storage import (
    alone,
    write_sealed,
)
from ..training import models
from .setup import _model_spec, autocast_of, device_of, load_plugin_files, log, prepare_task, seed_everything

# -- reference models -------------------------------------------------------------------------------------------


def prepare_reference(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Train a reference model into the cache, or check that a published one loads."""
    lock = prepared_folder(spec["cache"], spec["key"]).parent / f".{spec['key']}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    if process_group.rank():
        return _prepare_locked(spec)
    with lock.open("a") as file:
        # Another run may be preparing the same model; then this one waits and takes it.
        alone(file, wait=True)
        return _prepare_locked(spec)


def _prepare_locked(spec: Mapping[str, Any]) -> dict[str, Any]:
    folder = prepared_folder(spec["cache"], spec["key"])
    with suppress(RecordError):
        return reference_facts(folder)
    load_plugin_files(spec)
    model_spec = _model_spec(spec)
    if spec["published"]:
        return _publish_locked(spec, model_spec, folder)
    seed = derived_seed(spec["seed"], "reference")
    seed_everything(seed)
    device = device_of(spec["run"])
    _, task = prepare_task(spec, lambda corpus: models.make_encoder(model_spec, corpus))
    rows = task.training[spec["role"]]
    notes = list(task.encoder.notes)
    model = models.load_base(model_spec, task.encoder, spec["seed"], notes)
    models.check_finite(model, "the base model's weights, before any training")
    ctx = Context("reference", seed, device, log, autocast=autocast_of(model_spec, device))
    adapter = bool(model_spec.lora_rank)
    if adapter:
        model = models.with_adapter(model, model_spec.lora_rank)
    peaks = Peaks()
    if rows:
        with peaks.stage("train", device):
            model = models.fine_tune(model.to(device), task.encoder, rows, spec["recipe"], ctx)
    if adapter:
        model = model.merge_and_unload()
    facts = {
        "rows": len(rows),
        "optimiser_steps": ctx.meter.optimiser_steps,
        "training_tokens": ctx.meter.tokens,
        "final_loss": ctx.meter.losses[-1] if ctx.meter.losses else math.nan,
        "stage_memory_bytes": peaks.resident,
        "stage_device_memory_bytes": peaks.device,
        "notes": notes,
        "paths": counts(),
    }
    if not process_group.rank():
        models.save_checkpoint(folder, model.cpu(), task.encoder.tokenizer, facts)
    return facts


def _publish_locked(spec: Mapping[str, Any], model_spec: ModelSpec, folder: Path) -> dict[str, Any]:
    """Check that a published checkpoint loads and suits the benchmark, and note where it is."""
    # A local folder's revision is the hash of its files, which loading does not take.
    revision = "" if os.path.isdir(spec["published"]) else spec["published_revision"]
    encoder = models.saved_encoder(model_spec, spec["published"], revision)
    prepare_task(spec, lambda _: encoder)
    notes = list(encoder.notes)
    model = models.load_checkpoint(spec["published"], model_spec, revision, notes)
    models.check_finite(model, "the published weights")
    facts = {"published": spec["published"], "revision": spec["published_revision"], "notes": notes}
    write_sealed(folder / REFERENCE, facts)
    return facts


def checkpoint(spec: Mapping[str, Any], key: str) -> tuple[str, str]:
    """Folder, or hub id and commit, of a prepared reference model, which is whole.

    Raises:
        RecordError: it is damaged, or gone.
    """
    folder = prepared_folder(spec["cache"], key)
    facts = reference_facts(folder)
    if "published" not in facts:
        return str(folder), ""
    return facts["published"], "" if os.path.isdir(facts["published"]) else facts["revision"]
