"""How far each metric can be trusted: the record of a meta-evaluation."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from ..domain import Edition
from ..errors import RecordError
from ..storage import read_sealed, write_sealed
from .schema import Strict, first_fault

META_SCHEMA = 1
META = "meta-evaluation.json"


class Area(Strict):
    """The area under the ROC curve between models with and without the forget set, with its 95 % interval."""

    value: float
    low: float
    high: float


class MetricTrust(Strict):
    """One metric of one benchmark, measured on many pairs of models.

    Args:
        faithfulness: of models as they are; None with a reason.
        under: of the same models under each attack.
        pairs: how many models there are of each kind.
    """

    benchmark: str
    model: str
    metric: str
    label: str
    edition: str
    pairs: int
    faithfulness: Area | None = None
    under: dict[str, Area] = {}
    reason: str = ""

    @property
    def robustness(self) -> tuple[str, Area] | None:
        """The attack under which the area is least, and that area."""
        return min(self.under.items(), key=lambda item: item[1].value) if self.under else None

    @property
    def trust(self) -> float:
        """The least of all areas; NaN where none was measured."""
        areas = [area.value for area in (self.faithfulness, *self.under.values()) if area]
        return min(areas) if self.faithfulness and areas else float("nan")


class MetaEvaluation(Strict):
    """All metrics of a study's benchmarks.

    Args:
        recipes: changes of the fine-tuning of reference models, one for each group of seeds.
    """

    schema_version: int = META_SCHEMA
    study: str
    edition: Edition
    recipes: list[dict[str, float]]
    seeds: list[int]
    attacks: list[str]
    metrics: list[MetricTrust]


def write_meta_evaluation(folder: Path, found: MetaEvaluation) -> None:
    """Store the record in a folder."""
    write_sealed(folder / META, found.model_dump(mode="json"))


def read_meta_evaluation(folder: Path) -> MetaEvaluation:
    """The record in a folder. Raises RecordError where it is absent, damaged or of a newer schema."""
    remedy = "run unlearnbench meta-evaluate again"
    raw = read_sealed(folder / META, remedy)
    if isinstance(raw, dict) and isinstance(raw.get("schema_version"), int) and raw["schema_version"] > META_SCHEMA:
        raise RecordError(f"{folder / META} has schema {raw['schema_version']}; this unlearnbench reads {META_SCHEMA}")
    try:
        return MetaEvaluation.model_validate(raw)
    except ValidationError as error:
        raise RecordError(f"{folder / META} is no meta-evaluation ({first_fault(error)}); {remedy}") from error
