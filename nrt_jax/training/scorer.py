"""A step's rewards that are made of text: the format, a verifier's score, and a judge's."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from nrt_jax import parallel
from nrt_jax.data.encode import Encoded
from nrt_jax.models import Params, lora
from nrt_jax.rewards import Judge
from nrt_jax.training.config import TrainConfig
from nrt_jax.training.state import TrainState

if TYPE_CHECKING:
    from nrt_jax.training.setup import Setup


class Scorer:
    """Scores what was sampled for some rows, as `collect` asks it.

    Attributes:
        metrics: What there is to say of the judge once it has judged, over the completions of all processes:
            `judge_unparseable`, the share of its thoughts that gave no verdict; and `judge_accuracy`, the share of its
            answered completions on which it agrees with the verifier.
    """

    def __init__(self, config: TrainConfig, setup: "Setup", rows: Sequence[Encoded], judge: Judge | None):
        """`rows` are the questions of the step, `judge` who judges their answers, if anyone does."""
        self.config, self.setup, self.rows, self.judge = config, setup, rows, judge
        self.metrics: dict[str, float] = {}

    @classmethod
    def of(
        cls, config: TrainConfig, setup: "Setup", rows: Sequence[Encoded], copies: Sequence[Params], state: TrainState
    ) -> "Scorer | None":
        """The scorer of a step, given copies of the policy and its state; None where no reward is made of text."""
        weights = config.reward
        if not (weights.format or weights.verifiable or weights.judge):
            return None
        return cls(config, setup, rows, _judge_of(config, setup, copies, state) if weights.judge else None)

    def __call__(self, tokens: np.ndarray, lengths: np.ndarray) -> dict[str, np.ndarray]:
        """Rewards [P, K] by name, of tokens [P, K, Z] of which `lengths` [P, K] were sampled."""
        rules, weights = self.setup.rules, self.config.reward
        names = [name for name in ("format", "verifiable") if getattr(weights, name)]
        scores = rules.score(self.rows, tokens, lengths, names, has_answers=weights.samples_answer) if names else {}
        if self.judge:
            scores["judge"] = self._judge(tokens, lengths)
        return scores

    def _judge(self, tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """What the judge says of each answer [P, K]; 0, without asking it, where there is none."""
        config, rules = self.config.judge, self.setup.rules
        read = {index: rules.read(tokens[index][: lengths[index]]) for index in np.ndindex(lengths.shape)}
        answered = [index for index, completion in read.items() if completion.answer is not None]
        responses = [(self.rows[p].example.conversation, read[p, k].answer) for p, k in answered]
        judgements = self.judge.judge(responses)
        scores = np.zeros(lengths.shape, np.float32)
        for index, judgement in zip(answered, judgements, strict=True):
            scores[index] = judgement.score(config.score)
        agreed, is_right = 0, []
        if config.audit:
            is_right = [rules.is_correct(self.rows[p], read[p, k]) for p, k in answered]
            says = [j.vote if config.score == "vote" else int(j.soft > 0.5) for j in judgements]
            # No verdict agrees with none.
            agreed = sum(said == right for said, right in zip(says, is_right, strict=True))
        unparseable = sum(j.num_unparseable for j in judgements)
        counts = parallel.share([unparseable, len(judgements) * config.thoughts, agreed, len(is_right)])
        unparseable, num_thoughts, agreed, num_judged = map(sum, zip(*counts, strict=True))
        self.metrics["judge_unparseable"] = unparseable / max(1, num_thoughts)
        if config.audit:
            self.metrics["judge_accuracy"] = agreed / max(1, num_judged)
        return scores


def _judge_of(config: TrainConfig, setup: "Setup", copies: Sequence[Params], state: TrainState) -> Judge:
    if setup.judge:
        return setup.judge
    model = setup.model
    if config.judge.model == "reference":
        reference = setup.reference(state)
        model, copies = (
            reference.model,
            setup.copies_of(reference.model, lora.combine(reference.params, reference.frozen)),
        )
    return Judge(model, copies, setup.encoder, config.judge)
