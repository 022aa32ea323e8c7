"""What a node will cost, from the model's size and the benchmark's token counts. No torch.

On one large GPU:

Training takes 6 operations a weight and token, 8 with gradient checkpointing; scoring takes 2; a decoded token reads
all weights once for its batch. Memory is float32 weights, gradients and AdamW's two moments (16 bytes a weight), a
frozen model in bfloat16 where a method keeps one, and activations of one forward pass (34 bytes a token, layer and
unit of width in bfloat16: Korthikanti et al. 2022, arXiv:2205.05198, eq. 2 without its attention scores).
Generation keeps 4 bytes a token, layer and unit of width: keys and values in bfloat16, every head with its own.

On a CPU only memory is estimated, of each stage: the libraries, and everything in float32.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..plugin.specs import ModelSpec

# Sustained rates that a single H100-class device has been seen to reach with matrix products of this size.
OPERATIONS = 250e12
BANDWIDTH = 2.5e12
DECODE_ROWS = 64
GIB = 2**30
# Resident memory of a process that has torch, transformers and the evaluation libraries imported.
LIBRARIES = 0.43 * GIB
# What scoring and generation on a CPU bound their batches by; a test holds these against the engine's own.
CPU_POSITIONS, CPU_PIECE, CPU_CACHED, CPU_CACHE_BYTES = 2048, 2**20, 24576, (2**27, 2**30)
WORKLOAD = {"original", "retained", "forget", "row", "scored", "questions", "prompts", "generated"}


def shape_of(spec: ModelSpec) -> dict[str, float]:
    """Sizes of a model: those that its spec declares, of its architecture, or of a local folder's config.json.

    ``parameters``, ``layers``, ``width`` and, where they are known, ``inner``, ``vocabulary`` and ``key_width`` (of the
    keys of one layer); empty where nothing is known.
    """
    if spec.shape:
        return dict(spec.shape)
    if spec.architecture:
        sizes = spec.architecture
        width, inner, layers = sizes["width"], sizes["hidden"], sizes["layers"]
        parameters = sizes["vocabulary"] * width + layers * (4 * width**2 + 3 * width * inner)
        return {"parameters": parameters, "layers": layers, "width": width, "inner": inner,
                "vocabulary": sizes["vocabulary"], "key_width": width}  # fmt: skip
    folder = Path(spec.path)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        width, layers = config["hidden_size"], config["num_hidden_layers"]
        heads = config["num_attention_heads"]
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        kind = str(config.get("dtype") or config.get("torch_dtype") or "float32")
        shape = {"parameters": size / (4 if kind == "float32" else 2), "layers": layers, "width": width,
                 "inner": config["intermediate_size"], "vocabulary": config["vocab_size"],
                 "key_width": width / heads * (config.get("num_key_value_heads") or heads)}  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError):
        # A family with other names, or no folder at all: then there is no estimate.
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


def estimated(spec: Mapping[str, Any]) -> Estimate | None:
    """The estimate of a planned node; None where the model's size or the benchmark's token counts are not known."""
    shape, workload = spec["model"]["shape"], spec["benchmark"]["workload"]
    if not shape or not workload.keys() >= WORKLOAD or spec["data"]["kind"] == "generated":
        return None
    weights = float(shape["parameters"])
    if spec["kind"] == "model":
        if spec["published"] or not workload[spec["role"]]:
            return Estimate(4 * weights / 1e9, 4 * weights)
        recipe = spec["recipe"]
        return _training(shape, recipe, workload[spec["role"]] * recipe["epochs"], workload["row"], 0.0, 0.0)
    method = spec["method"]
    evaluation = _evaluation(shape, workload, method["models"])
    values = method["values"]
    if method["reference"] or "epochs" not in values:
        return evaluation
    requires = method["requires"]
    # Beside the forget row stand a retain row of its length, and a template of a quarter of it.
    beside = requires["retain"] + 0.25 * requires["template"]
    kept = 1.0 if requires["original"] == "model" else 0.0
    tokens = workload["forget"] * values["epochs"] * (1 + beside)
    training = _training(shape, values, tokens, workload["row"] * (1 + beside), kept * requires["retain"], kept,
                         spec["model"]["lora_rank"])  # fmt: skip
    return Estimate(training.seconds + evaluation.seconds, max(training.memory, evaluation.memory))


def resident(spec: Mapping[str, Any]) -> dict[str, float]:
    """Bytes of resident memory of each stage of a planned node on a CPU; empty where the model's size is not known."""
    shape = spec["model"]["shape"]
    if spec["device"] != "cpu" or not shape:
        return {}
    workload = {"row": 60.0, "questions": 500.0, "prompts": 1e4, "generated": 2e4, **spec["benchmark"]["workload"]}
    # A chat template adds about half of a short row.
    row = workload["row"] * (1.0 if spec["model"]["architecture"] or workload["row"] > 256 else 1.5)
    weights = 4.0 * shape["parameters"]
    inner, vocabulary = shape.get("inner", 4 * shape["width"]), shape.get("vocabulary", 50_000)
    # Of a layer and token: what the backward pass needs (norms, projections, attention, the inner states).
    kept = 4.0 * shape["layers"] * (12 * shape["width"] + 4 * inner)

    def trained(recipe: Mapping[str, Any], beside: float, frozen: float) -> float:
        tokens = row * recipe["batch_size"] * (1 + beside)
        # Logits and their gradient at the answers, about half of a row; a divergence of two models keeps more.
        logits = 4.0 * vocabulary * tokens / 2 * (6 if frozen else 2)
        layers = kept if not recipe["gradient_checkpointing"] else kept / shape["layers"] + 4.0 * shape["width"]
        return float(LIBRARIES + (4 + frozen) * weights + layers * tokens + logits)

    if spec["kind"] == "model":
        return {} if spec["published"] else {"train": trained(spec["recipe"], 0.0, 0.0)}
    method = spec["method"]
    requires, models = method["requires"], method["models"]
    scoring = 4.0 * (2 * CPU_PIECE + CPU_POSITIONS * (8 * shape["width"] + 3 * inner))
    column = 4.0 * 2 * shape["layers"] * shape.get("key_width", shape["width"])
    values = spec["benchmark"]["values"]
    # A limit is of each part, and a benchmark has four at most.
    asked = min(workload["questions"], 4 * values.get("limit", 0) or workload["questions"])
    written = values.get("max_new_tokens") or workload["generated"] / workload["questions"]
    rows = asked * (workload["prompts"] / workload["questions"] + written)
    least, most = CPU_CACHE_BYTES
    cached = min(CPU_CACHED, min(max(2 * weights, least), most) / column, rows)
    # Weights are mapped from their file: what is not read yet is not resident.
    stages = {"load": LIBRARIES, "measure": LIBRARIES + models * weights + max(scoring, cached * column)}
    if not method["reference"] and "epochs" in method["values"]:
        kept_whole = float(requires["original"] == "model")
        stages["unlearn"] = trained(method["values"], requires["retain"] + 0.25 * requires["template"], kept_whole)
    return stages


def _training(
    shape: Mapping[str, float],
    recipe: Mapping[str, Any],
    tokens: float,
    row: float,
    extra_forward: float,
    frozen: float,
    lora_rank: int = 0,
) -> Estimate:
    """Args:
    row: tokens of all parts of one row; extra_forward: share of tokens that a frozen model reads too;
    frozen: how many frozen models are kept.
    """
    weights = float(shape["parameters"])
    checkpointing = recipe["gradient_checkpointing"]
    operations = ((8 if checkpointing else 6) + 2 * extra_forward) * weights * tokens
    in_pass = row * recipe["batch_size"]
    layer = 34 * in_pass * shape["width"]
    activations = layer + 2 * in_pass * shape["width"] * shape["layers"] if checkpointing else layer * shape["layers"]
    states = 4 if lora_rank else 16
    return Estimate(operations / OPERATIONS, (states + 2 * frozen) * weights + activations)


def _evaluation(shape: Mapping[str, float], workload: Mapping[str, float], models: int) -> Estimate:
    weights = float(shape["parameters"])
    scoring = 2 * weights * models * (workload["scored"] + workload["prompts"]) / OPERATIONS
    decoding = workload["generated"] / DECODE_ROWS * 2 * weights * models / BANDWIDTH
    cached = DECODE_ROWS * (workload["prompts"] + workload["generated"]) / max(workload["questions"], 1)
    cache = 4 * cached * shape["layers"] * shape["width"]
    return Estimate(scoring + decoding, (2.5 * weights + cache) * models)


def checkpoints(specs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What has to be fetched or trained, one line for each reference model."""
    lines = []
    for spec in specs:
        if spec["kind"] != "model":
            continue
        model = spec["model"]
        base = model["path"] or "a model from scratch"
        made = f"published {spec['published']}" if spec["published"] else f"trained here from {base}"
        if model["path"] and spec["benchmark"]["workload"].get(spec["role"]) == 0:
            made = f"{base} as it is"
        lines.append(f"{spec['role']} {model['name']} for {spec['benchmark']['name']}: {made}")
    return list(dict.fromkeys(lines))
