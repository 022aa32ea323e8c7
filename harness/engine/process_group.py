"""The processes that share the work of one cell, as their launcher numbers them."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

PATIENCE = timedelta(days=7)
"""How long processes wait for one another; ``run.timeout`` ends a cell that hangs."""


def processes() -> int:
    """How many processes share the work of this one; 1 outside a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process's number among them, from 0."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Its number on this machine, which is that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def first_says(value: bool) -> bool:
    """What the first process says, in all of them; each calls this as often as the others."""
    if processes() == 1:
        return value
    if not torch.distributed.is_initialized():
        # The first may wait for another run to make what it is about to say is there.
        torch.distributed.init_process_group(timeout=PATIENCE)
    said = [value]
    torch.distributed.broadcast_object_list(said, src=0, device=torch.device("cpu"))
    return said[0]


def is_sharded(model: Any) -> bool:
    """Whether a model's weights are spread over processes."""
    return any(hasattr(weight, "full_tensor") for weight in model.parameters())


def summed(value: Tensor) -> Tensor:
    """The sum of a scalar over all processes."""
    if processes() > 1:
        torch.distributed.all_reduce(value)
    return value
