"""What plugins promise and what they are handed: methods and benchmarks, their data, seeds, device and log."""

from __future__ import annotations

import copy
import hashlib
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from .data.encoder import Encoder
from .data.sources import Row
from .domain import Example, Measurement, Question, Requires, Sampling, Score, Touches
from .errors import NotApplicable, UndeclaredAccess

if TYPE_CHECKING:
    import torch

    from .engine.engine import Engine


class UnlearningData:
    """What a method is given: the forget set, and what else its ``requires`` declares.

    What was not declared is not held back by convention: it is not in the object.
    """

    def __init__(
        self,
        method: str,
        requires: Requires,
        encoder: Encoder,
        forget: Sequence[Example],
        retain: Sequence[Example],
        templates: Sequence[str],
    ) -> None:
        self._method = method
        self.encoder = encoder
        self.forget = tuple(forget)
        self._retain = tuple(retain) if requires.retain else None
        self._templates = tuple(templates) if requires.template else None

    @property
    def retain(self) -> tuple[Example, ...]:
        """Rows that must still be known. Raises UndeclaredAccess unless ``Requires(retain=True)``."""
        if self._retain is None:
            raise UndeclaredAccess(self._method, "touched data.retain; declare Requires(retain=True)")
        return self._retain

    @property
    def templates(self) -> tuple[str, ...]:
        """Refusal answers. Raises UndeclaredAccess unless ``Requires(template=True)``."""
        if self._templates is None:
            raise UndeclaredAccess(self._method, "touched data.templates; declare Requires(template=True)")
        return self._templates


class AttackData:
    """What an attack is given: the encoder, and of the data what its ``requires`` declares.

    Rows are drawn by a seed that no method has a part in, so that all models of a table meet the same attack. ``drawn``
    are the forget rows that were handed out; what is about them is not asked afterwards.
    """

    def __init__(
        self,
        attack: str,
        requires: Touches,
        encoder: Encoder,
        forget: Sequence[Example],
        retain: Sequence[Example],
        text: Sequence[Example],
        seed: int,
    ) -> None:
        self._attack, self._requires = attack, requires
        self.encoder = encoder
        self._forget, self._retain, self._text = tuple(forget), tuple(retain), tuple(text)
        self._seed = seed
        self.drawn: dict[str, tuple[Example, ...]] = {}
        """What was handed out, by part."""

    def draw_forget(self, count: int) -> tuple[Example, ...]:
        """Rows of the forget set, a quarter of it at most. Raises UndeclaredAccess unless ``Touches(forget=True)``."""
        return self._draw("forget", self._forget, min(count, len(self._forget) // 4))

    def draw_retain(self, count: int) -> tuple[Example, ...]:
        """Some rows of the retain set. Raises UndeclaredAccess unless ``Touches(retain=True)``."""
        return self._draw("retain", self._retain, count)

    def draw_text(self, count: int) -> tuple[Example, ...]:
        """Some chunks of other text. Raises UndeclaredAccess unless ``Touches(text=True)``."""
        return self._draw("text", self._text, count)

    def _draw(self, part: str, rows: tuple[Example, ...], count: int) -> tuple[Example, ...]:
        if not getattr(self._requires, part):
            raise UndeclaredAccess(self._attack, f"touched data.draw_{part}; declare Touches({part}=True)")
        if not rows or count < 1:
            raise NotApplicable(f"{self._attack} needs {part} rows, and there are {len(rows)} here")
        order = random.Random(derived_seed(self._seed, "draw", part)).sample(range(len(rows)), len(rows))
        self.drawn[part] = tuple(rows[place] for place in sorted(order[:count]))
        return self.drawn[part]


class Attack:
    """Base of attacks on unlearned models: a frozen dataclass whose fields are its hyperparameters.

    An attack overrides at least one of ``change`` (another model), ``put`` (other words) and ``sampling`` (answers that
    are drawn). Then the benchmark measures again what concerns the forget set.
    """

    name: ClassVar[str]
    requires: ClassVar[Touches] = Touches()

    def change(self, model: Any, data: AttackData, ctx: Context) -> Any:
        """Return the attacked model; ``model`` is the attack's own copy and may be changed in place."""
        return model

    def put(self, question: Question, data: AttackData, ctx: Context) -> Sequence[str]:
        """The prompts by which to ask a question, one after another; of the answers the one that leaks most counts."""
        return (question.prompt,)

    @property
    def sampling(self) -> Sampling | None:
        """How answers are drawn; None for greedy answers."""
        return None


@dataclass(frozen=True)
class Task:
    """A benchmark made ready for one model: what to train on, what to forget, what to ask.

    Args:
        encoder: text to tokens, in the model's prompt format.
        training: rows that the reference models are fine-tuned on, by role (``original``, ``retained``).
        forget, retain: the splits that methods may be given.
        evaluation: whatever the benchmark's own ``measure`` needs; the harness does not look inside.
        earlier: requests to forget that come before ``forget``; a method meets one after another.
        notes: what a reader of the record should know about the data.
    """

    encoder: Encoder
    training: Mapping[str, Sequence[Example]]
    forget: Sequence[Example]
    retain: Sequence[Example]
    evaluation: Any
    earlier: Sequence[Sequence[Example]] = ()
    notes: Sequence[str] = ()


@runtime_checkable
class Method(Protocol):
    """Turns an original model into an unlearned one. Its dataclass fields are its hyperparameters."""

    name: str
    requires: Requires

    def unlearn(self, model: Any, tokenizer: Any, data: UnlearningData, ctx: Context) -> Any:
        """Return the unlearned model; ``model`` is the caller's own copy and may be changed in place."""
        ...


@runtime_checkable
class Benchmark(Protocol):
    """Data, and the metrics that judge. ``score`` is pure, so results can be recomputed without a model."""

    name: str

    def prepare(self, ctx: Preparation) -> Task:
        """Read the splits and encode what evaluation needs."""
        ...

    def measure(self, model: Any, task: Task, ctx: Context) -> Measurement:
        """Per-row values; the only part that touches a model."""
        ...

    def score(self, unlearned: Measurement, original: Measurement | None, retained: Measurement) -> Iterable[Score]:
        """Scores in every edition. ``original`` is None while the retained model itself is scored."""
        ...


@runtime_checkable
class Attackable(Protocol):
    """What a benchmark offers beside ``Benchmark`` so that its forget set can be attacked."""

    def forget_questions(self, task: Task) -> Sequence[Question]:
        """The rows that concern what was to be forgotten, in the order in which they are measured."""
        ...

    def asking(self, task: Task, questions: Sequence[Question]) -> Task:
        """The task that measures these questions alone, each in the words of its ``prompt``.

        A row of the measurement keeps the question's own prompt, and has the words asked as ``asked`` where they
        differ.
        """
        ...


@runtime_checkable
class Judged(Protocol):
    """What a benchmark offers beside ``Benchmark`` whose scores need an outside scorer: a judge, a classifier."""

    def judge(self, rows: Sequence[Mapping[str, Any]]) -> Sequence[Any]:
        """What the scorer says of each row of a measurement, in their order; stored with the row as ``judged``.

        Asked after ``measure``, without the model, and again by ``unlearnbench rescore --judge``, which trains nothing.
        Where it raises, rows stay without ``judged``, and ``score`` gives NaN with a reason for what needs it.
        """
        ...


def derived_seed(seed: int, *purpose: str) -> int:
    """A seed for one purpose, by hashing: no result depends on what ran before it."""
    text = "\0".join([str(seed), *purpose])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])


@dataclass
class Meter:
    """What a training run spent."""

    optimiser_steps: int = 0
    fastest_step: float | None = None
    """Processor seconds, of all threads; None where the work is done by a GPU."""
    tokens: int = 0
    losses: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Preparation:
    """What ``Benchmark.prepare`` is given.

    ``encoder(corpus)`` is the model's encoder; a model from scratch builds its vocabulary from ``corpus``.
    ``pretrained`` is False for a model from scratch, which knows only what its reference models are trained on.
    ``generated`` is True where the tables are invented.
    """

    tables: Mapping[str, list[Row]]
    encoder: Callable[[Iterable[str]], Encoder]
    pretrained: bool = True
    generated: bool = False


class Context:
    """What ``unlearn`` and ``measure`` are given.

    Args:
        engine: scores and generates on the cell's device.
        autocast: accelerate's name of the mixed precision that models are trained in.
        optimiser: what takes optimiser steps, as ``run.optimiser`` names it.
    """

    def __init__(
        self,
        name: str,
        seed: int,
        engine: Engine,
        log: Callable[[str], None] = print,
        *,
        original: Any = None,
        autocast: str = "no",
        optimiser: str = "adamw",
    ) -> None:
        self.seed = seed
        self.engine = engine
        self.log = log
        self.autocast = autocast
        self.optimiser = optimiser
        self.meter = Meter()
        self._name = name
        self._original = original

    @property
    def device(self) -> torch.device:
        """Where the cell's models are."""
        return self.engine.device

    @property
    def original(self) -> Any:
        """A frozen copy of the original model. Raises UndeclaredAccess unless the method declared it."""
        if self._original is None:
            raise UndeclaredAccess(self._name, 'touched ctx.original; declare Requires(original="model")')
        return self._original

    def for_request(self, original: Any, name: str = "") -> Context:
        """The same context with another frozen original model, and the same meter."""
        fresh = copy.copy(self)
        fresh._name, fresh._original = name or self._name, original
        return fresh

    def rng(self, purpose: str) -> random.Random:
        """A random stream of this cell's own, one per purpose."""
        return random.Random(derived_seed(self.seed, self._name, purpose))

    def generator(self, purpose: str, device: Any = "cpu") -> torch.Generator:
        """The same for tensors: ``torch.randn(…, generator=ctx.generator("noise"))``, on the device of the tensor."""
        import torch

        return torch.Generator(device).manual_seed(derived_seed(self.seed, self._name, purpose))
