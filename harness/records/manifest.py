"""The manifest of a bundle."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from ..domain import CellId, CellStatus
from .schema import Strict

BUNDLE_SCHEMA = 1
MANIFEST = "manifest.json"
Text = Field(max_length=2000)
REQUIRED = ("contact", "licence", "budget", "selection")


class Submission(Strict):
    """Who submits what, and how they chose hyperparameters.

    A study may leave fields empty; a bundle fills those in ``REQUIRED``.
    """

    contact: str = Field(default="", max_length=2000, description="whom to ask, for example a mail address")
    licence: str = Field(default="", max_length=2000, description="under which the records and samples are handed in")
    budget: str = Field(default="", max_length=2000, description="how many settings of each method were tried")
    selection: str = Field(
        default="", max_length=2000, description="the rule that chose the settings shown, and the data it looked at"
    )
    paper: str = Field(default="", max_length=2000, description="address or citation of the paper")
    code: str = Field(default="", max_length=2000, description="address of the code")

    @property
    def lacking(self) -> list[str]:
        """The required fields that are empty."""
        return [name for name in REQUIRED if not getattr(self, name).strip()]


class BundledCell(Strict):
    """A cell of the study, with or without a record."""

    key: str
    method: str = Text
    benchmark: str = Text
    model: str = Text
    seed: int
    repeat: int = Field(default=0, ge=0)
    setting: str = Field(default="", max_length=2000)
    attack: str = Field(default="", max_length=200)
    status: CellStatus
    reason: str = Field(default="", max_length=20_000)

    @property
    def identity(self) -> CellId:
        return CellId(self.method, self.benchmark, self.model, self.seed, self.repeat, self.setting, self.attack)


class BundledFile(Strict):
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class Manifest(Strict):
    """The contents of a bundle and their origin, as the submitter states them."""

    schema_version: int = BUNDLE_SCHEMA
    unlearnbench: str = Text
    study: str = Text
    edition: Literal["paper", "as-released"]
    partial: bool
    """True where cells of the run were still pending."""
    submission: Submission
    plugins: list[dict[str, str]]
    """Distributions, versions and source hashes of the plugins, as the submitter states them."""
    cells: list[BundledCell]
    files: dict[str, BundledFile]

    @field_validator("submission")
    @classmethod
    def _complete(cls, submission: Submission) -> Submission:
        if submission.lacking:
            raise ValueError(f"{submission.lacking[0]} is missing")
        return submission
