"""The values that methods, benchmarks, records and pages share. Importing them imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal

API_VERSION = 1
"""Version of what plugins see: these values, the hooks, ``Requires``, terms and the benchmark contract."""


IGNORE = -100
"""Label of a position that is not scored (the value ``torch.nn.functional.cross_entropy`` skips)."""


Edition = Literal["paper", "as-released"]
EDITIONS: tuple[Edition, ...] = ("paper", "as-released")
"""``paper``: the definition as written. ``as-released``: what the published code computes."""


Direction = Literal["higher", "lower", "target"]


class CellStatus(StrEnum):
    """How a node of a plan ended; ``PENDING`` where it has not."""

    PENDING = "pending"
    DONE = "done"
    NOT_APPLICABLE = "not-applicable"
    DIVERGED = "diverged"
    FAILED = "failed"
    OUT_OF_MEMORY = "out-of-memory"
    TIMED_OUT = "timed-out"
    REFUTED = "refuted"
    """Of a stranger's cell: its scores do not follow from its samples."""

    @property
    def settled(self) -> bool:
        """Whether another run would only come to the same: the node is done, or its pairing makes no sense."""
        return self in (CellStatus.DONE, CellStatus.NOT_APPLICABLE)


@dataclass(frozen=True, order=True)
class CellId:
    """Which pairing a cell is. In the plan of a reference model ``method`` is its role."""

    method: str
    benchmark: str
    model: str
    seed: int

    def __str__(self) -> str:
        return f"{self.pairing} × {self.model} seed {self.seed}"

    @property
    def pairing(self) -> str:
        """Method and benchmark in words."""
        return f"{self.method} × {self.benchmark}"


@dataclass(frozen=True)
class Metric:
    """A named question about a model, with a direction and a source.

    ``better="target"`` means closest to ``target``, a number or ``"retained"``: the retained model's value.
    """

    name: str
    label: str
    better: Direction
    source: str
    definition: str
    unit: str = ""
    target: float | Literal["retained"] | None = None
    headline: bool = False
    editions: tuple[str, ...] = ()
    """The editions in which the definition differs; empty where all agree."""
    criterion: str = ""
    """What the paper's ✓ asks of this metric; empty where it asks nothing."""
    axis: Literal["", "forget", "utility"] = ""
    """The one metric that stands for forgetting and the one for utility where pages weigh the two; at most one each."""
    scale: Literal["linear", "log"] = "linear"
    """How a plot's axis runs: p-values read by their power of ten."""


@dataclass(frozen=True)
class Score:
    """The answer to a metric for one model: measured, or missing (NaN) with a reason.

    ``edition`` is None where every edition agrees. ``interval`` is a 95 % bootstrap interval over rows, and
    ``resamples`` the (R,) values that it is the middle of: rows are drawn by seeds that depend on their number alone,
    so that two models on the same rows are compared resample by resample. They are not stored.
    ``passes`` answers the metric's criterion; None where it has none, or for a reference model.
    """

    metric: str
    value: float
    n: int
    per_example: tuple[float, ...] = ()
    interval: tuple[float, float] | None = None
    edition: str | None = None
    reason: str = ""
    passes: bool | None = None
    resamples: Iterable[float] | None = field(default=None, compare=False, repr=False)

    @classmethod
    def missing(cls, metric: str, reason: str, n: int = 0, edition: str | None = None) -> Score:
        return cls(metric, math.nan, n, edition=edition, reason=reason)


@dataclass(frozen=True)
class Requires:
    """What a method may touch; the harness hands out nothing else.

    Args:
        retain: rows of the retain set.
        template: refusal templates ("I don't know"), as alternative answers to forget questions.
        original: ``"logprobs"`` puts the original model's log-probabilities of the batch's rows into the
            batch, computed once before the first step; ``"model"`` keeps a frozen copy of the original model.
        start: the model that ``unlearn`` is handed; only a reference method starts from the retained model.
    """

    retain: bool = False
    template: bool = False
    original: Literal["none", "logprobs", "model"] = "none"
    start: Literal["original", "retained"] = "original"


@dataclass(frozen=True)
class Example:
    """One row: a prompt and its answer, in plain text, before any prompt format.

    ``index`` is the row's place in its split; rows are told apart by it, because questions can repeat.

    A chunk of running text was cut between tokens, so it carries them: ``prompt_ids`` (with the BOS, if the
    tokenizer writes one) and ``answer_ids``. It takes no prompt format and no EOS, and every token of it is
    scored. Another answer to it continues its first part, and is scored alone.
    """

    index: int
    prompt: str
    answer: str
    prompt_ids: tuple[int, ...] = ()
    answer_ids: tuple[int, ...] = ()

    def answered(self, answer: str) -> Example:
        """The same prompt with another answer."""
        return replace(self, answer=answer, answer_ids=())


@dataclass(frozen=True)
class Measurement:
    """What one model did on one benchmark: a JSON-able mapping per row. Scores are computed from it alone."""

    rows: tuple[Mapping[str, Any], ...]
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Wall time by stage (``scoring``, ``generation``)."""
    incomplete: str = ""
    """Why something was not asked that another try may find: the cell is run again by the next run of its study."""

    def part(self, name: str) -> list[Mapping[str, Any]]:
        """The rows of one part of the benchmark, in order."""
        return [row for row in self.rows if row.get("part") == name]


@dataclass(frozen=True)
class LogFile:
    """A publisher's evaluation log read into measurements, ready for ``benchmark.score``.

    ``name`` says what it is a log of, as far as the file shows; ``notes`` what a reader should know.
    """

    name: str
    benchmark: Any
    unlearned: Measurement
    retained: Measurement | None
    notes: tuple[str, ...] = ()
