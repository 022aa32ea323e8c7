"""Rows as trees: what answers to one prompt begin with alike goes through the model once, and nothing is padding.

A benchmark asks for the likelihood of several answers to each question, which often differ in their last words alone,
and methods set a refusal against the forget answer to the same prompt. Every distinct beginning of such rows is one
node of a tree; a node attends to its ancestors alone, which a mask says, and stands at the position it has in its
rows. Trees that attend to nothing of each other lie side by side in one sequence, so that short ones are not padded.
The last token of a row predicts nothing and is no node.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor

from ..data.encoder import EncodedRow
from .batch import placed


@dataclass(frozen=True)
class Segment:
    """Nodes from ``begin`` to ``end`` that follow one another, and the nodes on the way to them from the root."""

    begin: int
    end: int
    ancestors: tuple[int, ...]


@dataclass(frozen=True)
class PrefixTree:
    """Rows that begin alike. ``predicts`` has for each of them the nodes that predict its scored tokens, in order."""

    rows: tuple[EncodedRow, ...]
    ids: tuple[int, ...]
    depths: tuple[int, ...]
    segments: tuple[Segment, ...]
    predicts: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def scored(self) -> int:
        """Nodes at which logits are needed."""
        return len({node for nodes in self.predicts for node in nodes})

    @property
    def farthest(self) -> EncodedRow:
        """The row whose own nodes stand behind those of all others, farthest from what they share."""
        return max(self.rows, key=lambda row: row.ids)


def build_prefix_tree(rows: Sequence[EncodedRow]) -> PrefixTree:
    """The tree of rows, which need not begin alike; in token order, so that equal beginnings are neighbours."""
    ids: list[int] = []
    depths: list[int] = []
    segments: list[Segment] = []
    predicts: dict[EncodedRow, tuple[int, ...]] = {}
    previous: tuple[int, ...] = ()
    path: list[int] = []
    for row in sorted(set(rows), key=lambda row: row.ids):
        read = row.ids[:-1]
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(previous, read, strict=False)))
        begin, end = len(ids), len(ids) + len(read) - shared
        if begin < end:
            segments.append(Segment(begin, end, tuple(path[:shared])))
        path = [*path[:shared], *range(begin, end)]
        ids += read[shared:]
        depths += range(shared, len(read))
        previous = read
        predicts[row] = tuple(path[max(row.start, 1) - 1 :])
    return PrefixTree(tuple(rows), tuple(ids), tuple(depths), tuple(segments), tuple(predicts[row] for row in rows))


def trees_by_prompt(rows: Sequence[EncodedRow], most: int) -> list[PrefixTree]:
    """A tree for each distinct prompt, or several where its rows have more than ``most`` tokens.

    Running text has no prompt: each of its rows is a tree by itself.
    """
    groups: dict[tuple[int, ...] | EncodedRow, list[EncodedRow]] = {}
    for row in rows:
        groups.setdefault(row.ids[: row.start] or row, []).append(row)
    return [build_prefix_tree(part) for group in groups.values() for part in _split(group, most)]


def _split(group: list[EncodedRow], most: int) -> Iterator[list[EncodedRow]]:
    """The group in parts of at most ``most`` tokens; rows that begin alike stay together."""
    if sum(len(row.ids) for row in group) <= most:
        yield group
        return
    part: list[EncodedRow] = []
    for row in sorted(group, key=lambda row: row.ids):
        if part and sum(len(other.ids) for other in part) + len(row.ids) > most:
            yield part
            part = []
        part.append(row)
    yield part


@dataclass(frozen=True)
class PackedBatch:
    """Trees in sequences of equal length, as tensors.

    ``input_ids`` and ``position_ids`` are (B, N), ``attention_mask`` (B, 1, N, N), to be added to attention scores;
    ``where`` (M,) are the places b·N + n of the nodes whose logits are needed. For every scored token, tree after tree
    and row after row, ``nodes`` (P,) is the place of its logits among the M, and ``targets`` (P,) its id.
    """

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor
    where: Tensor
    nodes: Tensor
    targets: Tensor

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What the model is called with."""
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask, "position_ids": self.position_ids}


def pack_sequences(trees: Sequence[PrefixTree], length: int) -> list[list[int]]:
    """Places of trees, grouped so that no sequence is longer than ``length`` nodes or its only tree (first fit)."""
    bins: list[list[int]] = []
    room: list[int] = []
    for place in sorted(range(len(trees)), key=lambda place: -len(trees[place])):
        size = len(trees[place])
        found = next((i for i, left in enumerate(room) if left >= size), None)
        if found is None:
            bins.append([place])
            room.append(length - size)
        else:
            bins[found].append(place)
            room[found] -= size
    return bins


def pack_trees(trees: Sequence[PrefixTree], dtype: torch.dtype, device: torch.device | str, nodes: int) -> PackedBatch:
    """The trees as one batch.

    Args:
        dtype: the type of the model's attention scores, which the mask is added to.
        nodes: nodes of one sequence, where its trees are smaller.
    """
    longest = max(len(tree) for tree in trees)
    groups = pack_sequences(trees, max(longest, min(nodes, sum(map(len, trees)))))
    width = max(sum(len(trees[place]) for place in group) for group in groups)
    ids = torch.zeros((len(groups), width), dtype=torch.long)
    positions = torch.zeros_like(ids)
    # A padded node attends to itself: a softmax over nothing is not a number.
    allowed = torch.eye(width, dtype=torch.bool).repeat(len(groups), 1, 1)
    offsets = [0] * len(trees)
    for number, group in enumerate(groups):
        begin = 0
        for place in group:
            tree = trees[place]
            end = begin + len(tree)
            ids[number, begin:end] = torch.tensor(tree.ids)
            positions[number, begin:end] = torch.tensor(tree.depths)
            _allow_ancestors(allowed[number, begin:end, begin:end], tree)
            offsets[place] = number * width + begin
            begin = end
    where, nodes_of_logits = _predicting_nodes(trees, offsets)
    targets = torch.tensor([token for tree in trees for row in tree.rows for token in row.scored_ids], dtype=torch.long)
    parts = (ids, positions, where, nodes_of_logits, targets)
    ids, positions, where, nodes_of_logits, targets = (placed(part, device) for part in parts)
    return PackedBatch(ids, positions, _additive(allowed, dtype, device), where, nodes_of_logits, targets)


def _allow_ancestors(allowed: Tensor, tree: PrefixTree) -> None:
    """Let every node of a tree attend to itself and its ancestors: (N, N) of its own nodes, changed in place."""
    for segment in tree.segments:
        size = segment.end - segment.begin
        own = allowed[segment.begin : segment.end]
        own[:, segment.begin : segment.end] |= torch.ones((size, size), dtype=torch.bool).tril()
        if segment.ancestors:
            own[:, torch.tensor(segment.ancestors)] = True


def _predicting_nodes(trees: Sequence[PrefixTree], offsets: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(M,) the nodes whose logits are needed, and for every scored token the place of its logits among these."""
    flat = [offsets[place] + node for place, tree in enumerate(trees) for nodes in tree.predicts for node in nodes]
    distinct, places = torch.unique(torch.tensor(flat, dtype=torch.long), return_inverse=True)
    return distinct, places


def _additive(allowed: Tensor, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """(B, N, N) of what may be attended to → (B, 1, N, N) that attention adds to its scores."""
    mask = torch.zeros(allowed.shape, dtype=dtype, device=device)
    return mask.masked_fill_(~placed(allowed, device), torch.finfo(dtype).min)[:, None]
