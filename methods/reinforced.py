"""Methods that first learn the forget set better, and then step away from what that changed.

Task Vector: Ilharco et al. 2023, arXiv:2212.04089, as used by Shi et al. 2024, arXiv:2407.06460, §3.
WHP (Who's Harry Potter): Eldan and Russinovich 2023, arXiv:2310.02238, eq. 1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor

from unlearnbench import (
    Context,
    FineTune,
    KVCache,
    NotApplicable,
    PairedKVCache,
    Requires,
    UnlearningData,
    hyperparameter,
    widened,
)


@torch.no_grad()  # type: ignore[untyped-decorator]
def negate(model: torch.nn.Module, original: Mapping[str, Tensor], alpha: float) -> None:
    """Set every weight θ of ``model`` to θ_original − alpha (θ − θ_original), in place.

    Differs: muse_bench's released code for this method leaves the model's weights as they were.
    """
    for name, weight in model.named_parameters():
        start = original[name].to(weight.device)
        weight.copy_(start - alpha * (weight - start))


@dataclass(frozen=True)
class TaskVector(FineTune):
    """Fine-tunes on the forget set and subtracts the change from the original weights."""

    name: ClassVar[str] = "task-vector"
    edition: str = hyperparameter("paper", "which definition", choices=("paper",))
    alpha: float = hyperparameter(1.0, "how far to step away from the fine-tuned model", low=0.0)

    def unlearn(self, model: Any, tokenizer: Any, data: UnlearningData, ctx: Context) -> Any:
        _refuse_adapter(self.name, model)
        original = {name: weight.detach().cpu().clone() for name, weight in model.named_parameters()}
        model = super().unlearn(model, tokenizer, data, ctx)
        negate(model, original, self.alpha)
        return model


@dataclass(frozen=True)
class WHP(FineTune):
    """Lowers the words that a model fine-tuned on the forget set prefers; two models answer together."""

    name: ClassVar[str] = "whp"
    requires: ClassVar[Requires] = Requires(original="model")
    edition: str = hyperparameter("paper", "which definition", choices=("paper",))
    alpha: float = hyperparameter(5.0, "how strongly preferred words are lowered", low=0.0)

    def unlearn(self, model: Any, tokenizer: Any, data: UnlearningData, ctx: Context) -> Any:
        if isinstance(model, Contrast):
            raise NotApplicable("whp made a model of two, which a further request cannot fine-tune")
        _refuse_adapter(self.name, model)
        return Contrast(ctx.original, super().unlearn(model, tokenizer, data, ctx), self.alpha)


def _refuse_adapter(method: str, model: Any) -> None:
    if hasattr(model, "peft_config"):
        raise NotApplicable(f"{method} computes with all weights of two models; set lora_rank = 0")


class Contrast(torch.nn.Module):  # type: ignore[misc]
    """A model whose logits are v_original − alpha ReLU(v_reinforced − v_original).

    It generates and scores like a causal language model of transformers. It has no output head of its own, so
    callers see full logits; ``new_cache`` is what generation keeps between steps, of ``cached_models`` models.
    """

    cached_models: ClassVar[int] = 2

    def __init__(self, original: Any, reinforced: Any, alpha: float) -> None:
        super().__init__()
        self.original = original
        self.reinforced = reinforced
        self.alpha = alpha
        self.config = original.config

    @property
    def device(self) -> torch.device:
        found: torch.device = self.original.device
        return found

    @property
    def dtype(self) -> torch.dtype:
        found: torch.dtype = self.original.dtype
        return found

    def new_cache(self) -> PairedKVCache:
        return PairedKVCache(KVCache(self.config), KVCache(self.reinforced.config))

    def get_input_embeddings(self) -> Any:
        return self.original.get_input_embeddings()

    def get_output_embeddings(self) -> None:
        return None

    def forward(
        self, input_ids: Tensor | None = None, past_key_values: PairedKVCache | None = None, **inputs: Any
    ) -> SimpleNamespace:
        """``logits`` (B, T, V), and ``past_key_values``, of a causal language model's usual arguments."""
        caches = past_key_values or (None, None)
        logits, preferred = (
            widened(part(input_ids=input_ids, past_key_values=cache, **inputs).logits)
            for part, cache in zip((self.original, self.reinforced), caches, strict=True)
        )
        contrast = logits - self.alpha * torch.relu(preferred - logits)
        return SimpleNamespace(logits=contrast, past_key_values=past_key_values)

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Both models, each loadable alone, and ``contrast.json`` with alpha."""
        self.original.save_pretrained(Path(folder) / "original", **options)
        self.reinforced.save_pretrained(Path(folder) / "reinforced", **options)
        (Path(folder) / "contrast.json").write_text(json.dumps({"alpha": self.alpha}) + "\n", encoding="utf-8")
