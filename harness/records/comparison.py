"""The comparison of two results, as values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ..domain import CellId
from .gates import Gate

if TYPE_CHECKING:
    import pandas

    from ..metrics.statistics import Floats


@dataclass(frozen=True)
class Difference:
    """One metric of one pairing.

    ``worsening`` is how much worse the candidate is in the metric's own direction; below 0 it is better. Intervals
    are 95 %. ``paired`` is False where one side has no samples; the interval then assumes independent sides.
    ``extra_variance`` is what resampled rows do not show, because they are few or because runs vary, and ``freedom``
    the degrees of freedom behind it.
    """

    metric: str
    label: str
    edition: str
    baseline: float
    candidate: float
    difference: float
    interval: tuple[float, float] | None
    worsening: float
    paired: bool
    n: int
    reason: str = ""
    resampled_difference: Floats | None = field(default=None, compare=False, repr=False)
    resampled_worsening: Floats | None = field(default=None, compare=False, repr=False)
    extra_variance: float = 0.0
    freedom: float = math.inf


@dataclass(frozen=True)
class Pair:
    """One cell on both sides."""

    identity: CellId
    metrics: tuple[Difference, ...]
    costs: Mapping[str, tuple[float | None, float | None]]

    @property
    def title(self) -> str:
        return str(self.identity)


@dataclass(frozen=True)
class MeanPair:
    """The cells of several runs on both sides: metrics are means over the runs.

    Args:
        identity: of the first run.
    """

    identity: CellId
    runs: int
    metrics: tuple[Difference, ...]

    @property
    def title(self) -> str:
        setting = f" ({self.identity.setting})" if self.identity.setting else ""
        return f"{self.identity.pairing} × {self.identity.model}{setting}, mean over {self.runs} runs"


@dataclass(frozen=True)
class LoneCell:
    """A cell with a record on one side only, and its status on the other."""

    identity: CellId
    status: str


@dataclass(frozen=True)
class Finding:
    """The verdict of a gate on one pairing."""

    gate: Gate
    title: str
    tripped: bool
    message: str


@dataclass(frozen=True)
class Comparison:
    """Cells on both sides, their means over runs, cells on one side only, and the findings of gates."""

    baseline: str
    candidate: str
    pairs: tuple[Pair, ...]
    only_baseline: tuple[LoneCell, ...]
    only_candidate: tuple[LoneCell, ...]
    means: tuple[MeanPair, ...] = ()
    notes: tuple[str, ...] = ()
    gates: tuple[Gate, ...] = ()
    findings: tuple[Finding, ...] = ()

    @property
    def tripped(self) -> tuple[Finding, ...]:
        """The findings that trip their gates."""
        return tuple(finding for finding in self.findings if finding.tripped)

    def rows(self) -> Iterator[dict[str, Any]]:
        """A flat row for every metric of every pairing."""
        for pair in self.pairs:
            for change in pair.metrics:
                low, high = change.interval or (None, None)
                yield {
                    **asdict(pair.identity),
                    "metric": change.metric,
                    "edition": change.edition,
                    "baseline": change.baseline,
                    "candidate": change.candidate,
                    "difference": change.difference,
                    "low": low,
                    "high": high,
                    "paired": change.paired,
                    "worsening": change.worsening,
                    "n": change.n,
                }

    def to_frame(self) -> pandas.DataFrame:
        """A row for every metric of every pairing, as a pandas frame."""
        import pandas

        return pandas.DataFrame(list(self.rows()))

    def _repr_html_(self) -> str:
        return str(self.to_frame().to_html(index=False, na_rep="–", float_format="{:.4g}".format))
