"""How much the engine does at a time, and which of its mechanisms it uses. Imports no torch: estimates read it too."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Budgets:
    """Sizes that fill one kind of device and fit into it.

    Args:
        positions: positions in one scoring pass: enough to fill the device, few enough to stay in a CPU's cache.
        logits: elements of one block of logits (scored tokens × vocabulary).
        cached_tokens: tokens in the KV cache of one generated batch (rows × final length) on a CPU.
        cache_bytes: bounds of the bytes that this cache takes on a CPU; within them it takes twice the weights, which
            each step reads once for all rows.
        memory_share: share of a GPU's free memory that one generated batch takes.
        shared_prefix: a shorter beginning that all prompts share is not worth a forward pass of its own.
        turnover: rows leave a batch when this share of it is finished: copying the cache costs about a step.
        row_multiple: matrix products are fastest with whole multiples of so many rows.
        steps: decoding steps between two reads of the written tokens, for each of which the device waits.
        cache_growth: columns added to a cache that is full.
        graph_columns: columns that a recorded CUDA graph writes before the cache is resized.
        graph_steps: for fewer steps a recording gains nothing.
        head_piece: logits that the chunked output head computes at a time on a CPU.
        head_block: its pieces are multiples of so many tokens.
        tree_tokens: tokens of the rows of one prefix tree, and of a row that is put into one.
        packed_nodes: nodes of one sequence of packed trees; attention to masked nodes stays below the cost of padding.
        tree_saving: share of the padded positions that trees must leave out to be used.
    """

    positions: int = 2048
    logits: int = 2**24
    cached_tokens: int = 24576
    cache_bytes: tuple[int, int] = (2**27, 2**30)
    memory_share: float = 0.6
    shared_prefix: int = 32
    turnover: float = 0.25
    row_multiple: int = 8
    steps: int = 1
    cache_growth: int = 64
    graph_columns: int = 64
    graph_steps: int = 4
    head_piece: int = 2**20
    head_block: int = 512
    tree_tokens: int = 1024
    packed_nodes: int = 256
    tree_saving: float = 0.1


CPU = Budgets()
GPU = Budgets(positions=65536, logits=2**30, steps=8)


@dataclass(frozen=True)
class Mechanisms:
    """What the engine may do to be fast; results are the same without any of it.

    Args:
        prefix_trees: rows with one prompt share its forward pass.
        narrowed_head: the output head is applied at answer positions alone.
        chunked_head: on a CPU, the output head runs over pieces of the vocabulary.
        shared_prefix: a beginning that all prompts share is computed and kept once.
        growing_cache: keys and values grow within a block of memory.
        cuda_graph: decoding steps are recorded once and replayed.
    """

    prefix_trees: bool = True
    narrowed_head: bool = True
    chunked_head: bool = True
    shared_prefix: bool = True
    growing_cache: bool = True
    cuda_graph: bool = True
