"""``Wrapper``: the base of models that answer through another, such as guardrails and prompts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ..engine.numerics import widened


class Wrapper(torch.nn.Module):
    """A model that answers through ``model``: a subclass overrides ``logits``.

    It is scored and generates like a causal language model of transformers. It has no output head of its own, so that
    callers see its logits as they are, and it keeps nothing between steps of decoding: every token is written after a
    pass over the whole row. A subclass that can keep something overrides ``forward`` and offers ``new_cache()``.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.config = model.config

    @property
    def device(self) -> torch.device:
        found: torch.device = self.model.device
        return found

    @property
    def dtype(self) -> torch.dtype:
        found: torch.dtype = self.model.dtype
        return found

    def logits(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, T, V) logits of rows of (B, T) token ids, padded on the right where the (B, T) mask is 0.

        The default is those of ``model``.
        """
        return widened(self.model(input_ids=input_ids, attention_mask=attention_mask).logits)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        **inputs: Any,
    ) -> SimpleNamespace:
        """``logits`` of whole rows.

        Raises:
            NotImplementedError: rows are given in a form other than whole and padded; the engine then finds another.
        """
        whole = past_key_values is None and inputs.get("position_ids") is None
        if input_ids is None or not whole or (attention_mask is not None and attention_mask.dim() != 2):
            raise NotImplementedError(f"{type(self).__name__} reads whole rows of tokens")
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return SimpleNamespace(logits=self.logits(input_ids, mask), past_key_values=None)

    def get_input_embeddings(self) -> Any:
        return self.model.get_input_embeddings()

    def get_output_embeddings(self) -> None:
        return None

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """The model inside, loadable alone; what a subclass needs besides it saves itself."""
        self.model.save_pretrained(Path(folder) / "model", **options)
