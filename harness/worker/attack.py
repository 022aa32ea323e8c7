"""What an attacked cell does in place of measuring: from which weights, and by which questions."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ..contracts import Attack, Attackable, AttackData, Benchmark, Context, Task, derived_seed
from ..data.encoder import EncodedRow, Encoder
from ..domain import Measurement, Question, Sampling
from ..engine.engine import Engine
from ..engine.scoring import Likelihood
from ..errors import NotApplicable, PluginError
from ..plugin.specs import resolve
from ..records.node_spec import CellSpec, PlannedAttack
from ..records.record import AttackFacts
from ..records.run_folder import LEFT
from ..records.tries import TRY
from ..training import models
from .stage_meter import StageMeter

TEXT_TOKENS = 128
"""Tokens of a chunk of other text."""


# -- from which weights ------------------------------------------------------------------------------------------------


def leave_model(folder: Path, model: Any, encoder: Encoder) -> None:
    """Keep the weights for the cells that attack this one; a model that is not one of transformers' is made again."""
    shutil.rmtree(folder / LEFT, ignore_errors=True)
    # A saved model of another class may not load again as what it is.
    if type(model).__module__.startswith("transformers."):
        models.save_checkpoint(folder / LEFT, model, encoder.tokenizer)


def left_model(folder: Path, spec: CellSpec, device: torch.device) -> Any:
    """The weights that the cell without the attack left; None where they must be made again."""
    left = folder.parent / spec.plain / LEFT
    if not left.is_dir():
        return None
    return models.load_checkpoint(str(left), spec.model.spec, device=device)


def checked_model(model: Any, plugin: str, verb: str, vocabulary: int) -> Any:
    """What a plugin's verb returned, if it is a model that can be measured.

    Raises:
        PluginError: it is none, or has another vocabulary.
        Diverged: a weight is not finite.
    """
    if model is None:
        raise PluginError(plugin, f"{verb} returned None; return the model")
    if not callable(getattr(model, "named_parameters", None)):
        raise PluginError(plugin, f"{verb} returned {type(model).__name__}, expected a model")
    models.check_finite(model)
    if model.get_input_embeddings().num_embeddings != vocabulary:
        raise PluginError(plugin, f"{verb} changed the size of the vocabulary")
    return model


# -- by which questions ------------------------------------------------------------------------------------------------


def measure_attacked(
    spec: CellSpec,
    planned: PlannedAttack,
    model: Any,
    benchmark: Benchmark,
    task: Task,
    ctx: Context,
    meter: StageMeter,
) -> tuple[Measurement, AttackFacts, Context]:
    """Attack the model, and measure what concerns the forget set; every row has the number of its try.

    Raises:
        NotApplicable: the benchmark offers nothing to attack, or too little is left to ask.
        PluginError: the attack returns something else than it promises.
    """
    if not isinstance(benchmark, Attackable):
        raise NotApplicable(f"{spec.benchmark.name} offers no questions to attack (forget_questions, asking)")
    name = planned.qualified
    # The method has no part in the seed: all models of a table meet the same attack. Rows that are handed out are the
    # same for all seeds, so that means over seeds are of the same questions.
    seed = derived_seed(spec.seed, "attack", planned.name, spec.benchmark.name, spec.model.name)
    rows_seed = derived_seed(0, "attack", planned.name, spec.benchmark.name)
    ctx = Context(planned.name, seed, ctx.engine, ctx.log, autocast=ctx.autocast, optimiser=ctx.optimiser)
    attack: Attack = resolve(planned.target, name)(**planned.hyperparameters)
    data = _data(planned, task, rows_seed)
    with meter("attack"):
        vocabulary = model.get_input_embeddings().num_embeddings
        attacked = checked_model(attack.change(model, data, ctx), name, "change", vocabulary).eval()
        every = benchmark.forget_questions(task)
        tries = list(_tries(attack, name, every, data, ctx))
        # Rows may be drawn by either verb, so that what they tell is known only now.
        drawn = data.drawn.get("forget", ())
        asked = {_place(question) for question in every if not any(question.about(row) for row in drawn)}
        if not asked:
            raise NotApplicable("every question is about a row that the attack was given")
        tries = [kept for each in tries if (kept := [question for question in each if _place(question) in asked])]
    rows: list[dict[str, Any]] = []
    with meter("measure"):
        for put in tries:
            for measured in _measured(attack.sampling, benchmark, benchmark.asking(task, put), attacked, ctx):
                number = int(rows[-1][TRY]) + 1 if rows else 0
                rows += [{**row, TRY: number} for row in measured.rows]
    given = {part: len(drawn) for part, drawn in data.drawn.items()}
    facts = AttackFacts(
        name=planned.name,
        qualified=name,
        hyperparameters=planned.hyperparameters,
        requires=planned.requires,
        given=given,
        questions=len(asked),
        tries=int(rows[-1][TRY]) + 1,
    )
    return Measurement(tuple(rows)), facts, ctx


def _data(planned: PlannedAttack, task: Task, seed: int) -> AttackData:
    from importlib.resources import files

    text = files("unlearnbench.data").joinpath("other_text.txt").read_text(encoding="utf-8")
    encoder = task.encoder
    chunks = encoder.chunks(text.split("\n\n"), encoder.chunk_size(TEXT_TOKENS)) if planned.requires.text else []
    return AttackData(planned.name, planned.requires, encoder, task.forget, task.retain, chunks, seed)


def _place(question: Question) -> tuple[str, int]:
    return question.part, question.index


def _tries(
    attack: Attack, name: str, questions: Sequence[Question], data: AttackData, ctx: Context
) -> Iterator[list[Question]]:
    """The questions in the words of each try; one with fewer words than others is left out of later tries.

    Texts that are read and not asked are part of the first try.
    """
    words = {
        _place(question): [question.prompt] if question.fixed else prompts_of(attack, name, question, data, ctx)
        for question in questions
    }
    for number in range(max(map(len, words.values()))):
        yield [question.put(own[number]) for question in questions if number < len(own := words[_place(question)])]


def prompts_of(attack: Attack, name: str, question: Question, data: AttackData, ctx: Context) -> list[str]:
    """The prompts by which an attack asks a question. Raises PluginError where ``put`` returns no list of texts."""
    prompts: Any = attack.put(question, data, ctx)
    if isinstance(prompts, str) or not isinstance(prompts, Sequence) or not prompts:
        raise PluginError(name, f"put returned {prompts!r:.80}; return a list of prompts")
    wrong = [text for text in prompts if not isinstance(text, str)]
    if wrong:
        raise PluginError(name, f"put returned {wrong[0]!r:.80} among its prompts, which are texts")
    return list(prompts)


def _measured(
    sampling: Sampling | None, benchmark: Benchmark, task: Task, model: Any, ctx: Context
) -> Iterator[Measurement]:
    """The measurement, or one for each of the answers that are drawn."""
    if sampling is None:
        yield benchmark.measure(model, task, ctx)
        return
    engine = _SamplingEngine(ctx.engine, sampling, ctx.seed)
    drawing = Context("sample", ctx.seed, engine, ctx.log, autocast=ctx.autocast)
    for engine.turn in range(sampling.samples):
        yield benchmark.measure(model, task, drawing)


class _SamplingEngine(Engine):
    """An engine that writes drawn answers: those of number ``turn``, of all that were drawn at the first call.

    Likelihoods do not depend on what is drawn, and are computed once.
    """

    def __init__(self, engine: Engine, sampling: Sampling, seed: int) -> None:
        super().__init__(engine.device, engine.budgets, engine.mechanisms)
        self.counters = engine.counters
        self._sampling, self._seed = sampling, seed
        self._drawn: dict[Any, list[list[list[int]]]] = {}
        self._scored: dict[Any, list[Likelihood]] = {}
        self._tokens: dict[Any, list[list[float]]] = {}
        self.turn = 0

    def score(self, model: Any, rows: Sequence[EncodedRow]) -> list[Likelihood]:
        key = tuple(rows)
        if key not in self._scored:
            self._scored[key] = super().score(model, rows)
        return self._scored[key]

    def token_logprobs(self, model: Any, rows: Sequence[EncodedRow]) -> list[list[float]]:
        key = tuple(rows)
        if key not in self._tokens:
            self._tokens[key] = super().token_logprobs(model, rows)
        return self._tokens[key]

    def generate(
        self,
        model: Any,
        prompts: Sequence[tuple[int, ...]],
        max_new_tokens: int,
        eos: Sequence[int],
        begun: Sequence[tuple[int, ...]] = (),
    ) -> list[list[int]]:
        key = (tuple(prompts), max_new_tokens, tuple(eos))
        if key not in self._drawn:
            self._drawn[key] = self.sample(model, prompts, max_new_tokens, eos, self._sampling, self._seed)
        return [answers[self.turn] for answers in self._drawn[key]]
