"""Trees hold every distinct beginning of their rows once, and every node sees its ancestors alone."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from unlearnbench.data.encoder import EncodedRow
from unlearnbench.engine.prefix_tree import build_prefix_tree, pack_sequences, pack_trees, trees_by_prompt

ROWS = st.lists(
    st.tuples(st.lists(st.integers(1, 3), min_size=1, max_size=8).map(tuple), st.integers(0, 8)).map(
        lambda pair: EncodedRow(pair[0], min(pair[1], len(pair[0])))
    ),
    min_size=1,
    max_size=12,
)


@given(ROWS)
def test_a_tree_has_one_node_for_each_distinct_beginning(rows):
    tree = build_prefix_tree(rows)
    beginnings = {row.ids[:length] for row in rows for length in range(1, len(row.ids))}
    assert len(tree) == len(beginnings)
    for row, nodes in zip(tree.rows, tree.predicts, strict=True):
        assert len(nodes) == row.answer_tokens
        assert [tree.depths[node] for node in nodes] == list(range(max(row.start, 1) - 1, len(row.ids) - 1))


@given(ROWS)
def test_a_node_sees_its_own_row_up_to_itself(rows):
    groups = [tree for tree in trees_by_prompt(rows, 1024) if len(tree)]
    if not groups:
        return
    forest = pack_trees(groups, torch.float32, "cpu", 256)
    sees = forest.attention_mask[:, 0] == 0
    flat = forest.where
    at = 0
    for tree in groups:
        for row in tree.rows:
            for place in range(max(row.start, 1), len(row.ids)):
                sequence, node = divmod(int(flat[forest.nodes[at]]), forest.input_ids.shape[1])
                seen = sees[sequence, node].nonzero().flatten()
                order = forest.position_ids[sequence, seen].argsort()
                assert forest.input_ids[sequence, seen][order].tolist() == list(row.ids[:place])
                assert forest.position_ids[sequence, seen].sort().values.tolist() == list(range(place))
                assert int(forest.targets[at]) == row.ids[place]
                at += 1
    assert at == len(forest.targets)


@given(ROWS, st.integers(4, 20))
def test_every_row_is_in_one_tree_of_its_prompt(rows, largest):
    groups = trees_by_prompt(rows, largest)
    assert sorted((row.ids, row.start) for tree in groups for row in tree.rows) == sorted(
        (row.ids, row.start) for row in rows
    )
    for tree in groups:
        assert len({row.ids[: row.start] for row in tree.rows}) == 1
        assert len(tree.rows) == 1 or sum(len(row.ids) for row in tree.rows) <= largest


@given(ROWS, st.integers(1, 30))
def test_sequences_hold_every_tree_once(rows, length):
    groups = trees_by_prompt(rows, 1024)
    found = pack_sequences(groups, length)
    assert sorted(place for group in found for place in group) == list(range(len(groups)))
    for group in found:
        assert len(group) == 1 or sum(len(groups[place]) for place in group) <= length
