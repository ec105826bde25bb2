"""Alarms of collapse, on curves made by hand and on the metrics of the embedded run."""

import json
import pathlib

import pytest

from nrt_jax.training.alarms import ALARMS_FILE, WINDOW, AlarmFile, find_alarms

HEALTHY = pathlib.Path(__file__).parent / "embedded_metrics.json"


def curve(**metrics):
    """Records of a run, given each metric's values."""
    return [
        {"step": i, **dict(zip(metrics, values, strict=True))}
        for i, values in enumerate(zip(*metrics.values(), strict=True), 1)
    ]


def names(records):
    return [alarm.name for alarm in find_alarms(records)]


def test_the_embedded_run_raises_none():
    """The default run, which solves its task: entropy falls to 0.005 and nearly all groups end up equal."""
    columns = json.loads(HEALTHY.read_text())
    records = curve(**columns)
    assert len(records) == 100 and records[-1]["entropy"] < 0.01 and records[-1]["equal_group_share"] > 0.8
    assert names(records) == []
    assert names(curve(**columns | {"answer_prob": [0.1] * 100})) == ["entropy_collapse", "equal_rewards"]


@pytest.mark.parametrize(
    ("name", "metric", "low", "high"),
    [
        ("entropy_collapse", "entropy", 0.5, 0.001),
        ("empty_traces", "empty_trace_share", 0.1, 0.9),
        ("truncated_traces", "truncated_share", 0.1, 0.9),
        ("equal_rewards", "equal_group_share", 0.2, 1.0),
        ("answers_unlearned", "token_prob", 0.9, 0.5),
    ],
)
def test_each_collapse_is_told_once_and_again_when_it_comes_back(name, metric, low, high):
    once = [low] * 20 + [high] * 30
    (alarm,) = find_alarms(curve(**{metric: once}))
    assert alarm.name == name and 20 < alarm.step <= 20 + WINDOW
    assert "; try " in alarm.message or " try " in alarm.message
    assert names(curve(**{metric: once + [low] * 20 + [high] * 20})) == [name, name]


def test_a_mean_between_the_two_thresholds_is_no_news():
    values = [0.9] * 15 + [0.4, 0.55] * 20  # Raised above 0.5, over below 0.3.
    assert names(curve(empty_trace_share=values)) == ["empty_traces"]
    assert names(curve(empty_trace_share=[0.1] * 15 + [0.4, 0.55] * 20)) == []


def test_a_short_dip_raises_nothing():
    values = [0.5] * 20 + [0.0] * (WINDOW - 2) + [0.5] * 20
    assert names(curve(entropy=values)) == []


def test_answers_that_were_learned_and_lost_are_told():
    assert names(curve(token_prob=[0.2] * 15 + [0.9] * 15 + [0.6] * 15)) == ["answers_unlearned"]


def test_equal_groups_have_their_cause_named():
    still = curve(equal_group_share=[1.0] * 12, reward_gain=[-0.1] * 12)
    alike = curve(equal_group_share=[1.0] * 12, reward_gain=[0.1] * 12)
    assert "--advantage.clip" in find_alarms(still)[0].message
    assert "--rollout.temperature" in find_alarms(alike)[0].message


def test_numbers_that_are_not_finite_are_passed_over():
    assert names(curve(entropy=[None] * 30)) == []
    assert names(curve(entropy=[0.001, None] * 12)) == ["entropy_collapse"]


def test_alarms_are_written_once_and_follow_a_resumed_run(tmp_path):
    records = curve(entropy=[0.001] * 15)
    lines = []
    first = AlarmFile(tmp_path, lines.append)
    for record in records:
        first.check(record)
        first.check(record)
    written = (tmp_path / ALARMS_FILE).read_text()
    assert len(lines) == 1 and json.loads(written)["step"] == WINDOW
    resumed = AlarmFile(tmp_path, lines.append, records[: WINDOW - 2])  # The alarm's step is done again.
    assert (tmp_path / ALARMS_FILE).read_text() == ""
    for record in records[WINDOW - 2 :]:
        resumed.check(record)
    assert (tmp_path / ALARMS_FILE).read_text() == written and len(lines) == 2
    AlarmFile(tmp_path, lines.append, records)
    assert (tmp_path / ALARMS_FILE).read_text() == written and len(lines) == 2
