"""Built-in tasks: seeded sources of questions with answers, traces to pretrain on, and a verifier."""

from collections.abc import Mapping
from typing import Protocol

from nrt_jax.data.example import Example
from nrt_jax.errors import unknown_name
from nrt_jax.tasks import gym
from nrt_jax.tasks.abduction import AbductionTask
from nrt_jax.tasks.clock import ClockTask
from nrt_jax.tasks.deduction import DeductionTask
from nrt_jax.tasks.induction import InductionTask
from nrt_jax.tasks.judged_clock import JudgedClockTask
from nrt_jax.tasks.puzzle import Verdict

#: For models that are rewarded for tags: as a system turn, or before `{question}` in `text.template`.
SYSTEM_PROMPT = (
    "Reason between <think> and </think>, then give the final answer between <answer> and </answer>, in the form that "
    "the question asks for and with nothing else."
)


class Task(Protocol):
    """A source of questions and a judge of their answers.

    Attributes:
        name: As `--data` takes it.
    """

    name: str

    def examples(self, n: int, seed: int, split: str = "train", level: str = ...) -> list[Example]:
        """The first n questions of a seed, those of the splits `train` and `heldout` disjoint for any seeds."""

    def documents(self, n: int, seed: int, mixture: Mapping[str, float], level: str = ...) -> list[Example]:
        """n pretraining documents with traces of kinds drawn from `mixture`, of the train split."""

    def is_correct(self, example: Example, completion: str) -> bool:
        """Whether the text of an answer is right."""

    def verdict(self, example: Example, completion: str) -> Verdict:
        """Whether the text of an answer is right, wrong, or none at all."""


TASKS: dict[str, Task] = {
    task.name: task for task in (ClockTask(), DeductionTask(), InductionTask(), AbductionTask(), JudgedClockTask())
}


def is_task(name: str) -> bool:
    """Whether a source's name is that of a task: one of TASKS, or `gym:NAME`."""
    return name in TASKS or name.startswith(gym.PREFIX)


def check_verifier(name: str) -> None:
    """Raises UserError for a task whose verifier would run answers as Python."""
    if name.startswith(gym.PREFIX):
        gym.check_verifier(name)


def get(name: str) -> Task:
    """The task of that name.

    Raises:
        UserError: no task has that name.
    """
    if name.startswith(gym.PREFIX):
        return gym.get(name)
    if name not in TASKS:
        raise unknown_name("task", name, TASKS)
    return TASKS[name]
