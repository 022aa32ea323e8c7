"""What a record says of the ways in which the engine did its work."""

from __future__ import annotations

import pytest
import torch

from unlearnbench.data.encoder import EncodedRow
from unlearnbench.engine.counters import Counters
from unlearnbench.engine.engine import Engine
from unlearnbench.engine.memory import in_pieces
from unlearnbench.records.record import read_record


@pytest.mark.parametrize(
    ("rows", "way"),
    [([(1, 2, 3, 4), (1, 2, 5)], "trees"), ([(1, 2, 3), (4, 5, 6)], "padded rows")],
    ids=["of one prompt", "of prompts of their own"],
)
def test_scoring_says_whether_rows_shared_their_prompt(tiny_model, rows, way):
    engine = Engine()
    engine.score(tiny_model, [EncodedRow(row, 2) for row in rows])
    assert engine.counters.as_dict()["forward passes"] == {way: 1}


def test_work_cut_for_lack_of_memory_says_into_how_many_pieces():
    def attempt(pieces):
        if pieces < 4:
            raise torch.OutOfMemoryError("too large")
        return pieces

    counters = Counters()
    assert in_pieces(attempt, counters) == 4
    assert in_pieces(lambda pieces: pieces, counters) == 1
    assert counters.as_dict() == {"lack of memory": {"4 pieces": 1}}


def test_a_record_says_which_ways_its_cell_took(small_run):
    record = read_record(next(small_run[0].glob("cells/npo--*/record.json")))
    found = record.provenance["paths"]
    assert found["attention"] == {"sdpa": 1}
    assert found["output head"] == {"at answers alone": 1}
    assert found["forward passes"]["trees"] > 0
    assert sum(found["forward passes with gradients"].values()) >= record.cost.optimiser_steps
    # Before it is trained, the original model's log-probabilities are scored too.
    assert found["logits of a scoring pass"] == {"in pieces of the vocabulary": 2}
    assert found["generation"] == {"rows together": 1}
