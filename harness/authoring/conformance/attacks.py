"""Conformance checks of attacks."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...contracts import Attack, AttackData, Context
from ...domain import Example, Question
from ...engine.engine import Engine
from ...plugin.parameters import parse_parameters
from ...plugin.registry import Component
from ...plugin.specs import AttackSpec, resolve
from ...training import models
from ...worker.attack import checked_model, prompts_of
from .checks import Broken, Check, attempt
from .methods import GlobalState, method_spec, typed
from .trial import FORGET, RETAIN, SEED, tiny_encoder, tiny_model

TEXT = "A kettle sings before it boils. Bread rises because yeast gives off gas. Snow is quiet."
QUESTIONS = tuple(
    Question("forget", row.index, row.prompt, row.answer, (f"Name the home of {row.answer.split()[0]}.",))
    for row in FORGET
)


def check_attack(component: Component[AttackSpec]) -> Iterator[Check]:
    """Run the checks of an attack on the tiny model and its rows."""
    spec = component.spec
    yield attempt("the spec is that of its class", lambda: method_spec(component))
    yield attempt("hyperparameters are typed, and their defaults are in range", lambda: typed(spec.parameters))
    state = GlobalState()
    trials: list[_Trial] = []

    def run() -> str:
        trials.append(_trial(component))
        return f"{len(trials[0].data.drawn.get('forget', ()))} forget rows were given"

    yield attempt("change returns a model that can be measured", run)
    if not trials:
        return
    first = trials[0]
    yield attempt("put returns prompts", lambda: _put(component, first))
    yield attempt("no global state is left changed", state.refuse_changes)
    yield attempt("it does something", lambda: _does_something(first))
    yield attempt("the same seed gives the same attack", lambda: _repeats(component, first))
    yield attempt("the model is scored and generates", lambda: _answers(first))
    yield attempt("it touches what it declares, and no more", lambda: _declared(spec, first))


@dataclass
class _Trial:
    """One attack on the tiny model."""

    attack: Attack
    data: AttackData
    ctx: Context
    start: Any
    model: Any
    prompts: tuple[tuple[str, ...], ...] = ()


def _trial(component: Component[AttackSpec]) -> _Trial:
    spec = component.spec
    values = parse_parameters(spec.parameters, {}, f"attacks.{spec.name}")
    attack: Attack = resolve(spec.target, component.qualified)(**values, **spec.fixed)
    encoder = tiny_encoder()
    chunks: Sequence[Example] = encoder.chunks([TEXT], 32)
    data = AttackData(spec.name, spec.requires, encoder, FORGET, RETAIN, chunks, SEED)
    ctx = Context(spec.name, SEED, Engine(), lambda _: None)
    start = tiny_model(encoder)
    changed = attack.change(copy.deepcopy(start), data, ctx)
    vocabulary = start.get_input_embeddings().num_embeddings
    model = checked_model(changed, component.qualified, "change", vocabulary)
    return _Trial(attack, data, ctx, start, model.eval())


def _put(component: Component[AttackSpec], tried: _Trial) -> str:
    tried.prompts = tuple(
        tuple(prompts_of(tried.attack, component.qualified, question, tried.data, tried.ctx)) for question in QUESTIONS
    )
    return f"{max(map(len, tried.prompts))} for each question at most"


def _does_something(tried: _Trial) -> str:
    sampling = tried.attack.sampling
    found = {
        "other weights": not _same(tried.start, tried.model),
        "other words": tried.prompts != tuple((question.prompt,) for question in QUESTIONS),
        f"{sampling.samples if sampling else 0} drawn answers": sampling is not None,
    }
    if not any(found.values()):
        raise Broken("weights, prompts and decoding are as they were: override change, put or sampling")
    return ", ".join(name for name, true in found.items() if true)


def _same(one: Any, other: Any) -> bool:
    pairs = zip(one.named_parameters(), other.named_parameters(), strict=False)
    return all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in pairs)


def _repeats(component: Component[AttackSpec], first: _Trial) -> None:
    again = _trial(component)
    if not _same(first.model, again.model):
        raise Broken("two attacks with one seed give other weights; random numbers come from ctx.rng(purpose)")
    _put(component, again)
    if first.prompts != again.prompts:
        raise Broken("two attacks with one seed ask otherwise; random numbers come from ctx.rng(purpose)")


def _answers(tried: _Trial) -> None:
    engine, encoder = Engine(), tried.data.encoder
    engine.score(tried.model, encoder.encode(FORGET))
    engine.generate(tried.model, encoder.prompts(FORGET), 4, encoder.ends)


def _declared(spec: AttackSpec, tried: _Trial) -> str:
    """Raise Broken for a part that is declared and not drawn from; undeclared access raises earlier."""
    declared = {part for part in ("forget", "retain", "text") if getattr(spec.requires, part)}
    unused = declared - tried.data.drawn.keys()
    if unused:
        raise Broken(f"it declares {' and '.join(sorted(unused))} and never draws from it")
    models.check_finite(tried.model)
    return ", ".join(sorted(declared)) or "nothing but the model and the questions"
