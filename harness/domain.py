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


RESAMPLES = 1000
"""Number of resamples behind every interval and every place."""
NUMBERS = {"score": "Score", "forgetting": "Forgetting", "utility": "Utility"}
"""The three numbers of a method on a benchmark and their headings."""


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
    """The scores of a submitted cell do not follow from its samples."""

    @property
    def settled(self) -> bool:
        """Whether another run cannot change the outcome: the node is done, or its pairing makes no sense."""
        return self in (CellStatus.DONE, CellStatus.NOT_APPLICABLE)


@dataclass(frozen=True, order=True)
class CellId:
    """The pairing that a cell runs. A reference model has its role as ``method``.

    Args:
        seed: of the reference models, and of unlearning.
        repeat: which of several runs of unlearning from the same reference models; 0 is the first.
        setting: the hyperparameters that a sweep gave it, ``name=value`` joined by commas; empty outside a sweep.
        attack: what was done to the unlearned model, or to how it was asked, before it was measured; empty for nothing.
    """

    method: str
    benchmark: str
    model: str
    seed: int
    repeat: int = 0
    setting: str = ""
    attack: str = ""

    def __str__(self) -> str:
        more = f" repeat {self.repeat}" if self.repeat else ""
        more += f" ({self.setting})" if self.setting else ""
        more += f" under {self.attack}" if self.attack else ""
        return f"{self.method} × {self.benchmark} × {self.model} seed {self.seed}{more}"

    @property
    def plain(self) -> CellId:
        """The same cell without an attack."""
        return replace(self, attack="")

    @property
    def pairing(self) -> str:
        """Method, benchmark and attack in words."""
        return f"{self.method} × {self.benchmark}" + (f" under {self.attack}" if self.attack else "")


@dataclass(frozen=True)
class Metric:
    """A named property of a model, with a direction and a source.

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
    """The condition behind the paper's ✓ for this metric; empty where there is none."""
    part_of: Literal["", "forgetting", "utility"] = ""
    """Which of the two numbers behind a row's score the metric is part of (``unlearnbench.metrics.balance``)."""
    span: float = 1.0
    """The metric's greatest value minus its least; a part of forgetting is divided by it."""
    two_sided: bool = False
    """Whether a part of forgetting falls again beyond the retained model's value (over-forgetting)."""
    scale: Literal["linear", "log"] = "linear"
    """The scale of a plot's axis; p-values take ``log``."""


@dataclass(frozen=True)
class Split:
    """How a benchmark's rows divide into validation rows, for choosing settings, and reported rows.

    Args:
        by: for each part of a measurement the field of a row that names its cluster, such as an author. Clusters are
            not divided. In other parts every row stands alone.
        least: the fewest rows that a part must have on each side, and two clusters; with fewer the benchmark is too
            small to divide.
    """

    by: Mapping[str, str] = field(default_factory=dict)
    least: int = 10


@dataclass(frozen=True)
class Score:
    """The value of a metric for one model: measured, or missing (NaN) with a reason.

    ``edition`` is None where every edition agrees. ``interval`` is a 95 % bootstrap interval over rows, the middle of
    the (R,) values in ``resamples``, which no file stores. The drawn rows depend on the number of rows alone, so two
    models on the same rows compare resample by resample.
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
        start: the model that ``unlearn`` receives; only a reference method starts from the retained model.
    """

    retain: bool = False
    template: bool = False
    original: Literal["none", "logprobs", "model"] = "none"
    start: Literal["original", "retained"] = "original"


@dataclass(frozen=True)
class Touches:
    """What an attack may touch beside the unlearned model and the questions; the harness hands out nothing else.

    Args:
        forget: some rows of the forget set. No question about a row that was handed out is asked afterwards.
        retain: rows of the retain set.
        text: texts that have nothing to do with the benchmark.
    """

    forget: bool = False
    retain: bool = False
    text: bool = False


@dataclass(frozen=True)
class Question:
    """A question about what was to be forgotten, as a benchmark lets attacks put it in other words.

    Args:
        part, index: identify the row, in every measurement.
        prompt: the question, or the text that the model continues; without the prompt format.
        answer: the truth.
        paraphrases: the same question in other words; empty where the data have none.
        fixed: True of a text that is read and not asked, which cannot be put otherwise.
    """

    part: str
    index: int
    prompt: str
    answer: str
    paraphrases: tuple[str, ...] = ()
    fixed: bool = False

    def about(self, row: Example) -> bool:
        """Whether the row tells the answer: it is this question or a paraphrase, or a text that has both."""
        if row.prompt in (self.prompt, *self.paraphrases):
            return True
        text = row.prompt + row.answer
        return bool(row.prompt_ids) and bool(self.answer or self.prompt) and (self.answer or self.prompt) in text

    def put(self, prompt: str) -> Question:
        """The same question in other words."""
        return replace(self, prompt=prompt)


@dataclass(frozen=True)
class Sampling:
    """Answers that are drawn in place of the most likely one.

    Args:
        samples: answers to each question.
        temperature: logits are divided by it before the softmax.
    """

    samples: int
    temperature: float = 1.0


@dataclass(frozen=True)
class Example:
    """One row: a prompt and its answer, in plain text, before any prompt format.

    ``index`` is the row's place in its split, which identifies the row: questions can repeat.

    The harness cuts running text between tokens, so a chunk carries its ids: ``prompt_ids`` (with the BOS, if the
    tokenizer writes one) and ``answer_ids``. A chunk takes no prompt format and no EOS; all its tokens are scored.
    Another answer to a chunk continues its first part; only that answer is scored.
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
class ReadText:
    """What a model makes of each scored token of a text.

    Args:
        logprobs: nats.
        greedy: whether the model itself would have written the token.
        means, variances: of log-probabilities over the vocabulary, by the model's own probabilities.
    """

    logprobs: tuple[float, ...] = ()
    greedy: tuple[bool, ...] = ()
    means: tuple[float, ...] = ()
    variances: tuple[float, ...] = ()


@dataclass(frozen=True)
class Measurement:
    """The output of one model on one benchmark: a JSON-able mapping per row. Scores depend on it alone."""

    rows: tuple[Mapping[str, Any], ...]
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Wall time by stage (``scoring``, ``generation``)."""
    incomplete: str = ""
    """Why the benchmark skipped questions that another try may answer; the next run of the study repeats the cell."""

    def part(self, name: str) -> list[Mapping[str, Any]]:
        """The rows of one part of the benchmark, in order."""
        return [row for row in self.rows if row.get("part") == name]


@dataclass(frozen=True)
class LogFile:
    """A publisher's evaluation log read into measurements, ready for ``benchmark.score``.

    ``name`` describes the run behind the log, as far as the file shows; ``notes`` are for the reader.
    """

    name: str
    benchmark: Any
    unlearned: Measurement
    retained: Measurement | None
    notes: tuple[str, ...] = ()
