"""What a node will cost on one large GPU, from the model's size and the benchmark's token counts. No torch.

Training takes 6 operations a weight and token, 8 with gradient checkpointing; scoring takes 2; a decoded token reads
all weights once for its batch. Memory is float32 weights, gradients and AdamW's two moments (16 bytes a weight), a
frozen model in bfloat16 where a method keeps one, and activations of one forward pass (34 bytes a token, layer and
unit of width in bfloat16: Korthikanti et al. 2022, arXiv:2205.05198, eq. 2 without its attention scores).
Generation keeps 4 bytes a token, layer and unit of width: keys and values in bfloat16, every head with its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Sustained rates that a single H100-class device has been seen to reach with matrix products of this size.
OPERATIONS = 250e12
BANDWIDTH = 2.5e12
DECODE_ROWS = 64
GIB = 2**30
WORKLOAD = {"original", "retained", "forget", "row", "scored", "questions", "prompts", "generated"}


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
