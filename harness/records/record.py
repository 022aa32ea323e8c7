"""The record of a cell: its identity, scores, cost, provenance and comparability."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ..domain import RESAMPLES, CellId, Direction, Metric, Requires, Score, Split, Touches
from ..errors import RecordError
from ..storage import digest, read_json
from .schema import Strict, first_fault

if TYPE_CHECKING:
    from ..metrics.statistics import Floats

RECORD_SCHEMA = 2
SAMPLES = "samples.jsonl.gz"
"""The file of a cell's measurement, a JSON object per row."""


class EditionScore(Strict):
    """A metric's value in one edition; ``interval`` is a 95 % bootstrap interval over rows."""

    value: float
    n: int
    interval: tuple[float, float] | None = None
    reason: str = ""
    passes: bool | None = None
    """Whether the paper's criterion for this metric holds (✓ or ✗); None where there is none."""
    resamples: str = ""
    """The (R,) values over resampled rows of a part of the score, as base64 of float32; empty for other metrics."""

    @field_validator("resamples")
    @classmethod
    def _whole_resamples(cls, text: str) -> str:
        if text and len(base64.b64decode(text, validate=True)) != 4 * RESAMPLES:
            raise ValueError(f"resamples are not {RESAMPLES} numbers of four bytes")
        return text

    @property
    def resampled(self) -> Floats | None:
        """The (R,) values over resampled rows; None where none are stored."""
        import numpy as np

        if not self.resamples:
            return None
        return np.frombuffer(base64.b64decode(self.resamples), dtype="<f4").astype(np.float64)


class ScoreEntry(EditionScore):
    """A metric's value in the record's edition, and in all editions."""

    edition: str
    label: str
    better: Direction
    headline: bool = False
    target: float | str | None = None
    criterion: str = ""
    part_of: Literal["", "forgetting", "utility"] = ""
    span: float = 1.0
    two_sided: bool = False
    scale: Literal["linear", "log"] = "linear"
    editions: dict[str, EditionScore]


class Identity(Strict):
    """The pairing of a record."""

    method: str
    method_qualified: str
    method_edition: str
    hyperparameters: dict[str, bool | int | float | str]
    requires: Requires
    reference: bool
    benchmark: str
    benchmark_qualified: str
    benchmark_version: str
    model: str
    seed: int
    repeat: int = Field(default=0, ge=0)
    setting: str = Field(default="", max_length=2000)
    attack: str = Field(default="", max_length=200)

    @property
    def cell(self) -> CellId:
        """The pairing alone."""
        return CellId(self.method, self.benchmark, self.model, self.seed, self.repeat, self.setting, self.attack)


class Samples(Strict):
    """The sample file behind every score, and those of the references with which scores compare."""

    file: str
    sha256: str
    rows: int
    shown: str = "public"
    """How much of the texts pages show: ``public``, ``redacted`` (numbers alone) or ``none``."""
    references: dict[str, str]
    """For each role the key of the cell, or the log file, with whose samples the scores compare."""


class Cost(Strict):
    """Resources that the cell used; of its stages ``unlearn`` alone is the method's time.

    ``cpu_seconds`` is processor time of all threads, which other work on the machine hardly changes.
    """

    seconds: dict[str, float]
    cpu_seconds: dict[str, float] = {}
    optimiser_steps: int
    fastest_step_cpu_seconds: float | None = None
    """Processor time of the fastest optimiser step, which other work disturbs least. None on a GPU."""
    training_tokens: int
    peak_memory_bytes: int
    peak_device_memory_bytes: int | None = None
    stage_memory_bytes: dict[str, int] = {}
    """Peak resident memory of each stage that ``seconds`` names."""
    stage_device_memory_bytes: dict[str, int] = {}


class Comparability(Strict):
    """Everything that must agree before two rows may be ranked together, and its hash."""

    key: dict[str, Any]
    sha256: str


class _Plugin(BaseModel):
    model_config = ConfigDict(extra="allow")

    name: str = ""
    dist: str = ""
    version: str = ""
    source: str = ""


class _Provenance(BaseModel):
    """The fields of a record's provenance that the code reads; all are optional, others are allowed."""

    model_config = ConfigDict(extra="allow")

    python: str = ""
    packages: dict[str, str] = {}
    machine: dict[str, Any] = {}
    plugins: dict[str, _Plugin] = {}
    device: str = ""
    threads: int = 0
    paths: dict[str, dict[str, int]] = {}
    recipe: dict[str, Any] = {}
    method_source: str = ""
    templates: str = ""
    data: dict[str, Any] = {}


class _Compared(BaseModel):
    """The fields of a comparability key that the code reads."""

    model_config = ConfigDict(extra="allow")

    edition: str
    benchmark_settings: dict[str, bool | int | float | str] = {}
    references: dict[Literal["original", "retained"], dict[str, Any]]


def _refuse_halves(value: Any) -> None:
    """Raise ValueError where a text holds half of a surrogate pair, which UTF-8 cannot encode."""
    if isinstance(value, str):
        value.encode("utf-8")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _refuse_halves(key)
            _refuse_halves(item)
    elif isinstance(value, list):
        for item in value:
            _refuse_halves(item)


class AttackFacts(Strict):
    """An attack and what it was given.

    Args:
        given: rows that were handed out, by part of the data.
        questions: how many were asked.
        tries: how often each was asked at most.
        leaking: share of all answers whose ROUGE-L recall of the truth is at least one half; None without answers.
    """

    name: str
    qualified: str
    hyperparameters: dict[str, bool | int | float | str]
    requires: Touches
    given: dict[str, int] = {}
    questions: int = Field(ge=0)
    tries: int = Field(ge=1)
    leaking: float | None = None


class Record(Strict):
    """The stored result of a cell."""

    schema_version: int = RECORD_SCHEMA
    cell: str
    content: str
    edition: str
    identity: Identity
    scores: dict[str, ScoreEntry]
    samples: Samples
    cost: Cost
    comparability: Comparability
    provenance: dict[str, Any]
    limits: dict[str, Any]
    """Restrictions of this run that a published number would not have; empty where there are none."""
    unranked: list[str] = []
    """Why pages do not rank this cell; empty where they do."""
    notes: list[str]
    losses: list[float] = []
    selection: str = Field(default="", max_length=200)
    """The metric by which one of a sweep's settings is chosen; empty outside a sweep."""
    settings_tried: int = Field(default=0, ge=0)
    """How many settings of the method the study that made the cell planned; 0 outside a sweep."""
    split: Split | None = None
    """How rows were divided before they were scored; None where ``scores`` are of all rows."""
    validation: dict[str, dict[str, float]] = {}
    """Scores of the validation rows, by metric and edition; empty where rows were not divided."""
    attack: AttackFacts | None = None
    """The attack under which the model was measured; None where there was none."""

    @field_validator("provenance")
    @classmethod
    def _whole_provenance(cls, value: dict[str, Any]) -> dict[str, Any]:
        return _Provenance.model_validate(value).model_dump()

    @field_validator("comparability")
    @classmethod
    def _readable_key(cls, value: Comparability) -> Comparability:
        _Compared.model_validate(value.key)
        return value

    @model_validator(mode="before")
    @classmethod
    def _of_characters(cls, value: Any) -> Any:
        _refuse_halves(value)
        return value

    def in_edition(self, edition: str) -> Record:
        """The same record with the scores of another edition at the top level."""
        if edition == self.edition:
            return self
        scores = {}
        for name, entry in self.scores.items():
            # A metric that is the same in all editions is stored under one of them.
            chosen = entry.editions.get(edition) or next(iter(entry.editions.values()), None)
            if chosen is None:
                raise RecordError(f"record {self.cell} has no edition {edition!r} of {name}")
            scores[name] = entry.model_copy(update={**chosen.model_dump(), "edition": edition})
        key = {**self.comparability.key, "edition": edition}
        return self.model_copy(update={"edition": edition, "scores": scores, "comparability": comparability(key)})


class LogRecord(Strict):
    """The record of a publisher's evaluation log: scores, samples and comparability as in a cell's record.

    The log itself holds the samples; it does not tell the cost of the run or the origin of the model.
    """

    schema_version: int = RECORD_SCHEMA
    log_format: str
    edition: str
    benchmark: str
    scores: dict[str, ScoreEntry]
    samples: Samples
    comparability: Comparability
    notes: list[str]


def comparability(key: Mapping[str, Any]) -> Comparability:
    """The mapping with its hash."""
    return Comparability(key=dict(key), sha256=digest(key))


def score_entries(scores: Iterable[Score], metrics: Sequence[Metric], edition: str) -> dict[str, ScoreEntry]:
    """Scores by metric name: ``edition`` at the top level, all editions under ``editions``.

    Raises:
        RecordError: a score has no declared metric, or a declared metric has no score.
    """
    declared = {metric.name: metric for metric in metrics}
    by_metric: dict[str, dict[str, EditionScore]] = {}
    for score in scores:
        if score.metric not in declared:
            raise RecordError(f"score of {score.metric!r}, which the benchmark does not declare")
        if math.isnan(score.value) and not score.reason:
            raise RecordError(f"{score.metric} is NaN without a reason")
        entry = EditionScore(
            value=score.value,
            n=score.n,
            interval=score.interval,
            reason=score.reason,
            passes=score.passes,
            resamples=_stored(score.resamples) if declared[score.metric].part_of else "",
        )
        for name in [score.edition] if score.edition else declared[score.metric].editions or [edition]:
            by_metric.setdefault(score.metric, {})[name] = entry
    missing = declared.keys() - by_metric.keys()
    if missing:
        raise RecordError(f"the benchmark yields no score of {', '.join(sorted(missing))}")
    entries = {}
    for name, metric in declared.items():
        chosen = by_metric[name].get(edition) or next(iter(by_metric[name].values()))
        entries[name] = ScoreEntry(
            **chosen.model_dump(),
            edition=edition,
            label=metric.label,
            better=metric.better,
            headline=metric.headline,
            target=metric.target,
            criterion=metric.criterion,
            part_of=metric.part_of,
            span=metric.span,
            two_sided=metric.two_sided,
            scale=metric.scale,
            editions=by_metric[name],
        )
    return entries


def validation_values(scores: Iterable[Score], metrics: Sequence[Metric], edition: str) -> dict[str, dict[str, float]]:
    """Values of validation rows by metric and edition; empty without scores."""
    found = list(scores)
    entries = score_entries(found, metrics, edition) if found else {}
    return {name: {key: score.value for key, score in entry.editions.items()} for name, entry in entries.items()}


def _stored(resamples: Iterable[float] | None) -> str:
    """Resampled values as base64 of little-endian float32."""
    import numpy as np

    if resamples is None:
        return ""
    return base64.b64encode(np.asarray(resamples, dtype="<f4").tobytes()).decode("ascii")


def read_record(path: Path) -> Record:
    """Raises RecordError where the file is absent, truncated, invalid, or of a newer schema."""
    raw = read_json(path, "run the study again to make it")
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if isinstance(version, int) and version > RECORD_SCHEMA:
        raise RecordError(
            f"{path} has record schema {version}; this unlearnbench reads up to {RECORD_SCHEMA}: upgrade it"
        )
    try:
        return Record.model_validate(raw)
    except ValidationError as error:
        raise RecordError(f"{path} is not a record: {first_fault(error)}; run the study again") from error
