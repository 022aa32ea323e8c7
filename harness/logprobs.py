"""Logits and labels to log-probabilities: the only shift and the only mask in the project."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .batches import Encoded, Rows
from .domain import IGNORE
from .heads import Head, head_reads, withheld
from .paths import took
from .trees import LARGEST, Forest, by_prompt, plant

# Trees are grown where they leave out at least this share of the positions that padded rows would have.
WORTHWHILE = 0.1


def widened(logits: Tensor) -> Tensor:
    """Logits in at least float32, for arithmetic that half precision would spoil."""
    return logits if logits.dtype == torch.float64 else logits.float()


def picked_logprobs(logits: Tensor, targets: Tensor, places: Tensor | None = None) -> Tensor:
    """Log-probabilities of tokens, in nats, computed in at least float32.

    Args:
        logits: (M, V).
        targets: (P,) token ids.
        places: (P,) the row of ``logits`` that predicts each of them; without it P = M and each has its own.
    """
    if places is None:
        places = torch.arange(len(targets), device=targets.device)
    found: Tensor = _PickedLogprobs.apply(logits, targets, places)
    return found


def written_greedily(logits: Tensor, targets: Tensor, places: Tensor) -> Tensor:
    """(P,) whether a token is the one most likely, and alone in that; arguments as for ``picked_logprobs``."""
    top, alone = [], []
    for block in logits.split(_block(logits)):
        highest = block.amax(-1, keepdim=True)
        top.append(highest[:, 0])
        alone.append((block == highest).sum(-1) == 1)
    return (logits[places, targets] == torch.cat(top)[places]) & torch.cat(alone)[places]


class _PickedLogprobs(torch.autograd.Function):  # type: ignore[misc]
    """Rows of logits are normalised a few at a time, so that what is computed of a row stays in a CPU's cache, and no
    second block of logits in float32 is ever made."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, places: Tensor) -> Tensor:
        normalisers = torch.cat([widened(block).logsumexp(-1) for block in logits.split(_block(logits))])  # (M,)
        ctx.save_for_backward(logits, normalisers, targets, places)
        return widened(logits[places, targets]) - normalisers[places]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        # d log p(target) / d logits = 1 at the target − softmax
        logits, normalisers, targets, places = ctx.saved_tensors
        weights = torch.zeros_like(normalisers).index_add_(0, places, gradient)  # (M,)
        found = torch.empty_like(logits)
        size = _block(logits)
        for into, block, normaliser, weight in zip(
            found.split(size), logits.split(size), normalisers.split(size), weights.split(size), strict=True
        ):
            into.copy_((widened(block) - normaliser[:, None]).exp_().mul_(-weight[:, None]))
        return found.index_put_((places, targets), gradient.to(found.dtype), accumulate=True), None, None


def _block(logits: Tensor) -> int:
    """Rows of logits normalised at a time."""
    return 16 if logits.device.type == "cpu" else 4096


def answer_logits(model: Any, rows: Rows) -> Tensor:
    """(N, V) logits at the positions that predict an answer token, row after row.

    The output head is applied there alone: a pre-hook narrows its input. On the first batch of a model class
    that is compared with full logits; where they differ, or there is no such head, all logits are computed.
    """
    return logits_at(model, rows.inputs, rows.predicts, abilities(model, rows).narrows)


def forest_logits(model: Any, forest: Forest, able: Abilities) -> Tensor:
    """(M, V) logits at the nodes of a forest that predict a scored token."""
    return logits_at(model, forest.inputs, forest.where, able.narrows)


def answer_logprobs(model: Any, *parts: Rows) -> list[Tensor]:
    """Log-probability of every answer token, one (B, T-1) tensor per part, 0 where nothing is scored.

    The parts go through the model in one forward pass, as trees where that leaves out enough: rows with one prompt
    share it. Where a model class does not give the same for a tree, rows are padded to the longest.
    """
    rows = parts[0] if len(parts) == 1 else stacked(parts)
    flat = _tree_logprobs(model, rows)  # (N,)
    took("forward passes with gradients" if torch.is_grad_enabled() else "forward passes",
         "padded rows" if flat is None else "trees")  # fmt: skip
    if flat is None:
        flat = picked_logprobs(answer_logits(model, rows), rows.answers)
    logp = flat.new_zeros(rows.scored.shape).masked_scatter(rows.scored, flat)  # (B, T-1)
    split = logp.split([len(part) for part in parts])
    return [found[:, : part.labels.shape[1] - 1] for found, part in zip(split, parts, strict=True)]


def _tree_logprobs(model: Any, rows: Rows) -> Tensor | None:
    """(N,) log-probabilities of answer tokens, row after row; None where rows had better be padded."""
    encoded = rows.encoded
    if not encoded:
        return None
    trees = by_prompt(encoded)
    able = abilities(model, rows)
    longest = max(len(row.ids) for row in encoded)
    if longest > able.longest or sum(map(len, trees)) > (1 - WORTHWHILE) * rows.labels.numel():
        return None
    forest = plant(trees, attention_dtype(model, rows.labels.device), rows.labels.device)
    found = picked_logprobs(forest_logits(model, forest, able), forest.targets, forest.nodes)
    # From the order of trees to that of rows; a row that stands twice is looked up twice.
    places: dict[Encoded, range] = {}
    at = 0
    for tree in trees:
        for row in tree.rows:
            places[row] = range(at, at + row.answer_tokens)
            at += row.answer_tokens
    return found[torch.tensor([place for row in encoded for place in places[row]], device=found.device)]


def sequence_logprob(model: Any, *parts: Rows) -> list[Tensor]:
    """Log-probability of each answer as a whole, in nats: one (B,) tensor per part, at most 0."""
    return [logp.sum(-1) for logp in answer_logprobs(model, *parts)]


def stacked(parts: Sequence[Rows]) -> Rows:
    """Several parts as the rows of one batch, padded to the longest."""
    width = max(part.labels.shape[1] for part in parts)

    def padded(tensor: Tensor, value: int) -> Tensor:
        return torch.nn.functional.pad(tensor, (0, width - tensor.shape[1]), value=value)

    return Rows(
        torch.cat([padded(part.input_ids, 0) for part in parts]),
        torch.cat([padded(part.attention_mask, 0) for part in parts]),
        torch.cat([padded(part.labels, IGNORE) for part in parts]),
        encoded=tuple(row for part in parts for row in part.encoded) if all(part.encoded for part in parts) else (),
    )


def attention_dtype(model: Any, device: torch.device) -> torch.dtype:
    """The type in which a model's attention scores are computed here."""
    found: torch.dtype = (
        torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else model.dtype
    )
    return found


def logits_at(model: Any, inputs: Mapping[str, Tensor], where: Tensor, narrow: bool) -> Tensor:
    """(M, V) logits at the positions where (B, T) is true."""
    if not narrow:
        logits: Tensor = model(**inputs).logits
        return logits[where]

    with head_reads(model, lambda states: states[where].unsqueeze(0)):
        found: Tensor = model(**inputs).logits[0]
        return found


def states_at(model: Any, inputs: Mapping[str, Tensor], where: Tensor) -> Tensor:
    """(M, D) what the output head would read at the positions where (B, T) is true."""
    with withheld(model) as seen:
        model(**inputs)
    return seen[0][where]


# -- what a model class can do; measured once, on the first batch seen ------------------------------------------------


@dataclass(frozen=True)
class Abilities:
    """Whether a model class gives equal logits with a narrowed head, and how long rows may be that trees are made of.

    ``longest`` is 0 for a class that does not give the same for a tree. ``head`` says whether logits are what the
    output head alone makes of the last states, on a CPU.
    """

    narrows: bool
    longest: int
    head: bool = False


_known: dict[tuple[type, str], Abilities] = {}


def abilities(model: Any, rows: Rows) -> Abilities:
    """What this model's class can do, tried out on some rows where that is not known yet."""
    config = getattr(model, "config", None)
    kind = (type(model), str(getattr(config, "_attn_implementation", "")))
    if kind not in _known:
        was = model.training
        model.eval()
        try:
            with torch.no_grad():
                _known[kind] = _measured(model, rows)
        finally:
            model.train(was)
        took("attention", kind[1] or "the model's own")
        took("output head", "at answers alone" if _known[kind].narrows else "at every position")
    found = _known[kind]
    return replace(found, longest=min(found.longest, _window(config))) if found.longest else found


def _window(config: Any) -> int:
    """Tokens that every layer attends to: a mask of our own would let a model see beyond its sliding window."""
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
    slides = any(kind != "full_attention" for kind in kinds)
    return int((getattr(config, "sliding_window", None) or LARGEST) if slides else LARGEST)


def _measured(model: Any, rows: Rows) -> Abilities:
    probe = Rows(rows.input_ids[:2], rows.attention_mask[:2], rows.labels[:2])
    full = logits_at(model, probe.inputs, probe.predicts, narrow=False)
    narrows = getattr(model, "get_output_embeddings", lambda: None)() is not None and same_logits(
        model, full, lambda: logits_at(model, probe.inputs, probe.predicts, narrow=True)
    )
    trees = hasattr(model, "config") and _same_in_trees(model, full.device)
    return Abilities(
        narrows, LARGEST if trees else 0, narrows and _same_by_head(model, probe.inputs, probe.predicts, full)
    )


def _same_by_head(model: Any, inputs: Mapping[str, Tensor], where: Tensor, expected: Tensor) -> bool:
    """Whether the head alone makes these logits, and nothing is done to them afterwards, such as bounding them."""
    head = Head.of(model)
    if head is None or not same_logits(model, expected, lambda: head.logits(states_at(model, inputs, where))):
        return False
    made: list[Tensor] = []
    handle = model.get_output_embeddings().register_forward_hook(lambda _module, _args, out: made.append(out))
    try:
        # To the last bit: what bounds large logits hardly changes the small ones of an untrained model.
        return bool(torch.equal(model(**inputs).logits, made[0]))
    finally:
        handle.remove()


def _same_in_trees(model: Any, device: torch.device) -> bool:
    """Whether two rows that fork, and a short one beside them, have the logits that each has alone."""
    ids = [tuple(token % model.config.vocab_size for token in line) for line in
           ((1, 2, 3, 4, 5, 6, 7, 8), (1, 2, 3, 4, 9, 10, 11, 12), (13, 14, 15))]  # fmt: skip
    forest = plant(by_prompt([Encoded(line, 1) for line in ids]), attention_dtype(model, device), device)
    alone = torch.cat([model(input_ids=torch.tensor([line], device=device)).logits[0, :-1] for line in ids])
    return same_logits(model, alone, lambda: forest_logits(model, forest, Abilities(False, 0))[forest.nodes])


def same_logits(model: Any, expected: Tensor, compute: Callable[[], Tensor]) -> bool:
    """Whether another way to compute logits gives these, up to rounding; a way that fails does not."""
    try:
        logits = compute().float()
    except Exception:  # noqa: BLE001 - any failure means that this class needs the plain path
        return False
    # Half precision rounds differently for another number of rows.
    exact = model.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled(logits.device.type)
    slack = (1e-4 if exact else 5e-2) * float(expected.abs().max())
    return logits.shape == expected.shape and float((logits - expected.float()).abs().max()) <= slack
