"""Prepares a reference model: trains it into the cache, or checks that a published one loads."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..contracts import derived_seed
from ..data.model_folder import REFERENCE, prepared_folder, reference_facts
from ..engine import process_group
from ..engine.memory import Peaks
from ..errors import RecordError
from ..records.claim import claimed
from ..records.node_spec import ReferenceSpec
from ..storage import write_sealed
from ..training import models
from .setup import check_fits, context_of, device_of, load_plugin_files, prepare_task, seed_everything


def prepare_reference(spec: ReferenceSpec) -> dict[str, Any]:
    """Prepare the model unless the cache has it whole; returns what is known of it."""
    if process_group.rank():
        return _prepare(spec)
    # Another run may be preparing the same model; then this one waits and takes it.
    with claimed(prepared_folder(spec.cache, spec.key).parent / f".{spec.key}", wait=True):
        return _prepare(spec)


def _prepare(spec: ReferenceSpec) -> dict[str, Any]:
    folder = prepared_folder(spec.cache, spec.key)
    facts: dict[str, Any] | None = None
    with suppress(RecordError):
        facts = reference_facts(folder)
    # The first process decides for all: one that trains without the others waits for them forever.
    if process_group.first_says(facts is not None):
        return facts or {}
    load_plugin_files(spec)
    return _check_published(spec, folder) if spec.published else _train(spec, folder)


def _train(spec: ReferenceSpec, folder: Path) -> dict[str, Any]:
    """Fine-tune the base model on the rows of its role, and store it."""
    model_spec = spec.model.spec
    seed = derived_seed(spec.seed, "reference")
    seed_everything(seed)
    device = device_of(spec.run.device)
    _, task = prepare_task(spec, lambda corpus: models.make_encoder(model_spec, corpus))
    rows = task.training[spec.role]
    if rows:
        check_fits(spec, device)
    notes = list(task.encoder.notes)
    model = models.load_base(model_spec, task.encoder, spec.seed, notes)
    models.check_finite(model, "the base model's weights, before any training")
    ctx = context_of(spec, "reference", seed, device)
    peaks = Peaks()
    if model_spec.lora_rank:
        model = models.with_adapter(model, model_spec.lora_rank)
    if rows:
        with peaks.stage("train", device):
            model = models.fine_tune(model.to(device), task.encoder, rows, spec.recipe, ctx)
    if model_spec.lora_rank:
        model = model.merge_and_unload()
    facts = {
        "rows": len(rows),
        "optimiser_steps": ctx.meter.optimiser_steps,
        "training_tokens": ctx.meter.tokens,
        "final_loss": ctx.meter.losses[-1] if ctx.meter.losses else math.nan,
        "stage_memory_bytes": peaks.resident,
        "stage_device_memory_bytes": peaks.device,
        "notes": notes,
        "paths": ctx.engine.counters.as_dict(),
    }
    if not process_group.rank():
        models.save_checkpoint(folder, model.cpu(), task.encoder.tokenizer, facts)
    return facts


def _check_published(spec: ReferenceSpec, folder: Path) -> dict[str, Any]:
    """Check that a published checkpoint loads and suits the benchmark, and note where it is."""
    # A local folder's revision is the hash of its files, which loading does not take.
    revision = "" if os.path.isdir(spec.published) else spec.published_revision
    encoder = models.saved_encoder(spec.model.spec, spec.published, revision)
    prepare_task(spec, lambda _: encoder)
    notes = list(encoder.notes)
    model = models.load_checkpoint(spec.published, spec.model.spec, revision, notes)
    models.check_finite(model, "the published weights")
    facts = {"published": spec.published, "revision": spec.published_revision, "notes": notes}
    write_sealed(folder / REFERENCE, facts)
    return facts


def checkpoint(cache: str, key: str) -> tuple[str, str]:
    """Folder, or hub id and commit, of a prepared reference model, which is whole.

    Raises:
        RecordError: it is damaged, or gone.
    """
    folder = prepared_folder(cache, key)
    facts = reference_facts(folder)
    if "published" not in facts:
        return str(folder), ""
    return facts["published"], "" if os.path.isdir(facts["published"]) else facts["revision"]
