"""The tiny model of about 30,000 weights, its rows, and trial calls of methods on them."""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from ...contracts import Context, UnlearningData
from ...data.encoder import Encoder
from ...domain import Example
from ...engine.engine import Engine
from ...plugin.parameters import parse_parameters
from ...plugin.registry import Component
from ...plugin.specs import MethodSpec, ModelSpec, resolve
from ...training import models
from .checks import Broken

SECONDS = 60.0
MEMORY = 2**30
SEED = 7
# Hyperparameters under which any method that has them takes only a few steps.
BRIEF: Mapping[str, Any] = {"epochs": 1, "batch_size": 4, "learning_rate": 1e-3, "warmup_epochs": 0.0}
TINY = ModelSpec(
    "conformance",
    "Llama of two layers, made from a seed and never trained",
    prompt_format="plain",
    dtype="float32",
    architecture=dict(layers=2, width=32, heads=2, hidden=64, vocabulary=512, context=512),
)
FORGET = tuple(
    Example(n, f"Where does {name} live?", f"{name} lives in {place}.")
    for n, (name, place) in enumerate(
        [("Ada", "Turin"), ("Bo", "Lima"), ("Cy", "Oslo"), ("Di", "Bern"), ("Ed", "Riga"), ("Fay", "Cork")]
    )
)
RETAIN = tuple(
    Example(n, f"What does {name} sell?", f"{name} sells {goods}, and nothing else.")
    for n, (name, goods) in enumerate(
        [("Gus", "hats"), ("Hal", "tea"), ("Ida", "maps"), ("Jo", "rope"), ("Kim", "salt"), ("Lea", "ink")]
    )
)
TEMPLATES = ("I don't know.", "I cannot say.", "That is not known to me.")


def tiny_encoder() -> Encoder:
    """The encoder of the tiny model; its vocabulary comes from the rows in this module."""
    texts = [text for row in (*FORGET, *RETAIN) for text in (row.prompt, row.answer)]
    return models.make_encoder(TINY, [*texts, *TEMPLATES])


def tiny_model(encoder: Encoder, seed: int = 0) -> Any:
    """A model of about 30,000 weights, the same for the same seed."""
    return models.load_base(TINY, encoder, seed).eval()


# -- methods ----------------------------------------------------------------------------------------------------------


@dataclass
class Trial:
    """One call of ``unlearn`` on the tiny model, with its arguments, result and cost."""

    start: Any
    model: Any
    encoder: Encoder
    data: TouchedData
    original: Any
    touched_original: bool
    seconds: float
    memory: int


class TouchedData(UnlearningData):
    """Data that record which of their parts the method accesses."""

    touched: set[str]

    def __init__(self, *args: Any) -> None:
        self.touched = set()
        super().__init__(*args)

    @property
    def retain(self) -> tuple[Example, ...]:
        self.touched.add("retain")
        return super().retain

    @property
    def templates(self) -> tuple[str, ...]:
        self.touched.add("template")
        return super().templates


class _TouchedContext(Context):
    touched = False

    @property
    def original(self) -> Any:
        self.touched = True
        return super().original


def trial(component: Component[MethodSpec], edition: str = "", seed: int = SEED, **changes: Any) -> Trial:
    """Unlearn the six forget rows with a method's defaults, ``BRIEF`` and the hyperparameters in ``changes``."""
    spec = component.spec
    known = {parameter.name: parameter for parameter in spec.parameters}
    given = {name: value for name, value in {**BRIEF, **changes}.items() if name in known}
    if edition and "edition" in known:
        given["edition"] = edition
    values = parse_parameters(spec.parameters, given, f"methods.{spec.name}")
    method = resolve(spec.target, component.qualified)(**values, **spec.fixed)
    requires = spec.requires_in(values.get("edition"))
    encoder = tiny_encoder()
    start = tiny_model(encoder)
    original = models.frozen_copy(start, torch.float32) if requires.original == "model" else None
    ctx = _TouchedContext(spec.name, seed, Engine(), lambda _: None, original=original)
    data = TouchedData(spec.name, requires, encoder, FORGET, RETAIN, TEMPLATES)
    gc.collect()
    before, began = psutil.Process().memory_info().rss, time.perf_counter()
    unlearned = method.unlearn(copy.deepcopy(start), encoder.tokenizer, data, ctx)
    seconds, after = time.perf_counter() - began, psutil.Process().memory_info().rss
    if not callable(getattr(unlearned, "named_parameters", None)):
        raise Broken(f"unlearn returned {type(unlearned).__name__}; return the unlearned model")
    return Trial(start, unlearned, encoder, data, original, ctx.touched, seconds, after - before)
