"""How near the engine comes to what a device can do: training, scoring and decoding on random weights.

Utilisation is arithmetic over the measured rate of matrix products: 6 operations a weight and token in training (2 of
the forward pass, 4 of the backward pass), 2 in scoring. Decoding reads all weights and the cache once for every token
of a batch, so its bound is bytes over the measured bandwidth of copies.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..contracts import Context
from ..data.encoder import EncodedRow
from ..engine.engine import Engine
from ..engine.memory import release
from ..engine.numerics import PRECISIONS
from .footprint import LORA_RANK
from .loop import train
from .loss import Batch
from .loss_method import FineTune
from .models import with_adapter


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama: of SmolLM2-135M, Llama-3.2-1B, Llama-2-7B, and one to try the command with."""

    layers: int
    width: int
    inner: int
    heads: int
    key_heads: int
    vocabulary: int
    tied: bool


SHAPES = {
    "tiny": Shape(2, 64, 128, 4, 2, 512, True),
    "135m": Shape(30, 576, 1536, 9, 3, 49152, True),
    "1b": Shape(16, 2048, 8192, 32, 8, 128256, True),
    "7b": Shape(32, 4096, 11008, 32, 32, 32000, False),
}
# Rows of about the length of TOFU's, and how many: a training batch, a scoring pass, a batch that is generated.
ROW, SCORED, WRITTEN, NEW_TOKENS = 96, 2048, 256, 128
TRAINED, STEPS = 32, 6


@dataclass(frozen=True)
class Limits:
    """What the device itself does: operations and bytes a second."""

    operations: float
    bandwidth: float


@dataclass(frozen=True)
class Stage:
    """Tokens a second of one stage, and the share of the bound that this is; ``missing`` says why there is none."""

    shape: str
    stage: str
    tokens_per_second: float = 0.0
    utilisation: float = 0.0
    peak_bytes: int = 0
    missing: str = ""


def measured_limits(device: torch.device, dtype: torch.dtype) -> Limits:
    """The best of some matrix products and copies, large enough to fill the device."""
    side, elements = (8192, 2**29) if device.type == "cuda" else (1024, 2**25)
    one, other = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    product = torch.empty_like(one)
    source = torch.zeros(elements, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    best = _best(lambda: torch.mm(one, other, out=product), device)
    copied = _best(lambda: target.copy_(source), device)
    return Limits(2 * side**3 / best, 2 * elements / copied)


def stages(name: str, limits: Limits, device: torch.device, optimiser: str = "adamw") -> Iterator[Stage]:
    """Training, scoring and decoding of one shape, as the harness does them on this device.

    Args:
        optimiser: as ``run.optimiser``; with AdamW in float32 the states of 7B do not fit 80 GB.
    """
    shape = SHAPES[name]
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    for stage, measure in (("training", _training), ("scoring", _scoring), ("decoding", _decoding)):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        try:
            tokens, used = measure(shape, limits, device, dtype, optimiser)
            peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
            yield Stage(name, stage, tokens, used, peak)
        except torch.OutOfMemoryError:
            yield Stage(name, stage, missing="does not fit into this device's memory")
        release()


def _training(
    shape: Shape, limits: Limits, device: torch.device, dtype: torch.dtype, optimiser: str
) -> tuple[float, float]:
    model = _model(shape, device, torch.float32)
    weights = _weights(model)
    if optimiser == "lora":
        model = with_adapter(model, LORA_RANK)
    recipe = FineTune(epochs=1, batch_size=TRAINED, learning_rate=1e-5, gradient_checkpointing=shape.width > 2048)
    engine = Engine(device)
    rows = _rows(shape, TRAINED * STEPS)
    began: list[float] = []

    def batches() -> Iterator[list[Batch]]:
        for step in range(STEPS):
            # The first steps allocate and choose kernels.
            if step == 2:
                _wait(device)
                began.append(time.perf_counter())
            yield [Batch({"forget": engine.collate(rows[step * TRAINED : (step + 1) * TRAINED])})]

    precision = next((name for name, kind in PRECISIONS.items() if kind == dtype), "no")
    ctx = Context("bench", 0, engine, lambda _: None, autocast=precision, optimiser=optimiser)
    train(model, recipe, batches(), len(rows), ctx)
    _wait(device)
    seconds = time.perf_counter() - began[0]
    tokens = sum(len(row.ids) for row in rows[2 * TRAINED :]) / seconds
    # Frozen weights need no gradient of their own: 2 operations less.
    return tokens, (4 if optimiser == "lora" else 6) * weights * tokens / limits.operations


def _scoring(shape: Shape, limits: Limits, device: torch.device, dtype: torch.dtype, _: str) -> tuple[float, float]:
    model = _model(shape, device, dtype)
    rows = _rows(shape, SCORED if device.type == "cuda" else 32)
    engine = Engine(device)
    engine.score(model, rows[:16])
    seconds = _timed(lambda: engine.score(model, rows), device)
    tokens = sum(len(row.ids) for row in rows) / seconds
    return tokens, 2 * _weights(model) * tokens / limits.operations


def _decoding(shape: Shape, limits: Limits, device: torch.device, dtype: torch.dtype, _: str) -> tuple[float, float]:
    model = _model(shape, device, dtype)
    prompts = [row.ids[: ROW // 2] for row in _rows(shape, WRITTEN if device.type == "cuda" else 8)]
    engine = Engine(device)
    engine.generate(model, prompts[:4], 4, [])
    seconds = _timed(lambda: engine.generate(model, prompts, NEW_TOKENS, []), device)
    held = 2 * shape.layers * shape.key_heads * (shape.width // shape.heads) * dtype.itemsize
    # The cache is on average half as long as at its end.
    read = _weights(model) * dtype.itemsize + len(prompts) * held * (len(prompts[0]) + NEW_TOKENS / 2)
    return len(prompts) * NEW_TOKENS / seconds, NEW_TOKENS * read / limits.bandwidth / seconds


def _config(shape: Shape, dtype: torch.dtype) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=2048,
        bos_token_id=None,
        eos_token_id=0,
        dtype=dtype,
    )


def _model(shape: Shape, device: torch.device, dtype: torch.dtype) -> Any:
    from transformers import LlamaForCausalLM

    with device:
        return LlamaForCausalLM(_config(shape, dtype)).to(dtype).eval()


def _weights(model: Any) -> int:
    return sum(weight.numel() for weight in model.parameters())


def _rows(shape: Shape, count: int) -> list[EncodedRow]:
    draw = random.Random(0)
    return [EncodedRow(tuple(draw.randrange(1, shape.vocabulary) for _ in range(ROW)), 0) for _ in range(count)]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _timed(work: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    began = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - began


def _best(work: Callable[[], object], device: torch.device) -> float:
    for _ in range(3):
        work()
    return min(_timed(work, device) for _ in range(10))


def as_json(limits: Limits, found: list[Stage]) -> dict[str, Any]:
    """Everything that was measured."""
    return {"limits": asdict(limits), "stages": [asdict(stage) for stage in found]}
