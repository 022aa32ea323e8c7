"""Whatever a model does with padding, positions, windows, caches or state: scores, texts and training are those of the
model run on each row alone."""

from __future__ import annotations

import copy
import gc
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from unlearnbench.data.encoder import EncodedRow
from unlearnbench.engine.batch import collate
from unlearnbench.engine.budgets import Budgets
from unlearnbench.engine.engine import Engine
from unlearnbench.engine.logprobs import answer_logprobs
from unlearnbench.engine.rounding import rounded_otherwise
from unlearnbench.methods.whp import Contrast

sys.path.insert(0, str(Path(__file__).parent))
from architectures import ARCHITECTURES, V

MADE = torch.Generator().manual_seed(2)


def ids(count):
    return tuple(torch.randint(4, V - 8, (count,), generator=MADE).tolist())


PROMPT, BEGINNING = ids(20), ids(40)
FAMILY = [EncodedRow((*PROMPT, *ids(30)), 20) for _ in range(7)]
UNLIKE = [EncodedRow(ids(length), min(2, length - 1)) for length in (3, 5, 9, 17, 18, 33, 60)]
FORKED = [EncodedRow((*FAMILY[0].ids[:4], *ids(3)), 4) for _ in range(2)]
PROMPTS = [ids(length) for length in (3, 9, 16, 17, 33, 50)]
AFTER = [(*BEGINNING, *ids(length)) for length in (1, 4, 9, 12)]

# What other ways than generation in batches some architectures need.
# Llama 4 attends in chunks and by temperature, to columns: short rows do not show it.
EITHER = {"llama4-text", "llama4-text-temperature"}
BATCHES = {"rows together", "rows together after a shared beginning"}
ALONE = {"each row alone"}
ANEW = {"each row alone and without a cache"}
GENERATION = {
    **dict.fromkeys(("llama-dynamic", "llama-longrope", "phi3-longrope", "roberta-decoder", "xlnet"), ANEW),
    **dict.fromkeys(("openai-gpt", "mamba", "mamba2", "falcon-mamba", "rwkv",
                     "recurrent-gemma", "minimax", "bart-decoder", "falcon-h1"), ALONE),
}  # fmt: skip


class Model:
    """A model, and itself run on each row alone."""

    def __init__(self, name):
        self.model = ARCHITECTURES[name]()
        # Frequencies that grow with the longest row so far make a model remember what it read.
        self.untouched = copy.deepcopy(self.model) if "dynamic" in name else None

    @torch.no_grad()
    def logits(self, row):
        model = self.model if self.untouched is None else copy.deepcopy(self.untouched)
        return model(input_ids=torch.tensor([row])).logits[0]

    def logprobs(self, row):
        logp = self.logits(row.ids).log_softmax(-1)
        return [float(logp[place - 1, row.ids[place]]) for place in range(max(row.start, 1), len(row.ids))]

    def written(self, prompt, limit, ends):
        line = []
        while len(line) < limit:
            token = int(self.logits((*prompt, *line))[-1].argmax())
            if token in ends:
                break
            line.append(token)
        return line


# One or two of every way that an architecture may need; the others are tests of the slow kind.
QUICK = frozenset(
    "llama gpt2 gpt-neo-window mistral-window gemma2 bloom llama-dynamic mamba opt llama4-text bart-decoder".split()
)


def _marked(name):
    return name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)


@pytest.fixture(params=[_marked(name) for name in sorted(ARCHITECTURES)])
def architecture(request):
    with torch.random.fork_rng():
        return request.param, Model(request.param)


@pytest.mark.filterwarnings("ignore")
def test_an_architecture_scores_writes_and_learns_as_each_row_alone(architecture):
    name, model = architecture
    rows = [*FAMILY, *UNLIKE, *FORKED]
    expected = [model.logprobs(row) for row in rows]
    engine = Engine()
    found = engine.token_logprobs(model.model, rows)
    for mine, others in zip(found, expected, strict=True):
        assert mine == pytest.approx(others, abs=2e-5)

    ends = [V - 1]
    lines = [model.written(prompt, 24, ends) for prompt in PROMPTS]
    assert engine.generate(model.model, PROMPTS, 24, ends) == lines
    assert engine.generate(model.model, AFTER, 12, ends) == [model.written(prompt, 12, ends) for prompt in AFTER]
    # Rows that end early leave a batch that has room for few.
    few = Engine(budgets=Budgets(cached_tokens=300))
    ends = sorted({line[min(4, len(line) - 1)] for line in sorted(lines, key=len)[-2:]})
    assert few.generate(model.model, PROMPTS, 24, ends) == [model.written(prompt, 24, ends) for prompt in PROMPTS]
    taken = {way for some in (engine, few) for way in some.counters.as_dict()["generation"]}
    assert GENERATION[name] <= taken if name in GENERATION else taken <= BATCHES or name in EITHER, "what it needs"

    # RWKV rescales its weights in place where it is not in training mode.
    model.model.train(name == "rwkv")
    for some in (FAMILY, UNLIKE):
        (logp,) = answer_logprobs(model.model, engine.collate(some))
        logp.sum().backward()
        for line, row in zip(logp.detach(), some, strict=True):
            mine = line[max(row.start, 1) - 1 : len(row.ids) - 1].tolist()
            assert mine == pytest.approx(model.logprobs(row), abs=2e-5)


def test_what_is_known_of_a_model_is_of_it_alone():
    """Two models of one class may differ in what suits them; what is known goes with the model."""
    engine = Engine()
    wide, narrow = (ARCHITECTURES[name]() for name in ("gpt-neo-window-20", "gpt-neo-window"))
    for model in (wide, narrow):
        found = engine.token_logprobs(model, FAMILY)
        with torch.no_grad():
            logp = model(input_ids=torch.tensor([FAMILY[0].ids])).logits[0].log_softmax(-1)
        assert found[0] == pytest.approx([float(logp[i - 1, FAMILY[0].ids[i]]) for i in range(20, 50)], abs=2e-5)
    before = len(engine._known)
    del model, wide, narrow
    gc.collect()
    assert len(engine._known) <= before - 2


def test_a_way_is_tried_again_where_rows_go_beyond_what_it_was_tried_on():
    """Short rows say nothing of a window that they do not reach."""
    model = ARCHITECTURES["gpt-neo-window-20"]()
    short = [EncodedRow((*PROMPT[:4], *ids(3)), 4) for _ in range(3)]
    engine = Engine()
    engine.token_logprobs(model, short)
    able = engine.capabilities(model)
    assert able.trees.fits
    assert able.trees.width < 20
    engine.token_logprobs(model, FAMILY)
    assert not able.trees.fits
    assert able.padded.fits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("name", "fits"), [("llama", True), ("gpt-neo-window-20", False)])
def test_rounding_is_told_from_a_way_that_does_not_suit(name, fits, dtype):
    model = ARCHITECTURES[name]().to(dtype)
    engine = Engine()
    engine.token_logprobs(model, [*FAMILY, *UNLIKE])
    able = engine.capabilities(model)
    assert able.trees.fits is fits
    assert able.padded.fits


def sharp(seed):
    """A Llama in half precision with large logits."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = LlamaConfig(vocab_size=V, hidden_size=64, intermediate_size=128, num_hidden_layers=8,
                             num_attention_heads=4, initializer_range=0.3)  # fmt: skip
        return LlamaForCausalLM(config).eval().bfloat16()


@pytest.mark.parametrize("seed", [0, 3])
def test_rows_that_half_precision_rounds_apart_are_still_scored_together(seed):
    """A CPU rounds two equal rows alike, and a padded row otherwise: by more than a fixed few hundredths of a nat."""
    model = sharp(seed)
    engine = Engine()
    engine.token_logprobs(model, [*FAMILY, *UNLIKE])
    assert set(engine.counters.as_dict()["forward passes"]) == {"trees", "padded rows"}


def test_rows_that_change_each_other_are_not_taken_for_rounding():
    """As experts of limited capacity do: that a row beside itself is moved far makes no other row right."""
    model = sharp(0)
    model.model.register_forward_hook(
        lambda _module, _args, out: type(out)(last_hidden_state=out.last_hidden_state * (2 if len(out[0]) > 1 else 1))
    )
    engine = Engine()
    found = engine.token_logprobs(model, UNLIKE)
    assert not engine.capabilities(model).padded.fits
    for line, row in zip(found, UNLIKE, strict=True):
        (alone,) = Engine().token_logprobs(model, [row])
        assert line == pytest.approx(alone, abs=0.05)


def test_a_row_of_one_token_more_than_there_are_positions_is_scored():
    """Its last token predicts nothing; rolling windows of lm-eval are as long."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=V, n_embd=16, n_layer=1, n_head=2, n_positions=12)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GPT2LMHeadModel(config).eval()
    rows = [EncodedRow(ids(13), 1), EncodedRow(ids(13), 5), EncodedRow(ids(4), 1)]
    for row, found in zip(rows, Engine().token_logprobs(model, rows), strict=True):
        with torch.no_grad():
            logp = model(input_ids=torch.tensor([row.ids[:12]])).logits[0].log_softmax(-1)
        expected = [float(logp[place - 1, row.ids[place]]) for place in range(row.start, len(row.ids))]
        assert found == pytest.approx(expected, abs=1e-5)


def test_rows_whose_answers_begin_late_are_scored_and_trained():
    """What a model is first tried on must not depend on where answers begin."""
    config = LlamaConfig(vocab_size=V, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
    rows = [EncodedRow(ids(80), 70), EncodedRow(ids(90), 80)]
    trained = answer_logprobs(model, collate(rows, "cpu"))[0].sum(-1)
    scored = [sum(found) for found in Engine().token_logprobs(copy.deepcopy(model), rows)]
    assert trained.tolist() == pytest.approx(scored, abs=1e-4)


def test_a_state_space_model_is_benchmarked_from_folder_to_record(command, tiny_encoder, tmp_path):
    from transformers import MambaConfig, MambaForCausalLM

    from unlearnbench.training.models import save_checkpoint

    size = len(tiny_encoder.tokenizer)
    config = MambaConfig(vocab_size=size, hidden_size=16, num_hidden_layers=1, state_size=4,
                         eos_token_id=tiny_encoder.tokenizer.eos_token_id, pad_token_id=1, bos_token_id=0)  # fmt: skip
    folder = tmp_path / "mamba"
    save_checkpoint(folder, MambaForCausalLM(config), tiny_encoder.tokenizer)
    words = command.study("-m", "npo", "-b", "tofu-forget05", "--name", "m", "--json", "--limit", "3")
    at = words.index("nano")
    done = command(*words[:at], str(folder), *words[at + 1 :], "--set", "recipe.epochs=1",
                   "--set", f"models.{folder}.prompt_format=plain")  # fmt: skip
    assert done.code == 0, done.err
    ways = {record["identity"]["method"]: record["provenance"]["paths"] for record in done.json["records"]}
    assert sum(ways["npo"]["generation"].values()) == 1
    assert "trees" not in json.dumps(ways["npo"])


class Forgetful(Contrast):
    """A pair whose second model reads the last token alone."""

    def forward(self, input_ids=None, attention_mask=None, past_key_values=None, **inputs):
        first, second = past_key_values or (None, None)
        mask = attention_mask if second is None else torch.ones_like(input_ids)
        logits = self.original(input_ids=input_ids, attention_mask=attention_mask, past_key_values=first).logits.float()
        preferred = self.reinforced(input_ids=input_ids, attention_mask=mask).logits.float()
        return SimpleNamespace(
            logits=logits - self.alpha * torch.relu(preferred - logits), past_key_values=past_key_values
        )


def pair(kind, seed):
    """Two models that hardly differ, in half precision: their difference, five times taken, is rounding in part."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = LlamaConfig(vocab_size=V, hidden_size=64, intermediate_size=128, num_hidden_layers=4,
                             num_attention_heads=4, initializer_range=0.2)  # fmt: skip
        original = LlamaForCausalLM(config).eval().bfloat16()
        reinforced = copy.deepcopy(original)
        for weights in reinforced.parameters():
            weights.data.mul_(1 + 0.01 * torch.randn(weights.shape).bfloat16())
    return kind(original, reinforced, alpha=5.0)


@pytest.mark.parametrize("seed", [3, 5])
def test_what_makes_much_of_rounding_is_still_generated_in_batches(seed):
    engine = Engine()
    engine.generate(pair(Contrast, seed), PROMPTS, 24, [V - 1])
    assert set(engine.counters.as_dict()["generation"]) == {"rows together"}


@pytest.mark.parametrize("seed", [3, 5])
def test_a_wrong_cache_is_told_from_much_rounding(seed):
    engine = Engine()
    engine.generate(pair(Forgetful, seed), PROMPTS, 24, [V - 1])
    assert set(engine.counters.as_dict()["generation"]) == ANEW


def test_rounding_otherwise_leaves_the_model_and_random_numbers_as_they_were():
    model = pair(Contrast, 0)
    row = torch.tensor([PROMPTS[-1]])
    state = torch.get_rng_state()
    with torch.no_grad():
        before = model(row).logits
        with rounded_otherwise(model):
            moved = model(row).logits
        after = model(row).logits
    assert not torch.equal(before, moved)
    assert torch.equal(before, after)
    assert torch.equal(state, torch.get_rng_state())
