"""The badge of a bundle: the result of recomputing its scores."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

BADGE_SCHEMA = 1


class Badge(BaseModel):
    """The result of recomputing a bundle's scores: cells that hold, cells that do not, and the faults.

    ``date`` and ``unlearnbench`` belong to the verification that wrote the badge; empty for a badge made now.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    schema_version: int = BADGE_SCHEMA
    bundle_sha256: str = ""
    date: str = Field(default="", max_length=40)
    unlearnbench: str = Field(default="", max_length=200)
    cells: list[str]
    refuted: dict[str, str] = {}
    faults: list[str] = []
