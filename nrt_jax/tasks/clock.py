"""Clock problems: short English word problems whose answers need serial steps.

    Mia starts at 3 o'clock. She reads for 5 hours, walks for 4 hours and then sleeps for 6 hours.
    When does she stop reading, and when is she done?

    trace   From 3, reads 5 to 8, walks 4 to 12, sleeps 6 to 6.
    answer  Mia stops reading at 8 o'clock and is done at 6 o'clock.

Why this task: time on a clock face is a sum modulo 12, so a proper subset of the numbers says next to nothing
about the result, and an answer without working is a guess (1/12). The answer is a sentence of many easy
tokens, copied from the question, and two hard ones of different difficulty: a stop after one to n - 1 steps,
and the end after all n.

The train and the held-out split are disjoint whatever the seeds, because a hash of the numbers alone decides
which split a problem is in: a held-out question is never a training question with other names.
"""

import dataclasses
import itertools
import random
import re
from collections.abc import Iterator, Mapping

from nrt_jax.data.example import Example
from nrt_jax.errors import unknown_name
from nrt_jax.tasks.puzzle import SPLITS, Verdict, draw_kinds, split_of

HOURS = 12

#: No activity takes longer: few enough sums (12 x 8) for a tiny model to learn in a minute, enough spread to make the
#: end a guess.
MAX_HOURS = 8

#: Person -> pronoun.
PEOPLE = {
    "Mia": "she",
    "Anna": "she",
    "Sara": "she",
    "Lena": "she",
    "Tom": "he",
    "Ben": "he",
    "Max": "he",
    "Paul": "he",
}

#: What a person does for some hours, as the question says it -> as "stops ..." takes it.
ACTIVITIES = {
    "reads": "reading", "walks": "walking", "sleeps": "sleeping", "paints": "painting", "cooks": "cooking",
    "swims": "swimming", "sings": "singing", "works": "working", "draws": "drawing", "plays": "playing",
}  # fmt: skip

#: Level -> the numbers of activities that a problem may have.
LEVELS = {"easy": (3,), "default": (3, 4), "hard": (4, 5)}

#: Index of the activity whose end the question asks for, beside the end of all.
ASKED = 1

FILLERS = (
    "Let me think about this.",
    "This is a question about time.",
    "Okay, let me see.",
    "Hmm, this is not easy.",
)
IRRELEVANT = ("{name} likes {doing}.", "{name} likes {doing} and {other}.", "The weather is nice today.")

_STEP = re.compile(r"(\w+) (\d+) to (\d+)\b")
_ANSWER = re.compile(r"[A-Z][a-z]+ stops [a-z]+ at [0-9]{1,2} o'clock and is done at [0-9]{1,2} o'clock\.")


@dataclasses.dataclass(frozen=True)
class Problem:
    """The content of one question, before it is put into words.

    Attributes:
        name: A key of PEOPLE.
        start: Hour on the clock, 1 to 12.
        activities: Keys of ACTIVITIES, all different, in the order in which they are done.
        durations: Hours, 1 to MAX_HOURS, one for each activity.
        phrasing: Index of the wording.
    """

    name: str
    start: int
    activities: tuple[str, ...]
    durations: tuple[int, ...]
    phrasing: int

    @property
    def stops(self) -> tuple[int, ...]:
        """The hour at which each activity ends."""
        sums = itertools.accumulate(self.durations, initial=self.start)
        return tuple((total - 1) % HOURS + 1 for total in sums)[1:]

    @property
    def split(self) -> str:
        """The split that the numbers belong to, whoever does whatever with them."""
        numbers = ",".join(map(str, (self.start, *self.durations)))
        return split_of(numbers)

    def question(self) -> str:
        """The problem in words."""
        name, they = self.name, PEOPLE[self.name]
        spans = [f"{does} for {_hours(n)}" for does, n in zip(self.activities, self.durations, strict=True)]
        listed = ", ".join(spans[:-1])
        doing = ACTIVITIES[self.activities[ASKED]]
        start = f"{self.start} o'clock"
        story = (
            f"{name} starts at {start}. {they.capitalize()} {listed} and then {spans[-1]}.",
            f"It is {start}. {name} {listed} and {spans[-1]}.",
            f"At {start} {name} gets up. First {they} {', then '.join(spans)}.",
            f"{name} {listed} and {spans[-1]}, starting at {start}.",
        )[self.phrasing]
        return f"{story} When does {they} stop {doing}, and when is {they} done?"

    def answer(self) -> str:
        """The reference answer."""
        doing, stops = ACTIVITIES[self.activities[ASKED]], self.stops
        return f"{self.name} stops {doing} at {stops[ASKED]} o'clock and is done at {stops[-1]} o'clock."

    def trace(self, num_steps: int | None = None) -> str:
        """The working: when each activity, or each of the first `num_steps`, ends."""
        steps = list(zip(self.activities, self.durations, self.stops, strict=True))[:num_steps]
        return ", ".join([f"From {self.start}", *(f"{does} {n} to {hour}" for does, n, hour in steps)]) + "."

    def list_of_numbers(self) -> str:
        """The numbers without the working: it looks busy and helps nobody."""
        steps = zip(self.activities, self.durations, strict=True)
        return ", ".join([f"From {self.start}", *(f"{does} {n}" for does, n in steps)]) + "."


PHRASINGS = 4


def _hours(n: int) -> str:
    return "1 hour" if n == 1 else f"{n} hours"


def _problems(rng: random.Random, split: str, level: str) -> Iterator[Problem]:
    while True:
        count = rng.choice(LEVELS[level])
        problem = Problem(
            name=rng.choice(tuple(PEOPLE)),
            start=rng.randint(1, HOURS),
            activities=tuple(rng.sample(tuple(ACTIVITIES), count)),
            durations=tuple(rng.randint(1, MAX_HOURS) for _ in range(count)),
            phrasing=rng.randrange(PHRASINGS),
        )
        if problem.split == split:
            yield problem


def _document(problem: Problem, kind: str, rng: random.Random) -> Example:
    """Question, a trace of the given kind, and the right answer."""
    trace = ""
    if kind == "useful":
        trace = problem.trace()
    elif kind == "lazy":
        trace = problem.trace(rng.randrange(1, len(problem.stops)))
    elif kind == "sloppy":
        trace = problem.list_of_numbers()
    elif kind == "filler":
        trace = rng.choice(FILLERS)
    elif kind == "irrelevant":
        doing, other = rng.sample(tuple(ACTIVITIES.values()), 2)
        trace = rng.choice(IRRELEVANT).format(name=problem.name, doing=doing, other=other)
    return Example(problem.question(), problem.answer(), trace)


@dataclasses.dataclass(frozen=True)
class ClockTask:
    """The clock problems as a source of examples, of pretraining documents and of verdicts."""

    name: str = "clock"

    def examples(self, n: int, seed: int, split: str = "train", level: str = "default") -> list[Example]:
        """The first n problems of a seed, each with its useful trace.

        Raises:
            UserError: `split` or `level` is not known.
        """
        problems = self._draw(f"{self.name}/examples", n, seed, split, level)
        return [Example(p.question(), p.answer(), p.trace()) for p in problems]

    def documents(self, n: int, seed: int, mixture: Mapping[str, float], level: str = "default") -> list[Example]:
        """n pretraining documents of the train split: right answers, and traces of kinds drawn from `mixture`.

        Args:
            n: Number of documents.
            seed: Seed of problems and kinds.
            mixture: Weight of each kind of KINDS; kinds left out do not occur. Weights need not add up to 1.
            level: As in `examples`.

        Raises:
            UserError: a kind or `level` is not known.
        """
        rng = random.Random(f"{self.name}/documents/{seed}")
        drawn = draw_kinds(rng, mixture, n)
        problems = self._draw(self.name, n, seed, "train", level)
        return [_document(problem, kind, rng) for problem, kind in zip(problems, drawn, strict=True)]

    def is_correct(self, example: Example, completion: str) -> bool:
        """Whether a completion (the text after the delimiter) is the whole reference answer."""
        return completion.strip() == example.answer

    def verdict(self, example: Example, completion: str) -> Verdict:
        """`wrong` is a sentence of the answer's form, `unparseable` all else."""
        if self.is_correct(example, completion):
            return "exact"
        return "wrong" if _ANSWER.fullmatch(completion.strip()) else "unparseable"

    def is_useful(self, example: Example, trace: str) -> bool:
        """Whether a trace works the whole problem out: every activity in order with the right hour."""
        return self.trace_kind(example, trace) == "useful"

    def trace_kind(self, example: Example, trace: str) -> str:
        """What a sampled trace is.

        useful, lazy (right but cut short), sloppy (numbers without sums), wrong (a wrong sum), other or empty.
        """
        if not trace.strip():
            return "empty"
        steps, gold = _STEP.findall(trace), _STEP.findall(example.trace or "")
        if not steps:
            return "sloppy" if trace.startswith("From") else "other"
        if steps == gold:
            return "useful"
        return "lazy" if steps == gold[: len(steps)] else "wrong"

    def _draw(self, stream: str, n: int, seed: int, split: str, level: str) -> list[Problem]:
        """Each stream draws problems of its own, so that training questions are not pretraining documents."""
        if split not in SPLITS:
            raise unknown_name("split", split, SPLITS)
        if level not in LEVELS:
            raise unknown_name("dataset.level", level, LEVELS)
        rng = random.Random(f"{stream}/{split}/{level}/{seed}")
        return list(itertools.islice(_problems(rng, split, level), n))
