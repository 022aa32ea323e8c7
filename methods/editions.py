"""The editions of losses. Importing them imports no torch, so that specs and methods share them."""

from __future__ import annotations

from unlearnbench import EDITIONS

MUSE_EDITIONS = (*EDITIONS, "as-released-muse")
"""``as-released-muse``: the raw-logit forms of muse_bench's code."""

__all__ = ["EDITIONS", "MUSE_EDITIONS"]
