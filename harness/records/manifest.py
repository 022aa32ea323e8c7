"""What a bundle says of itself."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

BUNDLE_SCHEMA = 1
MANIFEST = "manifest.json"
RECORD = "record.json"
Text = Field(max_length=2000)
REQUIRED = ("contact", "licence", "budget", "selection")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Submission(_Strict):
    """Who hands in what, and how hyperparameters were chosen."""

    contact: str = Text
    licence: str = Text
    budget: str = Text
    selection: str = Text
    paper: str = Field(default="", max_length=2000)
    code: str = Field(default="", max_length=2000)


class BundledCell(_Strict):
    """A cell of the study, whether it has a record or not."""

    key: str
    method: str = Text
    benchmark: str = Text
    model: str = Text
    seed: int
    status: str = Text
    reason: str = Field(default="", max_length=20_000)


class BundledFile(_Strict):
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class Manifest(_Strict):
    """What a bundle says of itself."""

    schema_version: int = BUNDLE_SCHEMA
    unlearnbench: str = Text
    study: str = Text
    edition: Literal["paper", "as-released"]
    partial: bool
    """True where the run had cells that were still to run."""
    submission: Submission
    plugins: list[dict[str, str]]
    """Distributions, versions and source hashes of what was run, as far as the submitter tells."""
    cells: list[BundledCell]
    files: dict[str, BundledFile]
