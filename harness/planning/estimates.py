"""Estimates the cost of a node from the model's size and the benchmark's token counts. Imports no torch.

On one large GPU:

Training takes 6 operations a weight and token, 8 with gradient checkpointing; scoring takes 2; a decoded token reads
all weights once for its batch. Memory of training is told by ``training.footprint``. Weights are loaded in float32.
Generation keeps 4 bytes a token, layer and unit of width: keys and values in bfloat16, every head with its own.

On a CPU the estimate is memory alone, for each stage: the libraries, and all tensors in float32.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..domain import Requires
from ..engine.budgets import CPU
from ..plugin.parameters import TRAINING_PARAMETERS, Value
from ..plugin.specs import ModelSpec
from ..records.node_spec import CellSpec, PlannedAttack, ReferenceSpec
from ..training.footprint import GIB, HELD, refuse_unfit, training_bytes

# Sustained rates measured on a single H100-class device with matrix products of this size.
OPERATIONS = 250e12
BANDWIDTH = 2.5e12
DECODE_ROWS = 64
# Resident memory of a process after importing torch, transformers and the evaluation libraries.
LIBRARIES = 0.43 * GIB
WORKLOAD = {"original", "retained", "forget", "row", "scored", "questions", "prompts", "generated"}
# Bytes of a weight as it is loaded.
LOADED = 4
# Tokens of the template beside a forget row, as a share of the row's; a retain row has as many as the forget row.
TEMPLATE_TOKENS = 0.25
# Rows and tokens assumed for a benchmark that does not declare its workload.
USUAL = {"row": 60.0, "questions": 500.0, "prompts": 1e4, "generated": 2e4}
# ``limit`` applies to each part, and a benchmark has at most four.
PARTS = 4


def shape_of(spec: ModelSpec) -> dict[str, float]:
    """Sizes of a model, from its spec, its architecture or a local folder's config.json.

    ``parameters``, ``layers``, ``width`` and, where known, ``inner``, ``vocabulary``, ``key_width`` (width of one
    layer's keys) and ``tied`` (1 where the output head is the embedding); empty where the sizes are unknown.
    """
    if spec.shape:
        return dict(spec.shape)
    if spec.architecture:
        sizes = spec.architecture
        width, inner, layers = sizes["width"], sizes["hidden"], sizes["layers"]
        parameters = sizes["vocabulary"] * width + layers * (4 * width**2 + 3 * width * inner)
        return {
            "parameters": parameters,
            "layers": layers,
            "width": width,
            "inner": inner,
            "vocabulary": sizes["vocabulary"],
            "key_width": width,
            "tied": 1,
        }
    folder = Path(spec.path)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        width, layers = config["hidden_size"], config["num_hidden_layers"]
        heads = config["num_attention_heads"]
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        kind = str(config.get("dtype") or config.get("torch_dtype") or "float32")
        shape = {
            "parameters": size / (4 if kind == "float32" else 2),
            "layers": layers,
            "width": width,
            "inner": config["intermediate_size"],
            "vocabulary": config["vocab_size"],
            "key_width": width / heads * (config.get("num_key_value_heads") or heads),
            "tied": float(bool(config.get("tie_word_embeddings", True))),
        }
    except (OSError, ValueError, KeyError, TypeError):
        # The config has other names, or there is no folder: no estimate.
        return {}
    return shape if size else {}


@dataclass(frozen=True)
class Estimate:
    """Seconds and bytes of device memory, on one GPU of the H100's class."""

    seconds: float
    memory: float

    def __str__(self) -> str:
        minutes = self.seconds / 60
        time = f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
        return f"≈ {f'{self.seconds:.0f} s' if minutes < 2 else time}, {self.memory / GIB:.0f} GiB"


def estimated(spec: ReferenceSpec | CellSpec) -> Estimate | None:
    """The estimate of a planned node; None where the model's size or the benchmark's token counts are unknown."""
    shape, workload = spec.model.shape, spec.benchmark.workload
    if not shape or not workload.keys() >= WORKLOAD or spec.source.kind == "generated":
        return None
    if isinstance(spec, ReferenceSpec):
        return _preparation(spec)
    evaluation = _evaluation(shape, workload, spec.method.models)
    if spec.attack:
        return _attacked(spec, spec.attack, evaluation)
    if not spec.method.trains:
        return evaluation
    training = _unlearning(spec)
    return Estimate(training.seconds + evaluation.seconds, max(training.memory, evaluation.memory))


def refuse_too_large(specs: Iterable[ReferenceSpec | CellSpec], available: float) -> None:
    """Raise UsageError where a node needs more than a GPU's memory (bytes), naming optimisers that fit."""
    known = [(spec, cost.memory) for spec in specs if spec.device_kind == "cuda" and (cost := estimated(spec))]
    if known:
        largest, _ = max(known, key=lambda pair: pair[1])
        refuse_unfit(largest.title, largest.run.optimiser, available, lambda name: _with(largest, name).memory)


def _with(spec: ReferenceSpec | CellSpec, optimiser: str) -> Estimate:
    """The estimate of a node with another optimiser."""
    found = estimated(spec.model_copy(update={"run": spec.run.model_copy(update={"optimiser": optimiser})}))
    assert found
    return found


def _attacked(spec: CellSpec, attack: PlannedAttack, evaluation: Estimate) -> Estimate:
    """An attack with its measurement, at most: that of all questions, of which it asks those on the forget set.

    The cell that is attacked leaves its weights, so that unlearning is no part of it.
    """
    seconds = evaluation.seconds * float(attack.values.get("samples", 1))
    recipe = _recipe_of(attack)
    if not recipe:
        return Estimate(seconds, evaluation.memory)
    row = spec.benchmark.workload["row"]
    tokens = row * _number(recipe, "steps") * _number(recipe, "batch_size")
    training = _training(spec, recipe, tokens, row)
    return Estimate(seconds + training.seconds, max(training.memory, evaluation.memory))


def _recipe_of(attack: PlannedAttack) -> dict[str, Value]:
    """The training of an attack that takes optimiser steps; empty for any other."""
    if not {"steps", "batch_size"} <= attack.values.keys():
        return {}
    return {**{parameter.name: parameter.default for parameter in TRAINING_PARAMETERS}, **attack.values}


def _number(values: Mapping[str, Value], name: str) -> float:
    return float(values[name])


def _beside(requires: Requires) -> float:
    """Tokens of the rows beside a forget row, as a share of its own."""
    return requires.retain + TEMPLATE_TOKENS * requires.template


def _preparation(spec: ReferenceSpec) -> Estimate:
    """Fine-tuning of a reference model, or reading a published one."""
    weights, workload = float(spec.model.shape["parameters"]), spec.benchmark.workload
    if spec.published or not workload[spec.role]:
        return Estimate(LOADED * weights / 1e9, LOADED * weights)
    tokens = workload[spec.role] * _number(spec.recipe, "epochs")
    return _training(spec, spec.recipe, tokens, workload["row"])


def _unlearning(spec: CellSpec) -> Estimate:
    """The training of a method; a frozen original model also reads the retain rows."""
    requires, values, workload = spec.method.requires, spec.method.values, spec.benchmark.workload
    frozen = float(requires.original == "model")
    tokens = workload["forget"] * _number(values, "epochs") * (1 + _beside(requires))
    row = workload["row"] * (1 + _beside(requires))
    return _training(spec, values, tokens, row, frozen, frozen * requires.retain)


def _training(
    spec: ReferenceSpec | CellSpec,
    values: Mapping[str, Value],
    tokens: float,
    row: float,
    frozen: float = 0.0,
    frozen_share: float = 0.0,
) -> Estimate:
    """Training on one GPU, or on each of several.

    Args:
        tokens: number of tokens that the forward passes read.
        row: tokens of all parts of one row.
        frozen: number of frozen models in memory, in bfloat16.
        frozen_share: the share of tokens that a frozen model also reads.
    """
    shape, run = spec.model.shape, spec.run
    checkpointing = bool(values["gradient_checkpointing"])
    operations = ((8 if checkpointing else 6) + 2 * frozen_share) * float(shape["parameters"]) * tokens
    memory = training_bytes(
        shape,
        run.optimiser,
        row * _number(values, "batch_size"),
        rank=spec.model.spec.lora_rank,
        checkpointing=checkpointing,
        frozen=frozen,
        processes=run.processes,
    )
    return Estimate(operations / OPERATIONS / run.processes, max(memory, LOADED * float(shape["parameters"])))


def _evaluation(shape: Mapping[str, float], workload: Mapping[str, float], models: int) -> Estimate:
    """Scoring and generation on one GPU by ``models`` models that answer together."""
    weights = float(shape["parameters"])
    scoring = 2 * weights * models * (workload["scored"] + workload["prompts"]) / OPERATIONS
    decoding = workload["generated"] / DECODE_ROWS * 2 * weights * models / BANDWIDTH
    cached = DECODE_ROWS * (workload["prompts"] + workload["generated"]) / max(workload["questions"], 1)
    cache = 4 * cached * shape["layers"] * shape["width"]
    return Estimate(scoring + decoding, max((2.5 * weights + cache) * models, LOADED * weights))


def resident(spec: ReferenceSpec | CellSpec) -> dict[str, float]:
    """Bytes of resident memory of each stage of a planned node on a CPU; empty where the model's size is unknown."""
    if spec.device_kind != "cpu" or not spec.model.shape:
        return {}
    if isinstance(spec, ReferenceSpec):
        return {} if spec.published else {"train": _resident_training(spec, spec.recipe, Requires())}
    weights = 4.0 * spec.model.shape["parameters"]
    # Loading maps the weights' file: pages not yet read are not resident.
    stages = {"load": LIBRARIES, "measure": LIBRARIES + spec.method.models * weights + _resident_evaluation(spec)}
    if spec.attack:
        recipe = _recipe_of(spec.attack)
        if recipe:
            stages["attack"] = _resident_training(spec, recipe, Requires())
    elif spec.method.trains:
        stages["unlearn"] = _resident_training(spec, spec.method.values, spec.method.requires)
    return stages


def _resident_training(spec: ReferenceSpec | CellSpec, values: Mapping[str, Value], requires: Requires) -> float:
    """Resident bytes of a process that trains in float32 on a CPU."""
    shape = spec.model.shape
    width, layers = shape["width"], shape["layers"]
    inner, vocabulary = shape.get("inner", 4 * width), shape.get("vocabulary", 50_000)
    row = {**USUAL, **spec.benchmark.workload}["row"]
    if not spec.model.from_scratch and row <= 256:
        # A chat template adds about half of a short row.
        row *= 1.5
    frozen = float(requires.original == "model")
    tokens = row * _number(values, "batch_size") * (1 + _beside(requires))
    # For each layer and token the backward pass needs norms, projections, attention and the inner states.
    kept = 4.0 * (12 * width + 4 * inner)
    activations = kept + 4.0 * width if values["gradient_checkpointing"] else kept * layers
    # Logits and their gradient at the answers, about half of a row; a divergence between two models keeps more.
    logits = 4.0 * vocabulary * tokens / 2 * (6 if frozen else 2)
    held = HELD[spec.run.optimiser]
    # An adapter's gradients and moments are small.
    states = (held.weight if spec.model.spec.lora_rank else sum(held)) + 4.0 * frozen
    return float(LIBRARIES + states * shape["parameters"] + activations * tokens + logits)


def _resident_evaluation(spec: CellSpec) -> float:
    """Bytes beside the weights while a benchmark measures on a CPU: a scoring pass, or a batch's keys and values."""
    shape, values = spec.model.shape, spec.benchmark.values
    workload = {**USUAL, **spec.benchmark.workload}
    width = shape["width"]
    inner = shape.get("inner", 4 * width)
    scoring = 4.0 * (2 * CPU.head_piece + CPU.positions * (8 * width + 3 * inner))
    column = 4.0 * 2 * shape["layers"] * shape.get("key_width", width)
    asked = min(workload["questions"], PARTS * float(values.get("limit", 0)) or workload["questions"])
    written = float(values.get("max_new_tokens", 0)) or workload["generated"] / workload["questions"]
    tokens = asked * (workload["prompts"] / workload["questions"] + written)
    least, most = CPU.cache_bytes
    weights = 4.0 * shape["parameters"]
    cached = min(CPU.cached_tokens, min(max(2 * weights, least), most) / column, tokens)
    return max(scoring, cached * column)


def checkpoints(specs: Iterable[ReferenceSpec | CellSpec]) -> list[str]:
    """Checkpoints to fetch or train, one line for each reference model."""
    lines = []
    for spec in specs:
        if not isinstance(spec, ReferenceSpec):
            continue
        path = spec.model.spec.path
        base = path or "a model from scratch"
        made = f"published {spec.published}" if spec.published else f"trained here from {base}"
        if path and spec.benchmark.workload.get(spec.role) == 0:
            made = f"{base} as it is"
        lines.append(f"{spec.role} {spec.model.name} for {spec.benchmark.name}: {made}")
    return list(dict.fromkeys(lines))
