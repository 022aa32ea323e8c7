"""The work of one process: prepare a reference model, or run one cell. The only code that meets a model."""

from __future__ import annotations

import hashlib
import importlib
import math
import os
import random
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from . import models, sharding
from .context import PRECISIONS, Context, Preparation, derived_seed
from .domain import Measurement, Requires, Task, UnlearningData
from .errors import Diverged, HarnessError, NotApplicable, PluginError, RecordError, StorageError, UsageError
from .execution import DISK_REFUSED
from .hyperparameters import Training
from .memory import Peaks, lacks_memory, release
from .paths import taken
from .plugins import import_file
from .prepared import REFERENCE, prepared_folder, reference_facts
from .recomputation import scores_of
from .records import (
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
from .specs import DataSpec, ModelSpec, resolve
from .storage import (
    alone,
    as_storage_error,
    digest,
    file_digest,
    read_json,
    read_rows,
    rows_as_bytes,
    write_bytes,
    write_sealed,
)
from .tables import DataSource, read_tables


def run_node(folder: str) -> int:
    """Run the node whose ``spec.json`` lies in ``folder`` and leave ``status.json`` there.

    Returns the exit status of the process: 0 where a status was written, DISK_REFUSED where it could not be.
    """
    path = Path(folder)
    written = path / "spec.json"
    spec = read_json(written, "run the study again")
    began = time.time()
    clock = time.perf_counter()
    try:
        status = _guarded(path, spec)
        status |= {"key": spec["key"], "content": spec["content"], "started": round(began, 3)}
        status["spec_sha256"] = file_digest(written)
        status["seconds"] = round(time.perf_counter() - clock, 3)
        if sharding.rank():
            # The first process writes; its companions say by their exit status that something is wrong.
            return 0 if status["status"] in ("done", "not-applicable", "diverged") else 1
        write_sealed(path / "status.json", status)
    except StorageError as error:
        print(error, file=sys.stderr)
        return DISK_REFUSED
    return 0


def _guarded(path: Path, spec: Mapping[str, Any]) -> dict[str, Any]:
    """Run, and turn every failure but a full disk into a status with its reason."""
    try:
        _set_threads(spec["run"].get("threads", 0))
        notes = _prepare_model(spec) if spec["kind"] == "model" else _run_cell(path, spec)
        return {"status": "done", "reason": "", **notes}
    except StorageError:
        raise
    except NotApplicable as error:
        return {"status": "not-applicable", "reason": _line(error)}
    except Diverged as error:
        return {"status": "diverged", "reason": _line(error)}
    except HarnessError as error:
        traceback.print_exc()
        return {"status": "failed", "reason": _line(error), "error": type(error).__name__, "exit_code": error.exit_code}
    except OSError as error:
        translated = as_storage_error(error, path)
        if isinstance(translated, StorageError):
            raise translated from error
        traceback.print_exc()
        return {"status": "failed", "reason": f"{type(error).__name__}: {_line(error)}"}
    except Exception as error:  # noqa: BLE001 - a method may raise anything; its cell fails alone
        if lacks_memory(error):
            return {"status": "out-of-memory", "reason": _line(error) or "out of memory"}
        traceback.print_exc()
        return {"status": "failed", "reason": f"{type(error).__name__}: {_line(error)}"}


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _set_threads(threads: int) -> None:
    if threads:
        torch.set_num_threads(threads)


def _log(message: str) -> None:
    print(message, flush=True)


def device_of(run: Mapping[str, Any]) -> torch.device:
    """``auto`` is the first GPU where there is one."""
    name = run.get("device", "auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and sharding.processes() > 1:
        name = f"cuda:{sharding.local_rank()}"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"run.device = {name!r}: no GPU is visible here; use --device cpu")
    return torch.device(name)


def _seed_everything(seed: int) -> None:
    """Global generators too: a stranger's method may use them."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _model_spec(spec: Mapping[str, Any]) -> ModelSpec:
    return ModelSpec(**{key: value for key, value in spec["model"].items() if key != "fingerprint"})


def _load_plugin_files(spec: Mapping[str, Any]) -> None:
    for plugin in spec["plugins"].values():
        if os.sep in plugin["source"]:
            import_file(Path(plugin["source"]))


def _task(spec: Mapping[str, Any], encoder: Any) -> tuple[Any, Task]:
    """The benchmark object and its prepared task; ``encoder`` as ``Preparation.encoder``."""
    entry = spec["benchmark"]
    data = entry["data"]
    tables = read_tables(_data_spec(data), DataSource(**spec["data"]))
    benchmark = resolve(entry["target"], entry["qualified"])(**entry["values"], **entry["fixed"])
    generated = spec["data"]["kind"] == "generated"
    return benchmark, benchmark.prepare(Preparation(tables, encoder, not spec["model"]["architecture"], generated))


def _data_spec(data: Mapping[str, Any]) -> DataSpec:
    fields = {key: value for key, value in data.items() if key != "fingerprints"}
    return DataSpec(**{**fields, "tables": {name: tuple(names) for name, names in data["tables"].items()}})


# -- reference models -------------------------------------------------------------------------------------------


def _prepare_model(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Train a reference model into the cache, or check that a published one loads."""
    lock = prepared_folder(spec["cache"], spec["key"]).parent / f".{spec['key']}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    if sharding.rank():
        return _prepare_locked(spec)
    with lock.open("a") as file:
        # Another run may be preparing the same model; then this one waits and takes it.
        alone(file, wait=True)
        return _prepare_locked(spec)


def _prepare_locked(spec: Mapping[str, Any]) -> dict[str, Any]:
    folder = prepared_folder(spec["cache"], spec["key"])
    with suppress(RecordError):
        return reference_facts(folder)
    _load_plugin_files(spec)
    model_spec = _model_spec(spec)
    if spec["published"]:
        return _publish_locked(spec, model_spec, folder)
    seed = derived_seed(spec["seed"], "reference")
    _seed_everything(seed)
    device = device_of(spec["run"])
    _, task = _task(spec, lambda corpus: models.make_encoder(model_spec, corpus))
    rows = task.training[spec["role"]]
    notes = list(task.encoder.notes)
    model = models.load_base(model_spec, task.encoder, spec["seed"], notes)
    models.check_finite(model, "the base model's weights, before any training")
    ctx = Context("reference", seed, device, _log, autocast=_autocast(model_spec, device))
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
        "paths": taken(),
    }
    if not sharding.rank():
        models.save_checkpoint(folder, model.cpu(), task.encoder.tokenizer, facts)
    return facts


def _publish_locked(spec: Mapping[str, Any], model_spec: ModelSpec, folder: Path) -> dict[str, Any]:
    """Check that a published checkpoint loads and suits the benchmark, and note where it is."""
    # A local folder's revision is the hash of its files, which loading does not take.
    revision = "" if os.path.isdir(spec["published"]) else spec["published_revision"]
    encoder = models.saved_encoder(model_spec, spec["published"], revision)
    _task(spec, lambda _: encoder)
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


def _autocast(spec: ModelSpec, device: torch.device) -> str:
    dtype = models.compute_dtype(spec, device)
    return next((name for name, precision in PRECISIONS.items() if precision == dtype), "no")


# -- cells --------------------------------------------------------------------------------------------------------


def _run_cell(path: Path, spec: Mapping[str, Any]) -> dict[str, Any]:
    clock = _Clock()
    _load_plugin_files(spec)
    entry = spec["method"]
    method = resolve(entry["target"], entry["qualified"])(**entry["values"], **entry["fixed"])
    requires = Requires(**entry["requires"])
    model_spec = _model_spec(spec)
    device = device_of(spec["run"])
    start, revision = checkpoint(spec, spec["models"][requires.start])
    clock.device = device
    with clock("load"):
        encoder = models.saved_encoder(model_spec, start, revision)
        benchmark, task = _task(spec, lambda _: encoder)
        model = models.load_checkpoint(start, model_spec, revision).to(device)
    seed = derived_seed(spec["seed"], entry["name"], spec["benchmark"]["name"], spec["model"]["name"])
    _seed_everything(seed)
    if requires.retain and not task.retain:
        raise NotApplicable(f"{entry['name']} needs a retain set, and {spec['benchmark']['name']} has none here")
    dtype = models.compute_dtype(model_spec, device)
    ctx = Context(entry["name"], seed, device, _log, None, _autocast(model_spec, device))
    unlearned = model
    with clock("unlearn"):
        for forget in (*task.earlier, task.forget):
            data = UnlearningData(entry["name"], requires, encoder, forget, task.retain, spec["templates"])
            ctx = ctx.for_request(models.frozen_copy(unlearned, dtype) if requires.original == "model" else None)
            unlearned = _unlearn(method, unlearned, model_spec, encoder.tokenizer, data, ctx, entry)
        _synchronise(device)
    del model
    if sharding.rank():
        return {}
    ctx = ctx.for_request(None, "measure")
    release()
    unlearned = models.cast(unlearned, dtype).eval()
    with clock("measure"):
        measurement = benchmark.measure(unlearned, task, ctx)
    record = _record(path, spec, benchmark, measurement, ctx, clock, dtype, encoder, task.notes)
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


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _record(
    path: Path,
    spec: Mapping[str, Any],
    benchmark: Any,
    measurement: Measurement,
    ctx: Context,
    clock: _Clock,
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
            "processes": sharding.processes(),
            "paths": taken(),
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


class _Clock:
    """Wall and processor time by stage, and the most memory it took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.cpu_seconds: dict[str, float] = {}
        self.peaks = Peaks()
        self.device = torch.device("cpu")

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        began, busy = time.perf_counter(), time.process_time()
        try:
            with self.peaks.stage(stage, self.device):
                yield
        finally:
            self.seconds[stage] = time.perf_counter() - began
            self.cpu_seconds[stage] = time.process_time() - busy


# Logs are read later, not watched.
transformers.utils.logging.disable_progress_bar()
# A process forked after this has them ready; benchmarks import them anyway (1 s in each process otherwise).
for _module in ("transformers.models.llama.modeling_llama", "unlearnbench.statistics", "unlearnbench.text"):
    importlib.import_module(_module)
# Before any checkpoint is loaded, transformers compiles some nine hundred patterns for all models (60 ms).
with suppress(ImportError):
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    get_checkpoint_conversion_mapping("llama")
