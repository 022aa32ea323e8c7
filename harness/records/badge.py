"""What recomputing a bundle's scores gave, beside the bundle."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

# -- badges -----------------------------------------------------------------------------------------------------------

BADGE_SCHEMA = 1


class Badge(BaseModel):
    """What recomputing a bundle's scores gave: the cells that hold, those that do not, and what is wrong.

    ``date`` and ``unlearnbench`` are those of the verification that left it beside the bundle; empty for one made now.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    schema_version: int = BADGE_SCHEMA
    bundle_sha256: str = ""
    date: str = Field(default="", max_length=40)
    unlearnbench: str = Field(default="", max_length=200)
    cells: list[str]
    refuted: dict[str, str] = {}
    faults: list[str] = []
