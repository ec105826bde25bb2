"""Judging tasks on clock problems, with mistakes that a seed makes: what the demonstration's base is pretrained on.

    question  Mia starts at 3 o'clock. .. A response to this question: Mia stops .. at 9 .. at 6 .. Is the response ..
    trace     From 3, reads 5 to 8, .. So Mia and Mia yes, walking and walking yes, 12 and 9 no, 6 and 6 yes.
    answer    <verdict>incorrect</verdict>

Half of the responses are right; of the others one or two of person, activity and both hours are wrong. Half of the
pretraining documents are these, half are clock problems themselves. A judge is trained and measured on what policies
answer (`launch.judgements`).
"""

import dataclasses
import random
import re
from collections.abc import Mapping

from nrt_jax.data.example import Example
from nrt_jax.tasks import judging
from nrt_jax.tasks.clock import ACTIVITIES, HOURS, PEOPLE, ClockTask
from nrt_jax.tasks.puzzle import Verdict

#: What a response says, with each of its parts in a group, and what may stand there.
_SAID = re.compile(r"(\w+)( stops )(\w+)( at )(\w+)( o'clock and is done at )(\w+)( o'clock\.)")
_HOUR = tuple(map(str, range(1, HOURS + 1)))
_CHOICES = (tuple(PEOPLE), tuple(ACTIVITIES.values()), _HOUR, _HOUR)


@dataclasses.dataclass(frozen=True)
class JudgedClockTask:
    """Responses to clock problems as a source of judging tasks, of pretraining documents and of verdicts."""

    name: str = "judged_clock"
    clock: ClockTask = ClockTask()

    def examples(self, n: int, seed: int, split: str = "train", level: str = "default") -> list[Example]:
        """Judging tasks on the first n clock problems of a seed, each with a thought that finds the label out.

        Raises:
            UserError: `split` or `level` is not known.
        """
        rng = random.Random(f"{self.name}/{split}/{level}/{seed}")
        return [_judged(example, example.trace, rng) for example in self.clock.examples(n, seed, split, level)]

    def documents(self, n: int, seed: int, mixture: Mapping[str, float], level: str = "default") -> list[Example]:
        """n pretraining documents: clock problems and judging tasks on others in turn, traces of kinds of `mixture`.

        Raises:
            UserError: a kind or `level` is not known.
        """
        rng = random.Random(f"{self.name}/documents/{seed}")
        solved = self.clock.documents(n, seed, mixture, level)
        worked = self.clock.documents(n, seed, {"useful": 1.0}, level)  # The same problems.
        return [_judged(worked[i], solved[i].trace, rng) if i % 2 else solved[i] for i in range(n)]

    def is_correct(self, example: Example, completion: str) -> bool:
        """Whether a verdict is that of the reference."""
        return self.verdict(example, completion) == "exact"

    def verdict(self, example: Example, completion: str) -> Verdict:
        """What a verdict is (`judging.parse_verdict`)."""
        found = judging.parse_verdict("", completion)
        if found is None:
            return "unparseable"
        return "exact" if judging.verdict(found) == example.answer else "wrong"


def _judged(solved: Example, trace: str, rng: random.Random) -> Example:
    """A judging task on a response to a clock problem.

    Args:
        solved: The problem with its answer and the whole working.
        trace: The working or another trace, which becomes the thought; the working is compared with the response.
        rng: Of the mistakes.
    """
    words = list(_SAID.fullmatch(solved.answer).groups())
    right, label = words[::2], rng.randrange(2)
    if not label:
        for i in rng.sample(range(len(right)), rng.randint(1, 2)):
            words[2 * i] = rng.choice([word for word in _CHOICES[i] if word != right[i]])
    if trace == solved.trace:
        compared = (f"{a} and {b} {'yes' if a == b else 'no'}" for a, b in zip(right, words[::2], strict=True))
        trace += f" So {', '.join(compared)}."
    return judging.Judged(solved.question, "".join(words), label).example(trace)
