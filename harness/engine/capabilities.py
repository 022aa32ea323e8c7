"""Which ways of computing suit a model: those that give what it gives for each row alone.

Rows of one prompt go through a model as a tree, others padded, and where neither suits it, one by one. Models differ in
what they make of padding, positions, windows and state, and configurations do not say all of it. So a way is tried out
on the rows at hand, in the precision and on the device at hand, before it is used for longer rows, wider trees or more
padding than it was ever tried on. What was found stands in the record (``paths``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..data.encoder import EncodedRow
from .batch import TokenBatch, collate
from .counters import count
from .lm_head import LMHead
from .numerics import attention_dtype, logits_at, states_at, token_logprobs_of
from .prefix_tree import TREE_TOKENS
from .process_group import is_sharded, summed

# Nats of a token's log-probability that are rounding: in full precision at most, for tokens of ordinary likelihood, and
# in half precision on average, where the device itself does not differ by more between a batch of one and of two.
EXACT, HALF = 1e-3, 0.02
# Rotary frequencies that depend on the longest position of a batch, beyond the length that they were trained with.
SWITCHING = ("dynamic", "longrope")


@dataclass
class TriedWay:
    """A way of computing, and the rows on which it was found to suit: their length, the padding beside them."""

    fits: bool = True
    width: int = 0
    padding: int = 0

    def covers(self, width: int, padding: int) -> bool:
        """Whether it need not be tried again: it does not suit at all, or did at least on such rows."""
        return not self.fits or (width <= self.width and padding <= self.padding)

    def found(self, fits: bool, width: int, padding: int) -> bool:
        """Note what a trial found."""
        self.fits = self.fits and fits
        self.width, self.padding = max(self.width, width), max(self.padding, padding)
        return self.fits


@dataclass
class Capabilities:
    """What is known of a model in one precision on one device.

    ``narrows``: the output head may be applied at some positions alone. ``head``: logits are what the output head
    alone makes of the last states, on a CPU. ``longest``, ``tree_longest``: tokens that rows of a batch, and of a tree,
    may have. ``positions``: tokens that the model has learned positions for. ``sharded``: its weights are spread over
    several processes, which must run the same passes: padded rows alone, tried once.

    The others are ways of computing: of scoring and training, of generating in a batch with and without a shared
    beginning, and of generating a row alone with the model's own cache.
    """

    narrows: bool
    head: bool
    longest: int
    tree_longest: int
    sharded: bool = False
    positions: int = 2**31
    trees: TriedWay = field(default_factory=TriedWay)
    padded: TriedWay = field(default_factory=TriedWay)
    batched: TriedWay = field(default_factory=TriedWay)
    shared: TriedWay = field(default_factory=TriedWay)
    cached: TriedWay = field(default_factory=TriedWay)

    def read(self, width: int) -> int:
        """Tokens of so many that are read: the last predicts nothing, and may be one more than there are positions."""
        return width - 1 if width == self.positions + 1 else width

    def reading(self, rows: TokenBatch) -> tuple[dict[str, Tensor], Tensor]:
        """What of rows goes into the model, and (B, T) the positions there that predict an answer token."""
        read = self.read(rows.labels.shape[1])
        return {name: part[:, :read] for name, part in rows.inputs.items()}, rows.predicts[:, :read]

    def known(self, way: TriedWay, width: int, padding: int) -> bool:
        """Whether a way need not be tried again."""
        return way.covers(width, padding) or (self.sharded and way.width > 0)


_known: WeakKeyDictionary[Any, dict[tuple[object, ...], Capabilities]] = WeakKeyDictionary()


def capabilities_of(model: Any, rows: TokenBatch) -> Capabilities:
    """What is known of a model; its output head is tried out on some rows where nothing is known yet."""
    if not hasattr(model, "config"):
        # No language model: what it makes of a batch is all that it says.
        return Capabilities(False, False, 2**31, 0, trees=TriedWay(False), padded=TriedWay(True, 2**31, 2**31))
    device = rows.labels.device
    kind = (str(getattr(model.config, "_attn_implementation", "")), device.type,
            attention_dtype(model, device), torch.is_autocast_enabled(device.type), is_sharded(model))  # fmt: skip
    of_model = _known.setdefault(model, {})
    if kind not in of_model:
        with evaluating(model):
            of_model[kind] = _measured(model, rows)
        count("attention", str(kind[0]) or "the model's own")
        count("output head", "at answers alone" if of_model[kind].narrows else "at every position")
    return of_model[kind]


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Within this a model is in evaluation mode and nothing takes gradients."""
    was = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was)


def text_config(model: Any) -> Any:
    """The configuration of a model's language part, where it has others."""
    return model.config.get_text_config()


def vocabulary_of(model: Any) -> int:
    """Tokens that a model has embeddings of."""
    return int(model.get_input_embeddings().num_embeddings)


# -- the output head --------------------------------------------------------------------------------------------------

# Positions of a row on which the output head is tried out.
HEAD = 64


def _measured(model: Any, rows: TokenBatch) -> Capabilities:
    positions = _positions(model)
    shown = min(HEAD, positions)
    ids, mask = rows.input_ids[:2, :shown], rows.attention_mask[:2, :shown]
    inputs = {"input_ids": ids, "attention_mask": mask}
    # At every second one, since answers may begin later than what is shown.
    where = mask.bool()
    where[:, 1::2] = False
    full = logits_at(model, inputs, where, narrow=False)
    narrows = getattr(model, "get_output_embeddings", lambda: None)() is not None and _same_logits(
        model, full, lambda: logits_at(model, inputs, where, narrow=True)
    )
    head = narrows and _same_by_head(model, inputs, where, full)
    sharded = is_sharded(model)
    tree_longest = 0 if sharded else min(TREE_TOKENS, _longest(model), _window(model))
    return Capabilities(narrows, head, _longest(model), tree_longest, sharded, positions)


def _same_by_head(model: Any, inputs: Mapping[str, Tensor], where: Tensor, expected: Tensor) -> bool:
    """Whether the head alone makes these logits, and nothing is done to them afterwards, such as bounding them."""
    head = LMHead.of(model)
    if head is None or not _same_logits(model, expected, lambda: head.logits(states_at(model, inputs, where))):
        return False
    made: list[Tensor] = []
    handle = model.get_output_embeddings().register_forward_hook(lambda _module, _args, out: made.append(out))
    try:
        # To the last bit: what bounds large logits hardly changes the small ones of an untrained model.
        return bool(torch.equal(model(**inputs).logits, made[0]))
    finally:
        handle.remove()


def _same_logits(model: Any, expected: Tensor, compute: Callable[[], Tensor]) -> bool:
    """Whether another way to apply the output head gives these logits, up to rounding; one that fails does not."""
    try:
        logits = compute().float()
    except Exception:  # noqa: BLE001 - any failure means that this model needs the plain path
        return False
    slack = (1e-4 if exact(model, logits.device) else 5e-2) * float(expected.abs().max())
    return logits.shape == expected.shape and float((logits - expected.float()).abs().max()) <= slack


def exact(model: Any, device: torch.device) -> bool:
    """Whether a model computes in full precision here."""
    return model.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled(device.type)


def _longest(model: Any) -> int:
    """Tokens that rows of a batch may have; beyond them this model's positions depend on the other rows."""
    config = text_config(model)
    rope = _rope(config)
    each = [rope, *(part for part in rope.values() if isinstance(part, Mapping))]
    lengths = [
        part.get("original_max_position_embeddings")
        or getattr(config, "original_max_position_embeddings", None)
        or config.max_position_embeddings
        for part in each
        if part.get("rope_type", part.get("type")) in SWITCHING
    ]
    return min(lengths, default=2**31)


def _positions(model: Any) -> int:
    """Tokens that a model has learned positions for. Rotary positions go on, and may depend on the last one read."""
    config = text_config(model)
    learned = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    return 2**31 if _rope(config) or not learned else int(learned)


def _rope(config: Any) -> Mapping[str, Any]:
    """How a model's positions are rotated; empty where they are learned."""
    return getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}


def _window(model: Any) -> int:
    """Tokens that every layer attends to: a mask of our own would let a model see beyond its sliding window."""
    config = text_config(model)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
    slides = any(kind != "full_attention" for kind in kinds)
    return int((getattr(config, "sliding_window", None) or TREE_TOKENS) if slides else TREE_TOKENS)


# -- rows alone -------------------------------------------------------------------------------------------------------


def logits_alone(model: Any, ids: Sequence[int], where: Tensor, narrow: bool, device: torch.device | str) -> Tensor:
    """(M, V) logits of a row by itself at the positions where (T,) is true: what every other way is held against."""
    rewind(model, device)
    return logits_at(model, {"input_ids": torch.tensor([ids], device=device)}, where[None].to(device), narrow)


def rewind(model: Any, device: torch.device | str) -> None:
    """Frequencies that grew with a long row stay so for a shorter one, until the model reads a very short one."""
    if _longest(model) < 2**31:
        with torch.no_grad():
            model(input_ids=torch.zeros((1, 1), dtype=torch.long, device=device))


def logprobs_alone(model: Any, row: EncodedRow, able: Capabilities, device: torch.device | str) -> Tensor:
    """(n,) log-probabilities of a row's scored tokens, of a pass with that row alone."""
    read = row.ids[: able.read(len(row.ids))]
    where = torch.zeros(len(read), dtype=torch.bool)
    where[max(row.start, 1) - 1 : len(row.ids) - 1] = True
    targets = torch.tensor(row.ids[max(row.start, 1) :], device=device)
    return token_logprobs_of(logits_alone(model, read, where, able.narrows, device), targets)


def way_suits(
    model: Any,
    rows: Sequence[EncodedRow],
    values: Tensor,
    way: TriedWay,
    width: int,
    able: Capabilities,
    device: torch.device,
    last: EncodedRow | None = None,
) -> bool:
    """Whether a way suits a model, judged by what it gave for these rows where they go beyond what it was tried on.

    Args:
        values: (N,) log-probabilities of the rows' scored tokens, row after row.
        width: tokens, or nodes of trees, that the pass had beside each other.
        last: a row that tells more than the longest one and the shortest, beside which most is padding.
    """
    padding = width - min(len(row.ids) for row in rows)
    if able.known(way, width, padding):
        return way.fits
    found = dict(zip(rows, values.split([row.answer_tokens for row in rows]), strict=True))
    telling = [max(rows, key=lambda row: len(row.ids)), min(rows, key=lambda row: len(row.ids)), last or rows[-1]]
    with evaluating(model):
        unlike = sum(not _agrees(model, row, found[row], able, device) for row in telling)
    if able.sharded:
        unlike = int(summed(torch.tensor(unlike, device=device)))
    return way.found(unlike == 0, width, padding)


def _agrees(model: Any, row: EncodedRow, found: Tensor, able: Capabilities, device: torch.device) -> bool:
    """Whether the log-probabilities of a row's scored tokens are, beyond rounding, those of the row alone."""
    expected = logprobs_alone(model, row, able, device).double()
    apart = (found.detach().double() - expected).abs()
    # What is no number alone, of a collapsed model, tells nothing of the way.
    known = torch.isfinite(expected)
    if exact(model, device):
        return bool((apart <= EXACT * (expected.abs() / 10).clamp(min=1))[known].all())
    noise = _noise(model, row, expected, able, device)
    return not bool(known.all()) or float(apart.mean()) <= max(HALF, 3 * noise)


def _noise(model: Any, row: EncodedRow, expected: Tensor, able: Capabilities, device: torch.device) -> float:
    """How far this device's own rounding moves a row's log-probabilities where it is computed beside itself."""
    twice = collate([row, row], device)
    inputs, where = able.reading(twice)
    found = token_logprobs_of(logits_at(model, inputs, where, able.narrows), twice.answers)
    return float((found[: len(expected)].double() - expected).abs().mean())
