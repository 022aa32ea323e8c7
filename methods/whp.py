"""WHP: Who's Harry Potter. Eldan and Russinovich 2023, eq. 1.

A second model learns the forget set better, and the words that it has come to prefer are lowered.
"""

from __future__ import annotations

import json
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
    Wrapper,
    cache_keyword,
    hyperparameter,
    widened,
)

from ._terms import refuse_adapter


@dataclass(frozen=True)
class WHP(FineTune):
    """Lowers the words that a model fine-tuned on the forget set prefers; two models answer together."""

    name: ClassVar[str] = "whp"
    citation: ClassVar[str] = "Eldan and Russinovich 2023, arXiv:2310.02238"
    models: ClassVar[int] = 2
    requires: ClassVar[Requires] = Requires(original="model")
    edition: str = hyperparameter("paper", "which definition", choices=("paper",))
    alpha: float = hyperparameter(5.0, "how strongly preferred words are lowered", low=0.0)

    def unlearn(self, model: Any, tokenizer: Any, data: UnlearningData, ctx: Context) -> Any:
        if isinstance(model, Contrast):
            raise NotApplicable("whp made a model of two, which a further request cannot fine-tune")
        refuse_adapter(self.name, model)
        return Contrast(ctx.original, super().unlearn(model, tokenizer, data, ctx), self.alpha)


class Contrast(Wrapper):
    """A model whose logits are v_original − alpha ReLU(v_reinforced − v_original).

    ``new_cache`` is what generation keeps between steps, of ``cached_models`` models.
    """

    cached_models: ClassVar[int] = 2

    def __init__(self, original: Any, reinforced: Any, alpha: float) -> None:
        super().__init__(original)
        self.reinforced = reinforced
        self.alpha = alpha

    @property
    def original(self) -> Any:
        return self.model

    def new_cache(self) -> PairedKVCache:
        return PairedKVCache(KVCache(self.config), KVCache(self.reinforced.config))

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: PairedKVCache | None = None,
        use_cache: bool | None = None,
        **inputs: Any,
    ) -> SimpleNamespace:
        """``logits`` (B, T, V), and ``past_key_values``, of a causal language model's usual arguments."""
        caches = past_key_values or (None, None)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": use_cache, **inputs}
        logits, preferred = (
            widened(part(**{cache_keyword(part): cache}, **inputs).logits)
            for part, cache in zip((self.original, self.reinforced), caches, strict=True)
        )
        contrast = logits - self.alpha * torch.relu(preferred - logits)
        return SimpleNamespace(logits=contrast, past_key_values=past_key_values)

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Both models, each loadable alone, and ``contrast.json`` with alpha."""
        self.original.save_pretrained(Path(folder) / "original", **options)
        self.reinforced.save_pretrained(Path(folder) / "reinforced", **options)
        (Path(folder) / "contrast.json").write_text(json.dumps({"alpha": self.alpha}) + "\n", encoding="utf-8")
