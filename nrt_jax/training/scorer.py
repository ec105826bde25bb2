"""A step's rewards that are made of text: the format, a verifier's score, and a judge's."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from nrt_jax import parallel
from nrt_jax.data.encode import Encoded
from nrt_jax.models import Params, lora
from nrt_jax.rewards import Judge, Judgement
from nrt_jax.rewards.verifiable import Completion
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
        self._ahead, self._begun = ThreadPoolExecutor(1, "judge"), []

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

    def begin(self, prompts: np.ndarray, fetch: Callable[[], tuple[np.ndarray, np.ndarray]]) -> None:
        """Lets a judge with devices of its own judge a part of the answers, while others are still sampled.

        Args:
            prompts: Of the part, which may be padded.
            fetch: Waits for its tokens [P, K, Z] and for how many were sampled [P, K].
        """
        self._begun.append(self._ahead.submit(self._judge_part, prompts, fetch))

    def close(self) -> None:
        """Forgets what `begin` has not started: a step that fails is not to wait for it."""
        self._ahead.shutdown(wait=False, cancel_futures=True)

    def _judge_part(self, prompts: np.ndarray, fetch) -> dict[tuple[str, str], Judgement]:
        tokens, lengths = (x[: len(prompts)] for x in fetch())
        responses = list(self._responses(prompts, self._read(tokens, lengths)).values())
        return dict(zip(responses, self.judge.judge(responses), strict=True))

    def _read(self, tokens: np.ndarray, lengths: np.ndarray) -> dict[tuple[int, int], Completion]:
        rules = self.setup.rules
        return {index: rules.read(tokens[index][: lengths[index]]) for index in np.ndindex(lengths.shape)}

    def _responses(self, prompts: Sequence[int], read: Mapping[tuple[int, int], Completion]) -> dict:
        """Question and answer of each completion that has one."""
        return {
            (p, k): (self.rows[prompts[p]].example.conversation, completion.answer)
            for (p, k), completion in read.items()
            if completion.answer is not None
        }

    def _judge(self, tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """What the judge says of each answer [P, K]; 0, without asking it, where there is none."""
        config, rules, read = self.config.judge, self.setup.rules, self._read(tokens, lengths)
        answered = self._responses(range(len(self.rows)), read)
        known: dict[tuple[str, str], Judgement] = {}
        for part in self._begun:
            known |= part.result()
        rest = [response for response in answered.values() if response not in known]
        known |= zip(rest, self.judge.judge(rest), strict=True)
        judgements = [known[response] for response in answered.values()]
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
