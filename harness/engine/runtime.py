"""What is known while a cell runs: of its device, of each of its models, and of the ways that the engine took."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from .._compat import attention_of
from ..data.encoder import EncodedRow
from .batch import collate
from .budgets import CPU, GPU, Budgets, Mechanisms
from .capabilities import (
    Capabilities,
    TriedWay,
    attention_window,
    evaluating,
    exact,
    learned_positions,
    longest_row,
    vocabulary_of,
)
from .counters import Counters
from .lm_head import LMHead
from .memory import lacks_memory
from .numerics import attention_dtype, logits_at, states_at, token_logprobs_of, whole_logits
from .process_group import is_sharded, summed
from .rounding import rounded_otherwise

# Nats of a token's log-probability that are rounding: in full precision at most, for tokens of ordinary likelihood, and
# in half precision on average, where the model itself is not found to be moved by more. A tenth is no rounding.
EXACT, HALF, NO_ROUNDING = 1e-3, 0.02, 0.1


class Runtime:
    """What is known while a cell runs: of its device, of each of its models, and of the ways that were taken.

    Args:
        budgets: sizes that fit the device; those of its kind by default.
        mechanisms: what may be used to be fast; all of it by default.
    """

    def __init__(
        self, device: torch.device | str = "cpu", budgets: Budgets | None = None, mechanisms: Mechanisms | None = None
    ) -> None:
        self.device = torch.device(device)
        self.budgets = budgets or (GPU if self.device.type == "cuda" else CPU)
        self.mechanisms = mechanisms or Mechanisms()
        self.counters = Counters()
        self._known: WeakKeyDictionary[Any, dict[tuple[object, ...], Capabilities]] = WeakKeyDictionary()

    def capabilities(self, model: Any) -> Capabilities:
        """What is known of a model, in its precision on this device; its output head is tried out the first time."""
        if not hasattr(model, "config"):
            # No language model: what it makes of a batch is all that it says.
            return Capabilities(False, False, 2**31, 0, trees=TriedWay(False), padded=TriedWay(True, 2**31, 2**31))
        place = self.device.type
        precision = attention_dtype(model, self.device), torch.is_autocast_enabled(place)
        kind = (attention_of(model), place, *precision, is_sharded(model))
        of_model = self._known.setdefault(model, {})
        if kind not in of_model:
            with evaluating(model):
                of_model[kind] = self._probed(model)
            self.counters.count("attention", attention_of(model) or "the model's own")
            narrows = of_model[kind].narrows
            self.counters.count("output head", "at answers alone" if narrows else "at every position")
        return of_model[kind]

    def lm_head(self, model: Any) -> LMHead | None:
        """The output head in pieces, for a model whose logits are what its head alone makes of the last states."""
        return LMHead.of(model, self.budgets) if self.capabilities(model).head else None

    def _probed(self, model: Any) -> Capabilities:
        positions, longest, sharded = learned_positions(model), longest_row(model), is_sharded(model)
        inputs = _probe_inputs(model, min(PROBED, positions), self.device)
        # At every second position, as answers take some of a row.
        mask = inputs["attention_mask"].bool().clone()
        mask[:, 1::2] = False
        where = mask.flatten().nonzero()[:, 0]
        layer: Any = getattr(model, "get_output_embeddings", lambda: None)()
        whole, by_layer = _logits_and_head(model, inputs, layer)
        full = whole.flatten(0, 1)[where]
        narrows = (
            self.mechanisms.narrowed_head
            and layer is not None
            and _same_logits(model, full, lambda: logits_at(model, inputs, where, narrow=True))
        )
        # To the last bit: what bounds large logits hardly changes the small ones of an untrained model.
        untouched = narrows and by_layer is not None and torch.equal(whole, by_layer)
        head = self.mechanisms.chunked_head and untouched and _same_by_head(model, inputs, where, full, self.budgets)
        trees = self.mechanisms.prefix_trees and not sharded
        tree_longest = min(self.budgets.tree_tokens, longest, attention_window(model)) if trees else 0
        unmasked = self.device.type == "cuda" and _same_logits(
            model, full, lambda: logits_at(model, {"input_ids": inputs["input_ids"]}, where, narrow=False)
        )
        return Capabilities(narrows, head, longest, tree_longest, sharded, positions, unmasked, trees=TriedWay(trees))

    # -- rows alone, which every other way is held against

    def logits_alone(self, model: Any, ids: Sequence[int], where: range) -> Tensor:
        """(M, V) logits of a row by itself, at some of its positions."""
        self.rewind(model)
        inputs = {"input_ids": torch.tensor([ids], device=self.device)}
        places = torch.tensor(where, device=self.device)
        return logits_at(model, inputs, places, self.capabilities(model).narrows)

    def rewind(self, model: Any) -> None:
        """Undo what a long row left: frequencies that grew with it stay so until the model reads a very short one."""
        if longest_row(model) < 2**31:
            with torch.no_grad():
                model(input_ids=torch.zeros((1, 1), dtype=torch.long, device=self.device))

    def logprobs_alone(self, model: Any, row: EncodedRow) -> Tensor:
        """(n,) log-probabilities of a row's scored tokens, of a pass with that row alone."""
        read = row.ids[: self.capabilities(model).read(len(row.ids))]
        where = range(max(row.start, 1) - 1, len(row.ids) - 1)
        targets = torch.tensor(row.scored_ids, device=self.device)
        return token_logprobs_of(self.logits_alone(model, read, where), targets)

    def suits(
        self,
        model: Any,
        rows: Sequence[EncodedRow],
        values: Tensor,
        way: TriedWay,
        width: int,
        last: EncodedRow | None = None,
    ) -> bool:
        """Whether a way suits a model, judged by what it gave for rows that go beyond what it was tried on.

        Args:
            values: (N,) log-probabilities of the rows' scored tokens, row after row.
            width: tokens, or nodes of trees, that the pass had beside each other.
            last: a row that tells more than the longest one and the shortest, beside which most is padding.
        """
        able = self.capabilities(model)
        padding = width - min(len(row.ids) for row in rows)
        if able.known(way, width, padding):
            return way.fits
        found = dict(zip(rows, values.split([row.answer_tokens for row in rows]), strict=True))
        telling = [max(rows, key=lambda row: len(row.ids)), min(rows, key=lambda row: len(row.ids)), last or rows[-1]]
        with evaluating(model):
            unlike = sum(not self._agrees(model, row, found[row]) for row in telling)
        if able.sharded:
            unlike = int(summed(torch.tensor(unlike, device=self.device)))
        return way.found(unlike == 0, width, padding)

    def _agrees(self, model: Any, row: EncodedRow, found: Tensor) -> bool:
        """Whether the log-probabilities of a row's scored tokens are, beyond rounding, those of the row alone."""
        expected = self.logprobs_alone(model, row).double()
        apart = (found.detach().double() - expected).abs()
        # What is no number alone, of a collapsed model, tells nothing of the way.
        known = torch.isfinite(expected)
        if exact(model, self.device):
            return bool((apart <= EXACT * (expected.abs() / 10).clamp(min=1))[known].all())
        mean = float(apart.mean())
        agrees = mean <= HALF or not bool(known.all())
        if agrees and not self.capabilities(model).sharded:
            return True
        # Processes that share a model run the same passes, whatever each of them found.
        noise = self._noise(model, row, expected)
        return agrees or mean <= noise

    def _noise(self, model: Any, row: EncodedRow, expected: Tensor) -> float:
        """How far rounding may move a row's log-probabilities on average, in nats a token.

        Measured where the row is computed beside itself, which a GPU does by other kernels, and where every layer
        rounds otherwise: on a CPU two equal rows round alike, and rows of other lengths do not.
        """
        able = self.capabilities(model)
        twice = collate([row, row], self.device)
        inputs, where = able.reading(twice)
        beside = token_logprobs_of(logits_at(model, inputs, where, able.narrows), twice.answers)[: len(expected)]
        with rounded_otherwise(model):
            otherwise = self.logprobs_alone(model, row)
        moved = [float((found.double() - expected).abs().mean()) for found in (beside, otherwise)]
        most = NO_ROUNDING * max(1.0, float(expected.abs().mean()))
        return min(max(3 * moved[0], 2 * moved[1]), most)


# -- the output head --------------------------------------------------------------------------------------------------

# Positions of a row on which the output head is tried out.
PROBED = 16


def _probe_inputs(model: Any, length: int, device: torch.device) -> dict[str, Tensor]:
    """Two rows of different tokens, the second a padded one."""
    ids = torch.arange(2 * length, device=device).view(2, length) % vocabulary_of(model)
    mask = torch.ones_like(ids)
    mask[1, length // 2 + 1 :] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def _logits_and_head(model: Any, inputs: Mapping[str, Tensor], layer: Any) -> tuple[Tensor, Tensor | None]:
    """(B, T, V) a model's logits, and what its output head gave for them."""
    made: list[Tensor] = []
    handle = layer.register_forward_hook(lambda _module, _args, out: made.append(out)) if layer is not None else None
    try:
        return whole_logits(model, inputs), made[0] if made else None
    finally:
        if handle is not None:
            handle.remove()


def _same_by_head(model: Any, inputs: Mapping[str, Tensor], where: Tensor, expected: Tensor, budgets: Budgets) -> bool:
    """Whether the head in pieces makes these logits of the last states."""
    head = LMHead.of(model, budgets)
    return head is not None and _same_logits(model, expected, lambda: head.logits(states_at(model, inputs, where)))


def _same_logits(model: Any, expected: Tensor, compute: Callable[[], Tensor]) -> bool:
    """Whether another way to apply the output head gives these logits, up to rounding; one that fails does not."""
    try:
        logits = compute().float()
    except Exception as error:
        if lacks_memory(error):
            raise
        # Any other failure means that this model needs the plain path.
        return False
    slack = (1e-4 if exact(model, logits.device) else 5e-2) * float(expected.abs().max())
    return logits.shape == expected.shape and float((logits - expected.float()).abs().max()) <= slack
