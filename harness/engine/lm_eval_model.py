"""A model as lm-eval sees one; tokenised and windowed as lm-eval's own ``hf`` model does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import TemplateLM

from .._compat import rolling_windows
from ..data.encoder import EncodedRow, Encoder
from ..errors import DataError
from .engine import Engine


class EngineLM(TemplateLM):  # type: ignore[misc]
    """Answers lm-eval's requests for likelihoods by an engine; it does not generate."""

    def __init__(self, engine: Engine, model: Any, encoder: Encoder) -> None:
        super().__init__()
        self._engine, self._model, self._encoder = engine, model, encoder

    @property
    def eot_token_id(self) -> int:
        return int(self._encoder.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        bos = self._encoder.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        tokenizer = self._encoder.tokenizer
        if add_special_tokens is None and tokenizer.bos_token and string.startswith(tokenizer.bos_token):
            add_special_tokens = False
        options = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        ids: list[int] = tokenizer.encode(string, **options)
        return ids

    def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        rows = [self._row(context, continuation) for _texts, context, continuation in requests]
        # Whether greedy decoding would say the same is not asked here, and no metric of ours uses it.
        return [(-found.nll, False) for found in self._engine.score(self._model, rows)]

    def _row(self, context: Sequence[int], continuation: Sequence[int]) -> EncodedRow:
        longest = self._encoder.context
        if len(continuation) > longest:
            raise DataError(
                f"a task's continuation has {len(continuation)} tokens; the model's context is {longest}: use a model "
                "with a longer one"
            )
        # The last token is not read, so that a row may have one more than the model has positions.
        ids = (*context, *continuation)[-(longest + 1) :]
        return EncodedRow(ids, len(ids) - len(continuation))

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        pairs, places = [], []
        for place, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            for context, continuation in rolling_windows(ids, self.prefix_token_id, self._encoder.context):
                pairs.append((None, context, continuation))
                places.append(place)
        totals = [0.0] * len(requests)
        for place, (value, _) in zip(places, self._loglikelihood_tokens(pairs), strict=True):
            totals[place] += value
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        raise NotImplementedError("the tasks asked here score likelihoods")
