"""Runs one cell: load, unlearn, measure, record."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..contracts import Context, UnlearningData, derived_seed
from ..domain import Requires
from ..engine import process_group
from ..engine.memory import release
from ..errors import (
    NotApplicable,
    PluginError,
)
from ..plugin.specs import ModelSpec, resolve
from ..storage import (
    write_bytes,
)
from ..training import models
from .record_builder import build_record
from .reference import checkpoint
from .setup import (
    _model_spec,
    autocast_of,
    device_of,
    load_plugin_files,
    log,
    prepare_task,
    seed_everything,
    synchronise,
)
from .stage_meter import StageMeter

# -- cells --------------------------------------------------------------------------------------------------------


def run_cell(path: Path, spec: Mapping[str, Any]) -> dict[str, Any]:
    clock = StageMeter()
    load_plugin_files(spec)
    entry = spec["method"]
    method = resolve(entry["target"], entry["qualified"])(**entry["values"], **entry["fixed"])
    requires = Requires(**entry["requires"])
    model_spec = _model_spec(spec)
    device = device_of(spec["run"])
    start, revision = checkpoint(spec, spec["models"][requires.start])
    clock.device = device
    with clock("load"):
        encoder = models.saved_encoder(model_spec, start, revision)
        benchmark, task = prepare_task(spec, lambda _: encoder)
        model = models.load_checkpoint(start, model_spec, revision).to(device)
    seed = derived_seed(spec["seed"], entry["name"], spec["benchmark"]["name"], spec["model"]["name"])
    seed_everything(seed)
    if requires.retain and not task.retain:
        raise NotApplicable(f"{entry['name']} needs a retain set, and {spec['benchmark']['name']} has none here")
    dtype = models.compute_dtype(model_spec, device)
    ctx = Context(entry["name"], seed, device, log, None, autocast_of(model_spec, device))
    unlearned = model
    with clock("unlearn"):
        for forget in (*task.earlier, task.forget):
            data = UnlearningData(entry["name"], requires, encoder, forget, task.retain, spec["templates"])
            ctx = ctx.for_request(models.frozen_copy(unlearned, dtype) if requires.original == "model" else None)
            unlearned = _unlearn(method, unlearned, model_spec, encoder.tokenizer, data, ctx, entry)
        synchronise(device)
    del model
    if process_group.rank():
        return {}
    ctx = ctx.for_request(None, "measure")
    release()
    unlearned = models.cast(unlearned, dtype).eval()
    with clock("measure"):
        measurement = benchmark.measure(unlearned, task, ctx)
    record = build_record(path, spec, benchmark, measurement, ctx, clock, dtype, encoder, task.notes)
    if spec["run"].get("keep_model"):
        models.save_checkpoint(path / "model", unlearned.cpu(), encoder.tokenizer)
    content = record.model_dump_json(indent=1).encode() + b"\n"
    write_bytes(path / "record.json", content)
    left = {"record_sha256": hashlib.sha256(content).hexdigest(), "samples_sha256": record.samples.sha256,
            "scoring": spec["benchmark"]["scoring"]}  # fmt: skip
    return {**left, "incomplete": measurement.incomplete} if measurement.incomplete else left


def _unlearn(
    method: Any, model: Any, spec: ModelSpec, tokenizer: Any, data: Any, ctx: Context, entry: Mapping[str, Any]
) -> Any:
    """The method's verb, with what it returns checked."""
    adapted = spec.lora_rank and not entry["reference"]
    if adapted:
        model = models.with_adapter(model, spec.lora_rank)
    vocabulary = model.get_input_embeddings().num_embeddings
    unlearned = method.unlearn(model, tokenizer, data, ctx)
    if unlearned is None:
        raise PluginError(entry["qualified"], "unlearn returned None; return the unlearned model")
    if not callable(getattr(unlearned, "named_parameters", None)):
        raise PluginError(entry["qualified"], f"unlearn returned {type(unlearned).__name__}, expected a model")
    if adapted and hasattr(unlearned, "merge_and_unload"):
        unlearned = unlearned.merge_and_unload()
    models.check_finite(unlearned)
    if unlearned.get_input_embeddings().num_embeddings != vocabulary:
        raise PluginError(entry["qualified"], "unlearn changed the size of the vocabulary")
    return unlearned
