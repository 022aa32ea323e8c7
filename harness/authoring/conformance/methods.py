"""Conformance checks of methods."""

from __future__ import annotations

import dataclasses
import math
import os
import random
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...domain import Requires, Touches
from ...engine.engine import Engine
from ...plugin.registry import Component
from ...plugin.specs import AttackSpec, MethodSpec, resolve
from ...training import models
from ...training.loss_method import LossMethod
from .checks import Broken, Check, attempt
from .trial import FORGET, MEMORY, RETAIN, SECONDS, TINY, Trial, tiny_encoder, trial


def check_method(component: Component[MethodSpec]) -> Iterator[Check]:
    """Run the checks of a method."""
    spec = component.spec
    yield attempt("the spec is that of its class", lambda: method_spec(component))
    yield attempt("hyperparameters are typed, and their defaults are in range", lambda: typed(spec.parameters))
    trials: list[Trial] = []
    state = GlobalState()

    def run() -> str:
        trials.append(trial(component))
        return f"{trials[0].seconds:.1f} s"

    yield attempt("unlearn returns a model", run, [spec.target])
    if not trials:
        return
    yield attempt("no global state is left changed", state.refuse_changes)
    first = trials[0]
    yield attempt("weights are finite", lambda: models.check_finite(first.model))
    if not spec.reference:
        yield attempt("weights have changed", lambda: _changed(first))
    yield attempt("vocabulary and tokenizer are as they were", lambda: _vocabulary(first))
    yield attempt("what it was handed is untouched", lambda: _untouched(first))
    yield attempt("the same seed gives the same weights", lambda: _repeats(component, first))
    if {"batch_size", "accumulation"} <= {parameter.name for parameter in spec.parameters}:
        yield attempt("accumulation changes no weight", lambda: _accumulates(component))
    yield attempt("the model is scored and generates", lambda: _answers(first))
    yield attempt("the model is saved and loaded", lambda: _saved(first))
    yield attempt("time and memory are in bounds", lambda: _bounded(first))
    for edition in spec.editions:
        if edition == "paper":
            continue

        def run_edition(edition: str = edition) -> None:
            trials.append(trial(component, edition))
            models.check_finite(trials[-1].model)

        yield attempt(f"edition {edition} runs", run_edition)
    yield attempt("it uses what it declares, and no more", lambda: _declared(spec, trials))


def method_spec(component: Component[Any]) -> None:
    spec = component.spec
    target: Any = resolve(spec.target, component.qualified)
    if not dataclasses.is_dataclass(target) and spec.parameters:
        raise Broken(f"{spec.target} is no dataclass, so it takes no hyperparameters")
    if not dataclasses.is_dataclass(target):
        return
    fields = {item.name: item for item in dataclasses.fields(target)}
    for parameter in spec.parameters:
        if parameter.name not in fields:
            raise Broken(f"{parameter.name} is in the spec and no field of {spec.target}")
        if fields[parameter.name].default != parameter.default:
            raise Broken(
                f"{parameter.name} = {parameter.default!r} in the spec, {fields[parameter.name].default!r} in the class"
            )
    for name in fields.keys() - {parameter.name for parameter in spec.parameters} - spec.fixed.keys():
        raise Broken(f"field {name} of {spec.target} is not in the spec, so nobody can set it")
    if isinstance(spec, MethodSpec | AttackSpec):
        requires = getattr(target, "requires", Touches() if isinstance(spec, AttackSpec) else Requires())
        if requires != spec.requires:
            raise Broken(f"the spec requires {spec.requires}, the class {requires}")


def typed(parameters: Sequence[Any]) -> str:
    for parameter in parameters:
        parameter.parse(parameter.default, "default")
        if not parameter.summary:
            raise Broken(f"{parameter.name} has no summary, so 'show' cannot say what it does")
    return f"{len(parameters)} of them"


class GlobalState:
    """Global state that one method could change for the next."""

    def __init__(self) -> None:
        self._before = self._now()

    @staticmethod
    def _now() -> dict[str, Any]:
        return {
            "torch's default dtype": torch.get_default_dtype(),
            "gradient mode": torch.is_grad_enabled(),
            "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
            "the number of threads": torch.get_num_threads(),
            "the working directory": os.getcwd(),
            "environment variables": dict(os.environ),
            "random's generator": random.getstate(),
            "numpy's generator": str(np.random.get_state()),
            "torch's generator": torch.get_rng_state().numpy().tobytes(),
        }

    def refuse_changes(self) -> None:
        now = self._now()
        changed = [name for name, value in self._before.items() if now[name] != value]
        if changed:
            raise Broken(f"it changed {' and '.join(changed)}; random numbers come from ctx.rng(purpose)")


def _changed(tried: Trial) -> str:
    before = dict(tried.start.named_parameters())
    if any(name not in before for name, _ in tried.model.named_parameters()):
        return "another kind of model"
    moved = sum(not torch.equal(before[name], weight) for name, weight in tried.model.named_parameters())
    if not moved:
        raise Broken("all weights are as they were after a learning rate of 1e-3: is anything trained?")
    return f"{moved} of {len(before)} tensors"


def _vocabulary(tried: Trial) -> None:
    if tried.model.get_input_embeddings().num_embeddings != tried.start.get_input_embeddings().num_embeddings:
        raise Broken("unlearn changed the size of the vocabulary")
    fresh, used = (_kept_of(tokenizer) for tokenizer in (tiny_encoder().tokenizer, tried.encoder.tokenizer))
    for what, value in fresh.items():
        if used[what] != value:
            raise Broken(f"unlearn changed the tokenizer's {what}")


def _kept_of(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocabulary": tokenizer.get_vocab(),
        "special tokens": tokenizer.special_tokens_map,
        "padding side": tokenizer.padding_side,
        "chat template": tokenizer.chat_template,
    }


def _untouched(tried: Trial) -> None:
    if tried.data.forget != FORGET or tried.data._retain not in (None, RETAIN):
        raise Broken("the rows of the data have changed")
    if tried.original is not None:
        weights = zip(tried.start.parameters(), tried.original.parameters(), strict=True)
        if not all(torch.equal(a, b) for a, b in weights):
            raise Broken("ctx.original has other weights than it had: it is the frozen original model")


def _declared(spec: MethodSpec, trials: Sequence[Trial]) -> str:
    """Raise Broken for a requirement that is used in no edition; undeclared access raises earlier, in the trials."""
    requires = spec.requires
    declared = {name for name in ("retain", "template") if getattr(requires, name)}
    if requires.original == "model":
        declared.add("original")
    touched = {name for each in trials for name in each.data.touched}
    if any(each.touched_original for each in trials):
        touched.add("original")
    idle = sorted(declared - touched)
    if idle:
        raise Broken(f"it declares {' and '.join(idle)} and never asks for it: readers will think it is needed")
    return ", ".join(sorted(declared)) or "forget data alone"


def _repeats(component: Component[MethodSpec], first: Trial) -> None:
    again = trial(component)
    for (name, weight), (_, other) in zip(first.model.named_parameters(), again.model.named_parameters(), strict=True):
        if not torch.equal(weight, other):
            raise Broken(f"{name} differs between two calls with one seed; random numbers come from ctx.rng(purpose)")


def _accumulates(component: Component[MethodSpec]) -> str:
    """Check that a term is a sum: the trainer would divide a mean once more, by a number that depends on the batch."""
    method = resolve(component.spec.target, component.qualified)(**component.spec.fixed)
    if isinstance(method, LossMethod) and method.is_batch_coupled:
        return "its loss is of a whole forward pass"
    # At so small a rate the order of rows within a step does not matter.
    whole, parts = (
        trial(component, batch_size=size, accumulation=passes, learning_rate=1e-4, max_grad_norm=0.0)
        for size, passes in ((6, 1), (2, 3))
    )
    moved = [float((b - a).abs().max()) for a, b in _pairs(whole.start, whole.model)]
    apart = [float((b - a).abs().max()) for a, b in _pairs(whole.model, parts.model)]
    if not moved:
        return "another kind of model"
    if max(apart) > 0.05 * max(moved):
        raise Broken(
            "batches of 6 and of 3 × 2 rows train other weights: the value of a term is a sum over what `per` counts, "
            "and not a mean of it"
        )
    return f"batches of 6 and of 3 × 2 rows, to {max(apart) / max(moved):.1e} of the step"


def _pairs(one: Any, other: Any) -> Iterator[tuple[Any, Any]]:
    names = dict(one.named_parameters())
    return ((names[name].detach(), weight.detach()) for name, weight in other.named_parameters() if name in names)


def _answers(tried: Trial) -> None:
    engine, rows = Engine(), tried.encoder.encode(FORGET)
    if any(math.isnan(value.loss) for value in engine.score(tried.model, rows)):
        raise Broken("the likelihood of an answer is not a number")
    engine.generate(tried.model, tried.encoder.prompts(FORGET), 4, tried.encoder.ends)
    ids = torch.tensor([rows[0].ids])
    with torch.no_grad():
        whole, begun = tried.model(input_ids=ids).logits, tried.model(input_ids=ids[:, :-2]).logits
    if not torch.allclose(whole[:, :-2], begun, atol=1e-4):
        raise Broken("the logits after a token depend on tokens that come later, which generation does not know yet")


def _saved(tried: Trial) -> str:
    with tempfile.TemporaryDirectory() as folder:
        models.save_checkpoint(Path(folder) / "model", tried.model, tried.encoder.tokenizer)
        if not (Path(folder) / "model" / "config.json").is_file():
            return "saved in a form of its own"
        loaded = models.load_checkpoint(str(Path(folder) / "model"), TINY)
    kept = dict(tried.model.named_parameters())
    for name, weight in loaded.named_parameters():
        if name not in kept or not torch.equal(kept[name].float(), weight):
            raise Broken(f"{name} is not the same after saving and loading")
    return ""


def _bounded(tried: Trial) -> str:
    if tried.seconds > SECONDS or tried.memory > MEMORY:
        raise Broken(
            f"{tried.seconds:.0f} s and {tried.memory / 2**20:.0f} MiB for a model of 30,000 weights and six "
            f"rows; at most {SECONDS:.0f} s and {MEMORY // 2**20} MiB"
        )
    return f"{tried.seconds:.1f} s, {max(tried.memory, 0) / 2**20:.0f} MiB"
