"""The engine of a cell: scores rows and writes continuations, with what is known of its models kept in one place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..data.encoder import EncodedRow
from ..domain import ReadText, Sampling
from .batch import TokenBatch, collate
from .budgets import Budgets, Mechanisms
from .decoding import Sampler
from .generation import drawn, greedy
from .gradients import gradient_norms
from .runtime import Runtime
from .scoring import Likelihood, likelihoods, read_texts, token_logprobs


class Engine(Runtime):
    """Scores and generates for all models of one cell, on one device.

    What suits a model is tried out when it is first used, for its precision and device, and held against each row
    alone; a way that does not give a model's own values is not taken. ``counters`` says which ways were.

    Args:
        device: where the models are.
        budgets: sizes that fit the device; those of its kind by default.
        mechanisms: what may be used to be fast; all of it by default.
    """

    @classmethod
    def probe(
        cls,
        model: Any,
        device: torch.device | str = "cpu",
        budgets: Budgets | None = None,
        mechanisms: Mechanisms | None = None,
    ) -> Engine:
        """An engine that has tried out a model's output head."""
        engine = cls(device, budgets, mechanisms)
        engine.capabilities(model)
        return engine

    def score(self, model: Any, rows: Sequence[EncodedRow]) -> list[Likelihood]:
        """The likelihood of every row's answer, in the order given.

        Rows of one prompt share it; equal rows are computed once.
        """
        return likelihoods(self, model, rows)

    def token_logprobs(self, model: Any, rows: Sequence[EncodedRow]) -> list[list[float]]:
        """The log-probability of every scored token of every row, in nats, in the order given."""
        return token_logprobs(self, model, rows)

    def read(self, model: Any, rows: Sequence[EncodedRow]) -> list[ReadText]:
        """What the model makes of every scored token of every row: log-probability, rank one or not, and moments."""
        found: list[ReadText] = read_texts(self, model, rows)
        return found

    def gradient_norms(self, model: Any, rows: Sequence[EncodedRow]) -> list[float]:
        """The norm of the gradient of each row's loss (nats per token) by all weights, in the order given."""
        return gradient_norms(self, model, rows)

    def generate(
        self,
        model: Any,
        prompts: Sequence[tuple[int, ...]],
        max_new_tokens: int,
        eos: Sequence[int],
        begun: Sequence[tuple[int, ...]] = (),
    ) -> list[list[int]]:
        """The argmax continuation of every prompt, token by token, in the order given.

        What all prompts begin with (few-shot examples, an instruction) is computed once. A model that keeps its own
        kind of cache offers ``new_cache()``. Of what a batch wrote, some rows are held against the model run on each
        of them alone; where they differ, rows are written one by one, with the model's own cache or without any.

        Args:
            prompts: token ids, not empty.
            max_new_tokens: cap on each continuation.
            eos: ids that end a continuation; they are not part of what is returned.
            begun: for each prompt the tokens that its continuation is known to begin with
                (``Likelihood.greedy_prefix``); they are not generated again.
        """
        found: list[list[int]] = greedy(self, model, prompts, max_new_tokens, eos, begun)
        return found

    def sample(
        self,
        model: Any,
        prompts: Sequence[tuple[int, ...]],
        max_new_tokens: int,
        eos: Sequence[int],
        sampling: Sampling,
        seed: int,
    ) -> list[list[list[int]]]:
        """Drawn continuations of every prompt, ``sampling.samples`` each, in the order given.

        What is drawn depends on the prompt, the number of the sample and the seed, not on the rows beside it. Arguments
        as for ``generate``.
        """
        sampler = Sampler(sampling.temperature, seed)
        found: list[list[list[int]]] = drawn(self, model, prompts, max_new_tokens, eos, sampling.samples, sampler)
        return found

    def collate(self, rows: Sequence[EncodedRow], length: int = 0) -> TokenBatch:
        """Right-padded rows on the engine's device, which ``answer_logprobs`` takes; see ``collate``."""
        batch = collate(rows, self.device, length)
        batch.runtime = self
        return batch
