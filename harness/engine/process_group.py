"""The processes that share the work of one cell, as their launcher numbers them."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor


def processes() -> int:
    """How many processes share the work of this one; 1 outside a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process's number among them, from 0."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Its number on this machine, which is that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_sharded(model: Any) -> bool:
    """Whether a model's weights are spread over processes."""
    return any(hasattr(weight, "full_tensor") for weight in model.parameters())


def summed(value: Tensor) -> Tensor:
    """The sum of a scalar over all processes."""
    if processes() > 1:
        torch.distributed.all_reduce(value)
    return value
