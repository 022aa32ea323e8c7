"""What takes an optimiser step, and in what precision weights and moments are held (``run.optimiser``).

Bytes that training holds of each trained weight:

| | weight | gradient | moments |
| --- | --- | --- | --- |
| ``adamw`` | 4 | 4 | 8 |
| ``adamw-8bit`` | 4 | 4 | 2 |
| ``adamw-bf16`` | 2 | 2 | 2 |

Moments of 8 bits are quantised in blocks of 256 (Dettmers et al. 2022, arXiv:2110.02861). A step in bfloat16 is often
smaller than half of the spacing of its numbers, and would be lost; rounded up or down by chance, in proportion, it is
right in the mean (Zamirai et al. 2020, arXiv:2010.06192). Both are torchao's. ``lora`` trains an adapter with AdamW.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..engine.numerics import cast
from ..errors import ModelError

EIGHT_BITS = ("adamw-8bit", "adamw-bf16")
"""Optimisers whose moments are held in 8 bits."""


def as_trained(model: Any, name: str) -> Any:
    """The model with its weights in the precision in which an optimiser holds them."""
    return cast(model, torch.bfloat16) if name == "adamw-bf16" else model


def optimiser_of(
    name: str, groups: Sequence[Mapping[str, Any]], learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """The optimiser of ``run.optimiser`` over groups of weights.

    Raises:
        ModelError: it needs a package that is not installed.
    """
    settings: dict[str, Any] = {"lr": learning_rate, "weight_decay": weight_decay}
    if name in EIGHT_BITS:
        return _eight_bits(groups, settings)
    weights = [weight for group in groups for weight in group["params"]]
    return torch.optim.AdamW(groups, fused=_fused(weights), **settings)  # type: ignore[arg-type]


def _eight_bits(groups: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> torch.optim.Optimizer:
    try:
        from torchao.optim import AdamW8bit
    except ImportError as error:
        raise ModelError("8-bit moments need the package torchao: pip install 'unlearnbench[torchao]'") from error

    class Stepping(AdamW8bit):  # type: ignore[misc]
        """On a CPU a step is not compiled: that needs a compiler, and takes longer than a small model's training."""

        def step(self, closure: Any = None) -> Any:
            on_cpu = self.param_groups[0]["params"][0].device.type == "cpu"
            with torch.compiler.set_stance("force_eager" if on_cpu else "default"):
                return super().step(closure)

    return Stepping(groups, bf16_stochastic_round=True, **settings)


def _fused(weights: Sequence[Tensor]) -> bool:
    return all(weight.device.type in ("cpu", "cuda") and weight.is_floating_point() for weight in weights)
