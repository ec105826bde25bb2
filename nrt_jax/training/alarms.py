"""Alarms: a policy that collapses shows it in its metrics long before the end of the run.

What is watched are means over the last `WINDOW` steps. An alarm is raised where a mean crosses one threshold, and is
over where it has come back across a second one, so that it is shown once for each time that it happens. A policy that
answers what it is asked is certain too, and its groups are equal too: once it has solved its questions, low entropy and
equal groups raise no alarm. The thresholds are ours, chosen so that no run of the embedded task that learned it raises
one.
"""

import collections
import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax

from nrt_jax.training.metrics import truncate_records

ALARMS_FILE = "alarms.jsonl"
WINDOW = 10
#: Mean probability of the whole answer, verifier's score or held-out accuracy from which on questions count as solved,
#: and below which they no longer do.
SOLVED, UNSOLVED = 0.8, 0.7


@dataclasses.dataclass(frozen=True)
class Alarm:
    """One occurrence.

    Attributes:
        step: At which it was raised.
        name: Of the alarm.
        value: The mean that raised it.
        message: What was seen, the likely cause, and what to change.
    """

    step: int
    name: str
    value: float
    message: str


@dataclasses.dataclass(frozen=True)
class Rule:
    """When an alarm is raised, and when it is over.

    Attributes:
        metric: Whose mean is watched.
        raised: The mean that raises it: one below, where `raised` is below `over`, else one above.
        over: The mean that ends it.
        unless_solved: A policy that has solved its questions is spared.
        message: Of the mean and all means.
        relative: The mean is divided by the highest one so far, or by the first step's value if that is higher.
    """

    metric: str
    raised: float
    over: float
    unless_solved: bool
    message: Callable[[float, Mapping[str, float]], str]
    relative: bool = False

    def holds(self, mean: float, *, is_raised: bool) -> bool:
        """Whether the alarm is on, given whether it was."""
        limit = self.over if is_raised else self.raised
        return mean < limit if self.raised < self.over else mean > limit


def _entropy(value: float, _) -> str:
    return (
        f"entropy fell to {value:.3g} nats a token and the questions are not solved: the policy samples one trace over "
        "and over; try a lower --optimizer.learning-rate, a higher --rollout.temperature, or --reference.kind initial "
        "with --loss.kl-weight 1e-3"
    )


def _empty(value: float, _) -> str:
    return (
        f"{value:.0%} of traces are empty: the policy finds no trace that beats none, or the cross-entropy on the "
        "answer outweighs the reward; try a lower --loss.token-weight, or start from a model that reasons when asked "
        "(--text.template)"
    )


def _truncated(value: float, _) -> str:
    return (
        f"{value:.0%} of samples reach the length limit without a stop token: traces ramble or repeat, or the limit is "
        "short for this model; try a higher --rollout.max-trace-length, a lower --rollout.temperature or "
        "--optimizer.learning-rate, or a punishment (--reward.shaping.overlong-max, .ngram-count)"
    )


def _equal(value: float, means: Mapping[str, float]) -> str:
    found = f"in {value:.0%} of groups all advantages are 0, so that only the answer is learned: "
    if means.get("reward_gain", 1.0) <= 0:
        return found + (
            "no trace makes the answer likelier than the empty one does; try --advantage.clip subtract, "
            "a larger --rollout.group-size, or easier questions"
        )
    return found + (
        "the K traces of a question are alike, or all right or all wrong; try a higher --rollout.temperature, a larger "
        "--rollout.group-size, or questions that are neither solved nor out of reach"
    )


def _unlearned(value: float, _) -> str:
    return (
        f"the reference answers' tokens are {1 - value:.0%} less likely than they were: updates destroy what the "
        "policy knew; try a lower --optimizer.learning-rate, more --optimizer.warmup-updates, or "
        "--loss.token-signal fixed"
    )


RULES = {
    "entropy_collapse": Rule("entropy", 0.01, 0.02, True, _entropy),
    "empty_traces": Rule("empty_trace_share", 0.5, 0.3, False, _empty),
    "truncated_traces": Rule("truncated_share", 0.5, 0.3, False, _truncated),
    "equal_rewards": Rule("equal_group_share", 0.9, 0.7, True, _equal),
    "answers_unlearned": Rule("token_prob", 0.9, 0.95, False, _unlearned, relative=True),
}
_SIGNS_OF_SUCCESS = ("answer_prob", "verified_share", "accuracy")


class Watch:
    """Sees the records of a run in order."""

    def __init__(self):
        self._windows: dict[str, collections.deque[float]] = {}
        self._highest: dict[str, float] = {}
        self._raised: set[str] = set()
        self._is_solved = False

    def see(self, record: Mapping[str, Any]) -> list[Alarm]:
        """The alarms that this step's record raises."""
        for name in {rule.metric for rule in RULES.values()} | {"reward_gain", *_SIGNS_OF_SUCCESS}:
            if record.get(name) is not None:
                size = 1 if name == "accuracy" else WINDOW  # It is a mean of its own, and rare.
                self._windows.setdefault(name, collections.deque(maxlen=size)).append(record[name])
        first = {name: window[0] for name, window in self._windows.items() if name not in self._highest}
        full = {name: window for name, window in self._windows.items() if len(window) == window.maxlen}
        means = {name: sum(window) / len(window) for name, window in full.items()}
        self._highest |= {n: max(value, self._highest.get(n, value)) for n, value in (first | means).items()}
        limit = UNSOLVED if self._is_solved else SOLVED
        self._is_solved = any(means.get(name, 0.0) >= limit for name in _SIGNS_OF_SUCCESS)
        raised = []
        for name, rule in RULES.items():
            if rule.metric not in means:
                continue
            value, was_raised = means[rule.metric], name in self._raised
            if rule.relative:
                value /= self._highest[rule.metric] or 1.0
            holds = rule.holds(value, is_raised=was_raised) and not (rule.unless_solved and self._is_solved)
            (self._raised.add if holds else self._raised.discard)(name)
            if holds and not was_raised:
                raised.append(Alarm(record["step"], name, value, rule.message(value, means)))
        return raised


def find_alarms(records: Iterable[Mapping[str, Any]]) -> list[Alarm]:
    """All alarms of a run, given its metrics."""
    watch = Watch()
    return [alarm for record in records for alarm in watch.see(record)]


class AlarmFile:
    """Says each alarm once, and writes it to `alarms.jsonl`, whose lines are `dataclasses.asdict` of an `Alarm`."""

    def __init__(self, folder: pathlib.Path, log: Callable[[str], None], earlier: Sequence[Mapping[str, Any]] = ()):
        """Goes on after the records of an earlier part of the run.

        Args:
            folder: The run's.
            log: Takes lines meant for a person.
            earlier: Records of `metrics.jsonl` that stand; what was written of later ones is dropped.
        """
        self._path, self._log, self._watch, self._seen = folder / ALARMS_FILE, log, Watch(), 0
        for record in earlier:
            self._watch.see(record)
            self._seen = record["step"]
        if jax.process_index() == 0:
            truncate_records(self._path, self._seen)

    def check(self, record: Mapping[str, Any] | None) -> None:
        """Takes the record of a step, once or several times."""
        if record is None or record["step"] <= self._seen:
            return
        self._seen = record["step"]
        for alarm in self._watch.see(record):
            self._log(f"warning: step {alarm.step}: {alarm.message}")
            if jax.process_index() == 0:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(dataclasses.asdict(alarm)) + "\n")
