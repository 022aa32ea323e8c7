"""A model that answers through another is scored and generates as the definition says, alone and together."""

from __future__ import annotations

import pytest
import torch

from unlearnbench import Engine, Example, Wrapper


class Prompted(Wrapper):
    """Reads two tokens before every row."""

    def logits(self, input_ids, attention_mask):
        before = torch.tensor([[7, 11]]).expand(len(input_ids), -1)
        mask = torch.cat([torch.ones_like(before), attention_mask], dim=1)
        return super().logits(torch.cat([before, input_ids], dim=1), mask)[:, 2:]


@pytest.fixture
def rows(tiny_encoder):
    words = ["Where was Ada born?", "What does Bo write about the sea?", "Where?", "What does Ada write?"]
    return [Example(n, text, "Ada was born in Rome." if n % 2 else "Bo.") for n, text in enumerate(words)]


def by_hand(model, ids, count):
    """What greedy decoding writes with a pass over the whole row for every token."""
    line = []
    for _ in range(count):
        whole = torch.tensor([[7, 11, *ids, *line]])
        line.append(int(model(input_ids=whole).logits[0, -1].argmax()))
    return line


def test_rows_are_generated_together_as_each_would_be_by_hand(tiny_model, tiny_encoder, rows):
    engine = Engine()
    prompts = tiny_encoder.prompts(rows)
    written = engine.generate(Prompted(tiny_model), prompts, 5, [])
    assert written == [by_hand(tiny_model, ids, 5) for ids in prompts]
    assert engine.counters.as_dict()["generation"] == {"rows together": 1}


def test_answers_are_scored_as_after_the_prompt_by_hand(tiny_model, tiny_encoder, rows):
    encoded = tiny_encoder.encode(rows)
    for row, found in zip(encoded, Engine().score(Prompted(tiny_model), encoded), strict=True):
        logits = tiny_model(input_ids=torch.tensor([[7, 11, *row.ids]])).logits[0].detach().log_softmax(-1)
        places = range(row.start, len(row.ids))
        nll = -sum(float(logits[place + 1, row.ids[place]]) for place in places)
        assert found.nll == pytest.approx(nll, rel=1e-6)


def test_a_wrapper_that_changes_nothing_is_the_model(tiny_model, tiny_encoder, rows):
    engine, prompts, encoded = Engine(), tiny_encoder.prompts(rows), tiny_encoder.encode(rows)
    assert engine.generate(Wrapper(tiny_model), prompts, 6, []) == Engine().generate(tiny_model, prompts, 6, [])
    for one, other in zip(engine.score(Wrapper(tiny_model), encoded), Engine().score(tiny_model, encoded), strict=True):
        assert one.nll == pytest.approx(other.nll, rel=1e-6)
