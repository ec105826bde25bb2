"""Rewards of what a policy wrote, computed on the host from its text: the format, and a verifier's score."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from nrt_jax import tasks
from nrt_jax.data.encode import Encoded, Encoder
from nrt_jax.data.example import BadRow
from nrt_jax.errors import UserError
from nrt_jax.rewards.verifiable import VERIFIERS, Completion, Verifier, VerifierConfig, get_verifier, parse_completion


@dataclasses.dataclass(frozen=True, eq=False)
class Rules:
    """Reads completions, and scores them.

    Attributes:
        encoder: Of the run, whose tokenizer and trace format it reads with.
        config: How answers are judged.
    """

    encoder: Encoder
    config: VerifierConfig

    @functools.cached_property
    def verifier(self) -> Verifier:
        """Of the config's name."""
        return get_verifier(self.config.name)

    @functools.cached_property
    def _tags(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Ids of the tags before and after an answer."""
        tag, tokenizer = self.config.answer_tag, self.encoder.tokenizer
        tags = (f"<{tag}>", f"</{tag}>") if tag else ("", "")
        return tuple(tuple(tokenizer(text, add_special_tokens=False).input_ids) for text in tags)

    def written(self, row: Encoded) -> tuple[int, ...]:
        """Ids of y* as it is asked for after the delimiter: in its tags, if there are any, and with EOS."""
        before, after = self._tags
        return (*before, *row.answer[:-1], *after, row.answer[-1])

    @property
    def num_tag_tokens(self) -> int:
        """Tokens of the tags that stand around an answer."""
        return sum(map(len, self._tags))

    def read(self, tokens: np.ndarray) -> Completion:
        """What the tokens [T] of a completion say, the last of which is EOS unless it was cut short."""
        trace_format, decode = self.encoder.format, self.encoder.tokenizer.decode
        trace, answer = trace_format.split(tokens)
        is_repeated = answer is not None and trace_format.delimiter in answer
        return parse_completion(
            decode(trace),
            None if answer is None or is_repeated else decode(answer),
            finished=trace_format.eos in tokens,
            reserved=self._reserved,
            tag=self.config.answer_tag,
        )

    @functools.cached_property
    def _reserved(self) -> list[str]:
        trace_format, decode = self.encoder.format, self.encoder.tokenizer.decode
        tags = [decode([token]) for token in (*trace_format.opening, trace_format.delimiter)]
        # Spelt in pieces they are no delimiter, but readers of the text cannot tell. A word may be one, too.
        return [text for text in tags if text.startswith("<")]

    def problem(self, row: Encoded) -> BadRow | None:
        """Why no answer to a row could be right: not even the reference, written as asked, is; None where it is.

        The functions of users are not asked: they may want a trace, or reward something else than the reference.

        Raises:
            UserError: There is no such verifier, or what it needs is not installed.
        """
        name = self.config.name
        self.verifier  # noqa: B018 - a verifier that is missing is no row's fault
        if name not in VERIFIERS and not tasks.is_task(name):
            return None
        completion = self.read(np.array([self.encoder.format.delimiter, *self.written(row)], np.int32))
        detail = f"verifier.name: {name!r} does not find the reference answer {row.example.answer[:100]!r} itself right"
        try:
            if self.is_correct(row, completion):
                return None
        except UserError as error:
            detail = str(error)
        return BadRow(f"answer is not right to the verifier {name!r}", detail)

    def verdict(self, row: Encoded, completion: Completion) -> float | None:
        """What the verifier says.

        Raises:
            UserError: It says neither a number nor None, or raises.
        """
        example = row.example
        if not tasks.is_task(self.config.name):  # Spelt as the tokenizer spells the policy's answers.
            example = dataclasses.replace(example, answer=self.encoder.tokenizer.decode(row.answer[:-1]))
        try:
            verdict = self.verifier(example, completion)
        except UserError:
            raise
        except Exception as error:  # of any kind: a user's function runs
            raise UserError(
                f"verifier.name: {self.config.name!r} raised {type(error).__name__} {str(error)[:200]!r} at the "
                f"question {example.question[:100]!r}; expected a number, or None where there is nothing to judge"
            ) from error
        if verdict is None or (isinstance(verdict, int | float | np.number) and np.isfinite(verdict)):
            return verdict
        raise UserError(
            f"verifier.name: {self.config.name!r} returned {verdict!r}; expected a finite number, or None where there "
            "is nothing to judge"
        )

    def is_correct(self, row: Encoded, completion: Completion) -> bool:
        """The verifier finds the answer right, and not only partly."""
        return self.verdict(row, completion) == 1.0

    def score(
        self,
        rows: Sequence[Encoded],
        tokens: np.ndarray,
        lengths: np.ndarray,
        names: Sequence[str] = ("format", "verifiable"),
        *,
        has_answers: bool,
    ) -> dict[str, np.ndarray]:
        """Scores what was sampled.

        Args:
            rows: P questions.
            tokens: [P, K, Z] int32, trace, delimiter, answer and EOS.
            lengths: [P, K] int32, how many of them were sampled.
            names: What is asked for; `verifiable` needs answers.
            has_answers: Whether rows went on after the delimiter.

        Returns:
            By name, [P, K] float32: format, 1 where the completion is well formed and 0 elsewhere (without answers,
            where the policy wrote the delimiter); verifiable, the verifier's score.
        """
        scores = {name: np.zeros(lengths.shape, np.float32) for name in names}
        for p, k in np.ndindex(lengths.shape):
            sampled = tokens[p, k, : lengths[p, k]]
            completion = self.read(sampled) if has_answers else None
            if "format" in scores:
                has_delimiter = self.encoder.format.delimiter in sampled
                scores["format"][p, k] = completion.well_formed if completion else has_delimiter
            if "verifiable" in scores:
                scores["verifiable"][p, k] = self.config.score(self.verdict(rows[p], completion))
        return scores
