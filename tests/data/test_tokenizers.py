"""Prompts and answers are what the protocol says, whatever a tokenizer or a chat template would add of its own."""

from __future__ import annotations

import copy
import datetime
import json

import pytest
from tokenizers import Tokenizer, processors
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from unlearnbench.data.encoder import Encoder
from unlearnbench.data.prompts import FORMATS, ChatFormat, prompt_format
from unlearnbench.domain import Example
from unlearnbench.errors import ModelError
from unlearnbench.plugin.specs import ModelSpec
from unlearnbench.training.models import saved_encoder

TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<|turn|>{% endfor %}"
ASKED = "{% if add_generation_prompt %}<bot>{% endif %}"
# As Llama 3's: the date that is given, else today's.
LLAMA_3 = (
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}{{ date_string }}"
)
EXAMPLE = Example(0, "Where was Ada born?", "Ada was born in Rome.")


@pytest.fixture
def tokenizer(tiny_encoder):
    made = copy.deepcopy(tiny_encoder.tokenizer)
    made.add_special_tokens({"bos_token": "<|begin|>", "additional_special_tokens": ["<|turn|>"]})
    return made


def adding(tokenizer, single):
    """The tokenizer with its own idea of special tokens around a text."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<|begin|>", "<|end|>")]
    backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|begin|>", eos_token="<|end|>",
                                   pad_token="<|pad|>")  # fmt: skip


@pytest.mark.parametrize(
    ("single", "bos"),
    [("$A", 0), ("<|begin|> $A", 1), ("$A <|end|>", 0), ("<|begin|> $A <|end|>", 1)],
    ids=["nothing", "BOS", "EOS", "BOS and EOS"],
)
def test_special_tokens_come_from_us_alone(tokenizer, single, bos):
    plain = Encoder(tokenizer, FORMATS["plain"], 200).encode([EXAMPLE])[0]
    encoder = Encoder(adding(tokenizer, single), FORMATS["plain"], 200)
    (row,), (prompt,) = encoder.encode([EXAMPLE]), encoder.prompts([EXAMPLE])
    begin, end = tokenizer.convert_tokens_to_ids(["<|begin|>", "<|end|>"])
    assert row.ids == (begin,) * bos + plain.ids
    assert row.ids[: row.start] == prompt
    assert row.start == plain.start + bos, "the answer's first token is scored"
    assert row.ids.count(end) == 1
    assert encoder.text_ids(["Ada"]) == [(begin,) * bos + tuple(tokenizer("Ada")["input_ids"])]
    chunk = encoder.chunks(["Ada was born in Rome, and writes."], 6)[0]
    assert end not in (*chunk.prompt_ids, *chunk.answer_ids)
    assert chunk.prompt_ids[:bos] == (begin,) * bos


@pytest.mark.parametrize(
    ("single", "complaint"),
    [("<|begin|> <|begin|> $A", "begins with"), ("<|begin|> <|end|> <|begin|> $A", "begins with")],
)
def test_a_tokenizer_that_begins_twice_is_named(tokenizer, single, complaint):
    with pytest.raises(ModelError, match=f"the tokenizer of .*{complaint}.*mend its tokenizer.json"):
        Encoder(adding(tokenizer, single), FORMATS["plain"], 200)


def test_a_chat_template_that_begins_twice_is_named(tokenizer):
    tokenizer.chat_template = "<|begin|><|begin|>" + TURNS + ASKED
    with pytest.raises(ModelError, match="begins a prompt with its BOS twice"):
        Encoder(tokenizer, prompt_format("chat", tokenizer), 200)


def test_a_chat_template_whose_every_turn_begins_with_the_bos_is_taken(tokenizer):
    tokenizer.chat_template = "{% for m in messages %}<|begin|>{{ m.content }}\n{% endfor %}" + "<|begin|>"
    encoder = Encoder(tokenizer, prompt_format("chat", tokenizer), 200)
    assert encoder.prompts([Example(0, "Who?", "")])[0].count(tokenizer.bos_token_id) == 2


def test_a_prompt_that_merges_with_its_answer_is_named(tokenizer):
    class Merging:
        """Ends a prompt otherwise where an answer follows."""

        def __getattr__(self, name):
            return getattr(tokenizer, name)

        def __call__(self, text, **options):
            texts = [text] if isinstance(text, str) else text
            ids = [tokenizer(t.replace("?\nAda", "? Ada"), **options)["input_ids"] for t in texts]
            return {"input_ids": ids[0] if isinstance(text, str) else ids}

    with pytest.raises(ModelError, match="otherwise alone than before its answer"):
        Encoder(Merging(), FORMATS["plain"], 200)


def test_a_template_that_writes_the_date_writes_one_that_is_given(tokenizer, monkeypatch):
    class Later(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 5, 4)

    prompts = {}
    for template in (LLAMA_3 + TURNS + ASKED, "{{ strftime_now('%Y-%m-%d') }}" + TURNS + ASKED):
        tokenizer.chat_template = template
        style = prompt_format("chat", tokenizer, {"date": "2025-04-10"})
        assert style.writes_date(tokenizer)
        prompts[template] = style.prompt("Who?", tokenizer)
        with monkeypatch.context() as patched:
            patched.setattr(chat_template_utils, "datetime", Later)
            assert style.prompt("Who?", tokenizer) == prompts[template], "the same on another day"
            assert "2031" in str(tokenizer.apply_chat_template([{"role": "user", "content": ""}], tokenize=False))
    assert [text[:11] for text in prompts.values()] == ["10 Apr 2025", "2025-04-10<"]
    tokenizer.chat_template = TURNS + ASKED
    assert not prompt_format("chat", tokenizer).writes_date(tokenizer)


def test_a_tokenizer_that_asks_the_clock_itself_is_refused(tokenizer):
    import types

    module = types.ModuleType("clocked")
    module.datetime = datetime.datetime
    exec(  # a model repository's own code
        "class Clocked:\n"
        "    name_or_path = 'acme/clocked'\n"
        "    def __init__(self, inner): self.inner = inner\n"
        "    def __getattr__(self, name): return getattr(self.inner, name)\n"
        "    def apply_chat_template(self, turns, **options):\n"
        "        return datetime.now().strftime('%Y') + self.inner.apply_chat_template(turns, **options)\n",
        vars(module),
    )
    module.Clocked.__module__ = "clocked"
    import sys

    sys.modules["clocked"] = module
    tokenizer.chat_template = TURNS + ASKED
    try:
        with pytest.raises(ModelError, match="'acme/clocked' writes what the machine's clock says"):
            prompt_format("chat", tokenizer).writes_date(module.Clocked(tokenizer))
    finally:
        del sys.modules["clocked"]


def test_settings_of_a_chat_template_reach_it(tokenizer):
    tokenizer.chat_template = "{% if enable_thinking %}<think>{% endif %}" + TURNS + ASKED
    style = ChatFormat("chat", "", "", system_prompt="Be brief.")
    assert style.prompt("Who?", tokenizer) == "<system>Be brief.<|turn|><user>Who?<|turn|><bot>"
    thinking = ChatFormat("chat", "", "", enable_thinking=True)
    assert thinking.prompt("Who?", tokenizer).startswith("<think><user>")
    tokenizer.chat_template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    with pytest.raises(ModelError, match=r"cannot be rendered .*no system.*; set system_prompt to an empty text"):
        style.prompt("Who?", tokenizer)


@pytest.fixture
def saved(tokenizer, tmp_path):
    """A model whose generation ends at the end of a turn, too."""
    tokenizer.chat_template = TURNS + ASKED
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                         num_attention_heads=2, bos_token_id=None, eos_token_id=2)  # fmt: skip
    model = LlamaForCausalLM(config)
    turn = tokenizer.convert_tokens_to_ids("<|turn|>")
    model.generation_config = GenerationConfig(eos_token_id=[tokenizer.eos_token_id, turn, 7])
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path, turn


def test_the_model_s_own_ends_end_a_text_and_a_turn_s_end_is_scored(saved, tokenizer):
    folder, turn = saved
    encoder = saved_encoder(ModelSpec("m", "", prompt_format="chat"), str(folder))
    assert set(encoder.ends) == {tokenizer.eos_token_id, turn}
    (row,) = encoder.encode([EXAMPLE])
    assert row.ids[-1] == encoder.end == turn
    # A word of the vocabulary, as a configuration's default often is, ends nothing.
    assert any("token 7" in note for note in encoder.notes)
    plain = saved_encoder(ModelSpec("m", "", prompt_format="plain"), str(folder))
    assert plain.encode([EXAMPLE])[0].ids[-1] == tokenizer.eos_token_id
    assert set(plain.ends) == set(encoder.ends)


def test_without_a_generation_config_the_model_s_configuration_is_asked(saved, tokenizer):
    folder, turn = saved
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": turn}))
    encoder = saved_encoder(ModelSpec("m", "", prompt_format="chat"), str(folder))
    assert set(encoder.ends) == {tokenizer.eos_token_id, turn}


def test_a_token_without_an_embedding_is_named(saved):
    folder, _ = saved
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 100}))
    with pytest.raises(ModelError, match=r"writes token \d+ \(.*embeddings of 100 tokens: they do not belong together"):
        saved_encoder(ModelSpec("m", "", prompt_format="plain"), str(folder))


def test_published_checkpoints_are_asked_as_they_were_trained():
    """configs/model/Llama-3.2-1B-Instruct.yaml of open-unlearning: its system prompt and its date."""
    from unlearnbench.running.builtin import unlearnbench_models

    (spec,) = (spec for spec in unlearnbench_models() if spec.name == "llama3.2-1b")
    assert (spec.system_prompt, spec.template_date) == ("You are a helpful assistant.", "2025-04-10")
