"""A judge: a checkpoint that is asked whether responses are correct (Libra, arXiv 2507.21645).

For each (question, response) it samples n thoughts with a verdict each, and scores both verdicts after every thought:

    vote   the verdict that more of the n thoughts end in; of equal ones the first, none where none can be read
    soft   P(correct | question, response, z) = p(correct | z) / (p(correct | z) + p(incorrect | z)), mean over the n z

Both probabilities come from the scorer of the intrinsic reward, on the caches that the sampler left; so does P without
any thought, from the empty one. Known: sampled verdicts as a reward. Ours: the soft score.

A judgement depends on the judge, its seed and the texts, not on what is judged beside them or when. Equal texts are
judged once.
"""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from nrt_jax import parallel
from nrt_jax.data.batch import Prompts, Reference
from nrt_jax.data.encode import Encoded, Encoder, bucket, pad
from nrt_jax.data.example import Example
from nrt_jax.data.formats import TraceFormat, TraceFormatConfig
from nrt_jax.data.template import TextConfig
from nrt_jax.errors import UserError
from nrt_jax.models import Model, Params
from nrt_jax.rewards.intrinsic import score_reference
from nrt_jax.rewards.rules import Rules
from nrt_jax.rewards.verifiable import VerifierConfig
from nrt_jax.rollout import SamplingConfig, cut_traces, engine, until_delimiter
from nrt_jax.tasks import judging


@dataclasses.dataclass(frozen=True)
class JudgeConfig:
    """Who judges, for `reward.judge`, and how.

    Attributes:
        model: `policy`, the one that learns, as it is; `reference`, the run's (`reference.kind`); or a checkpoint, as
            in `model`.
        thoughts: n, thoughts and verdicts a response.
        max_thought_length: Most tokens of a thought; a longer one gives no verdict, and is scored as far as it went.
        temperature: Of the thoughts; 0 is greedy.
        score: What a response is rewarded with: `soft`, or `vote`, 1 where that is `correct` and else 0.
        batch_size: Responses judged at once.
        devices: Its own, behind those that train and sample; only for a checkpoint. 0: it judges where these sample.
        tensor: Of its own devices, those that share one copy of it.
        seed: Of the thoughts.
        audit: The verifier judges, too, for the metric `judge_accuracy`; not for rows without a reference answer.
        text: Template of a checkpoint; of a run's folder, what is left at its default is as in the run.
        trace: Trace format of a checkpoint; likewise.
    """

    model: str = "policy"
    thoughts: int = 1
    max_thought_length: int = 1024
    temperature: float = 1.0
    score: Literal["soft", "vote"] = "soft"
    batch_size: int = 64
    devices: int = 0
    tensor: int = 1
    seed: int = 0
    audit: bool = True
    text: TextConfig = TextConfig()
    trace: TraceFormatConfig = TraceFormatConfig("<think>", "</think>")

    @property
    def is_checkpoint(self) -> bool:
        """Another model judges, not the run's policy or reference."""
        return self.model not in ("policy", "reference")


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What a judge says of one response.

    Attributes:
        thoughts: n texts.
        verdicts: Label that follows each, 0 or 1; None where none can be read.
        p_correct: P(correct | thought) of each.
        p_without_thought: The same after the empty thought.
    """

    thoughts: tuple[str, ...]
    verdicts: tuple[int | None, ...]
    p_correct: tuple[float, ...]
    p_without_thought: float

    @property
    def vote(self) -> int | None:
        """The label of more verdicts, the first one's where they are equal; None where none can be read."""
        return judging.vote(self.verdicts)

    @property
    def soft(self) -> float:
        """Mean of P(correct) over thoughts."""
        return math.fsum(self.p_correct) / len(self.p_correct)

    @property
    def num_unparseable(self) -> int:
        """Thoughts without a verdict."""
        return self.verdicts.count(None)

    def score(self, kind: str) -> float:
        """The reward of the response, from 0 to 1 (`JudgeConfig.score`)."""
        return self.soft if kind == "soft" else float(self.vote == 1)


@dataclasses.dataclass(frozen=True, eq=False)
class Judge:
    """A checkpoint and how it judges.

    Attributes:
        model: Any policy.
        params: Its parameters, or copies of them on the devices that are to judge (`engine.stream`).
        encoder: Its tokenizer, template and trace format.
        config: How it judges; `model`, `text` and `trace` are not looked at.
    """

    model: Model
    params: Params | Sequence[Params]
    encoder: Encoder
    config: JudgeConfig

    def __post_init__(self):
        """Raises UserError where a thought leaves no room for a question."""
        positions = self.model.config.max_position_embeddings
        if self._longest_prompt < 1:
            raise UserError(
                f"judge.max_thought_length: {self.config.max_thought_length} cannot work with a judge of {positions} "
                f"positions; expected at most {positions - 2 - self._verdicts[0].shape[1]}, less room for the question"
            )

    def judge(self, responses: Sequence[tuple[str, str]], log: Callable[[str], None] | None = None) -> list[Judgement]:
        """Judges responses.

        Args:
            responses: Each a question and a response. What does not fit into the model, beside a thought, is given no
                verdict and P = 0.
            log: Takes a line after each batch, on how many are judged.
        """
        unique = list(dict.fromkeys(responses))
        rows = self.encoder.encode_many([judging.Judged(*texts, label=1).example() for texts in unique])
        longest = self._longest_prompt
        by_length: dict[int, list[int]] = {}
        for i, row in enumerate(rows):
            if len(row.prompt) <= longest:
                by_length.setdefault(room(len(row.prompt)), []).append(i)
        found = dict.fromkeys(range(len(rows)), self._nothing())
        done, total = 0, sum(map(len, by_length.values()))
        for length in sorted(by_length, reverse=True):  # What does not fit into memory fails at once.
            size = self.config.batch_size
            for start in range(0, len(by_length[length]), size):
                part = by_length[length][start : start + size]
                found |= zip(part, self._judge([rows[i] for i in part]), strict=True)
                done += len(part)
                if log:
                    log(f"{done} of {total} different responses judged")
        index = {texts: i for i, texts in enumerate(unique)}
        return [found[index[texts]] for texts in responses]

    @functools.cached_property
    def _verdicts(self) -> tuple[np.ndarray, np.ndarray]:
        """Ids [2, Y] of both verdicts by label, EOS included, and their mask."""
        rows = self.encoder.encode_many([Example("", judging.verdict(label)) for label in (0, 1)])
        return pad([row.answer for row in rows])

    @functools.cached_property
    def _rules(self) -> Rules:
        return Rules(self.encoder, VerifierConfig("verdict"))

    @functools.cached_property
    def _sampling(self) -> SamplingConfig:
        return sampling_of(self.config, self.encoder.format, self._verdicts[0].shape[1])

    @property
    def _longest_prompt(self) -> int:
        return self.model.config.max_position_embeddings - self._sampling.max_new_tokens

    def _nothing(self) -> Judgement:
        n = self.config.thoughts
        return Judgement(("",) * n, (None,) * n, (0.0,) * n, 0.0)

    def _judge(self, rows: Sequence[Encoded]) -> list[Judgement]:
        """Judges rows of one room, at most a batch of them."""
        config, delimiter = self.config, self.encoder.format.delimiter
        quarter = -(-config.batch_size // 4)
        size = quarter if len(rows) <= quarter else config.batch_size  # Two sizes: each is a program.
        padded = [*rows, *[rows[-1]] * (size - len(rows))]
        tokens, mask = pad([row.prompt for row in padded])
        more = ((0, 0), (0, room(mask.sum(-1).max()) - mask.shape[1]))
        tokens, mask = np.pad(tokens, more), np.pad(mask, more)
        copies = [self.params] if isinstance(self.params, Mapping) else list(self.params)
        with parallel.on(copies[0]):
            contents = np.array([_hash(row.prompt) for row in padded], np.uint32)
            keys = _keys(jax.random.key(config.seed), contents, config.thoughts)
        done: dict[int, Judgement] = {}
        for part in engine.stream(self.model, copies, Prompts(tokens=tokens, mask=mask), keys, self._sampling):
            with parallel.on(part.params):
                limit = np.int32(config.max_thought_length)
                found = read(part.params, part.rollout, *self._verdicts, np.int32(delimiter), limit, model=self.model)
            sampled, lengths, p_correct, p_without = jax.device_get(found)
            for j, i in enumerate(part.prompts):
                done[int(i)] = self._judgement(sampled[j], lengths[j], p_correct[j], p_without[j])
        return [done[i] for i in range(len(rows))]

    def _judgement(self, tokens, lengths, p_correct, p_without) -> Judgement:
        said = [self._rules.read(row[:length]) for row, length in zip(tokens, lengths, strict=True)]
        return Judgement(
            thoughts=tuple(completion.trace for completion in said),
            verdicts=tuple(judging.parse_verdict(completion.trace, completion.answer) for completion in said),
            p_correct=tuple(p_correct.tolist()),
            p_without_thought=float(p_without),
        )


def sampling_of(config: JudgeConfig, trace_format: TraceFormat, verdict_length: int) -> SamplingConfig:
    """How a judge samples thoughts and verdicts of at most so many tokens, EOS included."""
    delimiter, *others = trace_format.stop_ids
    max_new_tokens = config.max_thought_length + 1 + verdict_length
    return SamplingConfig(
        stop_ids=jnp.array(others, jnp.int32),
        delimiter=jnp.int32(delimiter),
        temperature=jnp.float32(config.temperature),
        max_new_tokens=max_new_tokens,
        group_size=config.thoughts,
        chunk_size=min(128, bucket(max_new_tokens)),
    )


@functools.partial(jax.jit, static_argnames="model")
def read(params, rollout, verdicts, verdict_mask, delimiter, max_thought_length, *, model):
    """Tokens [P, n, Z] and their number [P, n], P(correct | z) [P, n] and P(correct | no thought) [P]."""
    limit = jnp.full(rollout.prompt_length.shape, max_thought_length)
    thoughts = cut_traces(until_delimiter(rollout, delimiter), limit)

    def score(label):
        shape = (len(rollout.prompt_length), verdicts.shape[1])
        tokens, mask = (jnp.broadcast_to(x[label], shape) for x in (verdicts, verdict_mask))
        reference = Reference(tokens=tokens, mask=mask, delimiter=delimiter)
        log_probs, base = score_reference(model, params, thoughts, reference)
        return jnp.sum(log_probs, -1, where=mask[:, None]), jnp.sum(base, -1, where=mask)

    p_correct, p_without = (jax.nn.sigmoid(right - wrong) for wrong, right in zip(score(0), score(1), strict=True))
    return rollout.tokens, jnp.sum(rollout.mask, -1), p_correct, p_without


def room(length: int) -> int:
    """The next power of two from 32 on: coarser than training's buckets, since how many rows there are varies, too."""
    return max(32, 1 << (int(length) - 1).bit_length())


def _hash(ids: Sequence[int]) -> int:
    digest = hashlib.sha256(np.asarray(ids, np.int64).tobytes()).digest()
    return int.from_bytes(digest[:4], "big")


@functools.partial(jax.jit, static_argnums=2)
def _keys(rng, contents, num_thoughts):
    """[P, n] keys, by what each row says and not by its place."""

    def of_row(content):
        key = jax.random.fold_in(rng, content)
        return jax.vmap(lambda k: jax.random.fold_in(key, k))(jnp.arange(num_thoughts))

    return jax.vmap(of_row)(contents)
