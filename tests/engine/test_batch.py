from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unlearnbench.data.encoder import EncodedRow, Encoder
from unlearnbench.data.prompts import FORMATS, prompt_format
from unlearnbench.domain import IGNORE, Example
from unlearnbench.engine.batch import budget_batches, collate
from unlearnbench.errors import ModelError, UnknownName, UsageError


def test_labels_are_the_answer_and_the_end(tiny_encoder):
    example = Example(0, "Where was Ada born?", "Ada was born in Rome.")
    (row,) = tiny_encoder.encode([example])
    answer = tiny_encoder.tokenizer.decode(row.ids[row.start : -1])
    assert answer == "Ada was born in Rome."
    assert row.ids[-1] == tiny_encoder.tokenizer.eos_token_id
    rows = collate([row], "cpu", length=60)
    assert (rows.labels != IGNORE).sum() == row.answer_tokens == len(row.ids) - row.start
    assert rows.answers.tolist() == list(row.ids[row.start :])


def test_the_published_prompt_formats(tiny_encoder):
    tokenizer = tiny_encoder.tokenizer
    assert FORMATS["llama2"].prompt("Q", tokenizer) == "[INST] Q [/INST]"
    # The literal "Answer: " belongs to the answer's tokens.
    style = FORMATS["question-answer"]
    assert (style.prompt("Q", tokenizer), style.answer) == ("Question: Q\n", "Answer: ")
    (row,) = Encoder(tokenizer, style, 100).encode([Example(0, "Q", "yes")])
    assert tokenizer.decode(row.ids[row.start :], skip_special_tokens=True) == "Answer: yes"


def test_a_chat_template_is_used_where_there_is_one(tiny_encoder):
    import copy

    tokenizer = copy.deepcopy(tiny_encoder.tokenizer)
    assert prompt_format("auto", tokenizer).name == "question-answer"
    with pytest.raises(ModelError, match="chat template"):
        prompt_format("chat", tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
    )
    style = prompt_format("auto", tokenizer)
    assert style.prompt("Who?", tokenizer) == "<user>Who?<bot>"
    assert style.special_tokens is False
    with pytest.raises(UnknownName, match="did you mean 'llama2'"):
        prompt_format("lama2", tokenizer)


def test_a_row_longer_than_the_context_is_refused_not_cut(tiny_encoder):
    short = Encoder(tiny_encoder.tokenizer, tiny_encoder.style, 8)
    with pytest.raises(UsageError, match=r"row 7 .* context is 8"):
        short.encode([Example(7, "Where was Ada born?", "Ada was born in Rome, as far as anybody knows.")])


def test_an_empty_answer_still_has_its_end(tiny_encoder):
    (row,) = tiny_encoder.encode([Example(0, "Where?", "")])
    assert row.answer_tokens == 1


def test_the_first_token_of_a_sequence_is_never_scored():
    rows = collate([EncodedRow((5, 6, 7), 0)], "cpu")
    assert rows.labels.tolist() == [[IGNORE, 6, 7]]


@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(0, 30)), max_size=80), st.integers(1, 300), st.integers(1, 90)
)
def test_batches_hold_every_row_once_within_both_budgets(sizes, tokens, scored):
    batches = list(budget_batches(sizes, (tokens, scored)))
    assert sorted(place for batch in batches for place in batch) == list(range(len(sizes)))
    for batch in batches:
        within = (max(sizes[place][0] for place in batch) * len(batch) <= tokens
                  and sum(sizes[place][1] for place in batch) <= scored)  # fmt: skip
        assert len(batch) == 1 or within


def test_attention_covers_tokens_and_not_padding():
    rows = collate([EncodedRow((5, 6, 7), 1), EncodedRow((8, 9), 1)], "cpu")
    assert rows.attention_mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert torch.equal(rows.scored, torch.tensor([[True, True], [True, False]]))
