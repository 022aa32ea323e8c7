"""``Wrapper``: the base of models that answer through another, such as guardrails and prompts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ..engine.numerics import widened


class RowsSoFar:
    """What a wrapper keeps between steps of decoding: the (B, L) tokens of all rows, which it reads again each time."""

    grows = False
    can_select = True

    def __init__(self) -> None:
        self.ids: Tensor | None = None

    def expect(self, rows: int, columns: int) -> None:
        """Nothing is allocated ahead."""

    def add(self, ids: Tensor) -> Tensor:
        """All tokens, with these (B, T) after those before."""
        self.ids = ids if self.ids is None else torch.cat([self.ids, ids], dim=1)
        return self.ids

    def select(self, rows: Tensor, drop: int = 0) -> None:
        """Keep these rows, without the first ``drop`` columns."""
        assert self.ids is not None
        self.ids = self.ids[rows, drop:]

    def spread(self, rows: Tensor) -> None:
        """Hold these rows, each as often as it is named."""
        self.select(rows)


class Wrapper(torch.nn.Module):
    """A model that answers through ``model``: a subclass overrides ``logits``.

    It is scored and generates like a causal language model of transformers. It has no output head of its own, so that
    callers see its logits as they are. Between steps of decoding it keeps the tokens alone and passes over whole rows;
    a subclass that can keep keys and values overrides ``forward`` and ``new_cache``.
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

    def new_cache(self) -> Any:
        return RowsSoFar()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        **inputs: Any,
    ) -> SimpleNamespace:
        """``logits`` of whole rows, or (B, 1, V) those after the last token of rows that are decoded.

        Raises:
            NotImplementedError: rows are given in another form; the engine then finds one that suits.
        """
        if input_ids is None or (attention_mask is not None and attention_mask.dim() != 2):
            raise NotImplementedError(f"{type(self).__name__} reads whole rows of tokens")
        if isinstance(past_key_values, RowsSoFar):
            ids = past_key_values.add(input_ids)
            mask = torch.ones_like(ids) if attention_mask is None else attention_mask
            return SimpleNamespace(logits=self._after_last(ids, mask), past_key_values=past_key_values)
        if past_key_values is not None or inputs.get("position_ids") is not None:
            raise NotImplementedError(f"{type(self).__name__} reads whole rows of tokens")
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return SimpleNamespace(logits=self.logits(input_ids, mask), past_key_values=None)

    def _after_last(self, ids: Tensor, mask: Tensor) -> Tensor:
        """(B, 1, V) logits after the last token of rows that are padded anywhere."""
        order = (mask == 0).to(torch.int8).argsort(dim=1, stable=True)
        lengths = mask.sum(dim=1)
        kept = int(lengths.max())
        logits = self.logits(ids.gather(1, order)[:, :kept], mask.gather(1, order)[:, :kept])
        return logits[torch.arange(len(ids), device=logits.device), lengths - 1].unsqueeze(1)

    def get_input_embeddings(self) -> Any:
        return self.model.get_input_embeddings()

    def get_output_embeddings(self) -> None:
        return None

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """The model inside, loadable alone; what a subclass needs besides it saves itself."""
        self.model.save_pretrained(Path(folder) / "model", **options)
