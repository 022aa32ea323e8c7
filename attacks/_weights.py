"""The weights that attacks on weights change: those of linear layers, the output head left out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D


def linear_weights(model: Any) -> Iterator[tuple[Tensor, bool]]:
    """Each weight (out, in) of a linear layer once, and whether it is stored as (in, out).

    The output head is left out, as quantisers of language models leave it; it often is the embedding.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    seen: set[int] = set()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head and id(module.weight) not in seen:
            seen.add(id(module.weight))
            yield module.weight, isinstance(module, Conv1D)
