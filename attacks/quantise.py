"""Quantisation: fewer bits undo small changes of weights. Zhang et al. 2025, arXiv:2410.16454.

Weights come back in the model's own precision, as the quantised ones stand for them, so that everything after is
computed as before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from unlearnbench import Attack, AttackData, Context, ModelError, hyperparameter

from ._weights import linear_weights


@torch.no_grad()
def round_to_nearest(weight: Tensor, bits: int, group: int) -> Tensor:
    """(out, in) weights rounded to the 2^bits levels between the least and the greatest of each group of a row.

    A row's last group may be shorter. Round-to-nearest is the baseline of Frantar et al. 2022, arXiv:2210.17323.
    """
    rows, width = weight.shape
    short = -width % group
    # The last weight again, so that filling a group up does not widen its range.
    filled = torch.cat([weight, weight[:, -1:].expand(rows, short)], dim=1).float().view(rows, -1, group)
    low, high = filled.amin(-1, keepdim=True), filled.amax(-1, keepdim=True)
    step = ((high - low) / (2**bits - 1)).clamp(min=torch.finfo(torch.float32).tiny)
    levels = ((filled - low) / step).round()
    rounded: Tensor = (levels * step + low).view(rows, -1)[:, :width]
    return rounded.to(weight.dtype)


@dataclass(frozen=True)
class Quantise(Attack):
    """Rounds the weights of linear layers to four bits in groups of a row, and answers with these."""

    name: ClassVar[str] = "quantise"
    citation: ClassVar[str] = "Zhang et al. 2025, arXiv:2410.16454"
    bits: int = hyperparameter(4, "bits of a weight", low=1, high=8)
    group: int = hyperparameter(64, "weights of a row that share a range", low=1)

    def change(self, model: Any, data: AttackData, ctx: Context) -> Any:
        for weight, transposed in linear_weights(model):
            own = weight.data.T if transposed else weight.data
            rounded = round_to_nearest(own, self.bits, self.group)
            weight.data.copy_(rounded.T if transposed else rounded)
        return model


@dataclass(frozen=True)
class NormalFloat(Attack):
    """Rounds the weights of linear layers to bitsandbytes' NF4, and answers with these."""

    name: ClassVar[str] = "quantise-nf4"
    citation: ClassVar[str] = "Dettmers et al. 2023, arXiv:2305.14314"
    packages: ClassVar[tuple[str, ...]] = ("bitsandbytes",)
    extra: ClassVar[str] = "unlearnbench[quantise]"
    group: int = hyperparameter(64, "weights that share a scale: 32, 64, 128, …", low=32)

    def change(self, model: Any, data: AttackData, ctx: Context) -> Any:
        try:
            from bitsandbytes.functional import dequantize_4bit, quantize_4bit
        except ImportError as error:
            raise ModelError(f"{self.name} needs bitsandbytes: pip install '{self.extra}'") from error
        for weight, transposed in linear_weights(model):
            own = (weight.data.T if transposed else weight.data).contiguous()
            packed, state = quantize_4bit(own, blocksize=self.group, quant_type="nf4")
            rounded = dequantize_4bit(packed, state).to(weight.dtype).view_as(own)
            weight.data.copy_(rounded.T if transposed else rounded)
        return model
