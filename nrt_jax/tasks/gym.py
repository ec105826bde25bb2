"""Tasks of the package reasoning-gym, each with its own verifier: `gym:leg_counting`.

    pip install 'nrt_jax[gym]'
    python -m launch.train --data gym:leg_counting

Its verifiers want the whole entry, of which an `Example` has question and answer only. So a task remembers the entries
of the examples that it made, by these two; `get` gives the same task for the same name.

The verifiers of some datasets (EVALUATES) run what the model wrote as Python: these give questions, and no verdicts.
"""

import functools
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from nrt_jax.data.example import Example
from nrt_jax.errors import UserError, unknown_name
from nrt_jax.tasks.puzzle import HELD_OUT_ONE_IN, MAX_ANSWER_CHARACTERS, SPLITS, Verdict, split_of

PREFIX = "gym:"

#: Datasets whose verifiers hand answers to `eval` or to SymPy's parser, which calls it (reasoning-gym 0.1.25).
EVALUATES = frozenset(
    {
        "binary_matrix",
        "countdown",
        "intermediate_integration",
        "n_queens",
        "polynomial_multiplication",
        "puzzle24",
        "simple_integration",
        "spiral_matrix",
        "string_insertion",
    }
)

#: Entries that are drawn for one that is wanted, before a dataset is said to have too few different ones.
_PATIENCE = 8 * HELD_OUT_ONE_IN


class GymTask:
    """A dataset of reasoning-gym with its default settings.

    Attributes:
        name: With the prefix.
    """

    def __init__(self, name: str):
        self.name = name
        self._dataset = _create(name, seed=0, size=1)
        self._entries: dict[tuple[str, str], Any] = {}

    def examples(self, n: int, seed: int, split: str = "train", level: str = "") -> list[Example]:
        """The first n questions of a seed whose hash is in the split; they have no traces.

        Raises:
            UserError: `split` is not known, `level` is given, or the dataset has too few questions with answers.
        """
        if split not in SPLITS:
            raise unknown_name("split", split, SPLITS)
        if level:
            raise UserError(f"dataset.level: {level!r} given for {self.name}, which has no levels; leave it empty")
        examples = []
        for entry in self._draw(seed, most=_PATIENCE * (n + 1)):
            if len(examples) == n:
                return examples
            question, answer = entry["question"], entry["answer"]
            if isinstance(answer, str) and answer.strip() and split_of(question) == split:
                self._entries[question, answer] = entry
                examples.append(Example(question, answer))
        raise UserError(f"data: {self.name} gave {len(examples)} questions for the split {split!r}; expected {n}")

    def documents(self, n: int, seed: int, mixture: Mapping[str, float], level: str = "") -> list[Example]:
        """Raises UserError: the package has no worked solutions."""
        raise UserError(f"task: {self.name} has no traces to pretrain on; expected a built-in task, such as clock")

    def is_correct(self, example: Example, completion: str) -> bool:
        """Whether the package's verifier gives an answer the full score."""
        return self.verdict(example, completion) == "exact"

    def verdict(self, example: Example, completion: str) -> Verdict:
        """`exact` for the full score of 1, `unparseable` for no answer or one that the verifier fails on.

        Raises:
            UserError: The verifier would run the answer, or this process has not made the example by `examples`.
        """
        check_verifier(self.name)
        entry = self._entries.get((example.question, example.answer))
        if entry is None:
            raise UserError(f"{self.name}: the question {example.question!r:.60} is none of those generated here")
        if len(completion) > MAX_ANSWER_CHARACTERS or not completion.strip():
            return "unparseable"
        try:
            score = self._dataset.score_answer(completion.strip(), entry)
        except Exception:  # of any kind: a hundred verifiers, and text that a model wrote
            return "unparseable"
        return "exact" if score >= 1.0 else "wrong"

    def _draw(self, seed: int, most: int) -> Iterator[Any]:
        """Entries of a seed. Entry i of the package's seed s is entry 0 of seed s + i: ours are spread out."""
        spread = int.from_bytes(hashlib.sha256(f"{self.name}/{seed}".encode()).digest()[:4], "big")
        dataset = _create(self.name, seed=spread, size=most)
        return (dataset[i] for i in range(most))


def check_verifier(name: str) -> None:
    """Raises UserError if the verifier of `gym:NAME` would run an answer as Python."""
    if name.removeprefix(PREFIX) in EVALUATES:
        raise UserError(
            f"{name}: its verifier runs answers as Python; expected another dataset, or a verifier by rules"
        )


@functools.cache
def get(name: str) -> GymTask:
    """The task of a name with its prefix, the same one each time.

    Raises:
        UserError: reasoning-gym is not installed, or has no such dataset.
    """
    return GymTask(name)


def _create(name: str, seed: int, size: int) -> Any:
    try:
        import reasoning_gym
    except ImportError as error:
        raise UserError(
            f"data: {name} needs reasoning-gym ({error}); install it: pip install 'nrt_jax[gym]'"
        ) from error
    dataset = name.removeprefix(PREFIX)
    known = reasoning_gym.factory.DATASETS
    if dataset not in known:
        raise unknown_name("data", name, [PREFIX + other for other in known])
    return reasoning_gym.create_dataset(dataset, seed=seed, size=size)
