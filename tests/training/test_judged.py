"""A judge's score as a reward: what a step is rewarded with is what the judge says elsewhere of the same answers."""

import dataclasses
import json
import threading
import time

import jax
import numpy as np
import pytest

from nrt_jax import tasks
from nrt_jax.data.encode import TextConfig
from nrt_jax.data.formats import TraceFormatConfig
from nrt_jax.errors import UserError
from nrt_jax.evaluation import EvaluationConfig
from nrt_jax.parallel import MeshConfig
from nrt_jax.rewards import Judge, JudgeConfig
from nrt_jax.rollout import engine
from nrt_jax.training import loop, setup
from nrt_jax.training.config import ReferenceConfig, RewardConfig, RolloutConfig, TrainConfig
from nrt_jax.training.judged import load_judge
from nrt_jax.training.metrics import METRICS_FILE, read_metrics
from nrt_jax.training.optimizer import make_optimizer
from nrt_jax.training.scorer import Scorer
from nrt_jax.training.state import create_state
from nrt_jax.training.step import sampling_config
from nrt_jax.training.traces import TRACES_FILE
from tests.fixtures_run import write_rows, write_run

JUDGE = JudgeConfig(thoughts=2, max_thought_length=8, batch_size=8, trace=TraceFormatConfig())
CONFIG = TrainConfig(
    data=("clock",),
    steps=1,
    updates_per_step=1,
    text=TextConfig(max_prompt_length=256, max_answer_length=24),
    dataset=dataclasses.replace(TrainConfig().dataset, size=8),
    rollout=RolloutConfig(prompts=4, group_size=2, max_trace_length=24, chunk_size=24),
    reward=RewardConfig(intrinsic=0.0, judge=1.0),
    judge=JUDGE,
    advantage=dataclasses.replace(TrainConfig().advantage, clip="none"),
    evaluation=EvaluationConfig(questions=4, batch_size=4, examples=0),
)
KINDS = {
    "policy": CONFIG,
    "reference": dataclasses.replace(
        CONFIG, judge=dataclasses.replace(JUDGE, model="reference"), reference=ReferenceConfig(kind="initial")
    ),
    "checkpoint": dataclasses.replace(CONFIG, judge=dataclasses.replace(JUDGE, model="tiny")),
    "apart": dataclasses.replace(
        CONFIG, mesh=MeshConfig(data=2), judge=dataclasses.replace(JUDGE, model="tiny", devices=4, tensor=2)
    ),
}


@pytest.fixture(scope="module")
def sampled():
    """Rows of a step, and what the policy answers to them: tokens [4, 2, Z] and their number."""
    made = setup.prepare(CONFIG)
    rows = made.train[:4]
    sampling = sampling_config(CONFIG.rollout, made.trace_format, made.train.longest_answer)
    rollout = engine.sample(made.model, made.params, made.encoder.batch(rows).prompts, jax.random.key(0), sampling)
    return rows, np.asarray(rollout.tokens), np.asarray(rollout.mask).sum(-1)


def scorer_of(config, rows) -> tuple[setup.Setup, Scorer]:
    made = setup.prepare(config)
    state = create_state(made.params, make_optimizer(config.optimizer, 1), **loop.state_parts(config))
    return made, Scorer.of(config, made, rows, made.copies(state.params), state)


@pytest.mark.parametrize(
    ("kind", "score"),
    [*((kind, score) for kind in KINDS if kind != "apart" for score in ("soft", "vote")), ("apart", "soft")],
)
def test_the_reward_is_what_the_same_judge_says_of_the_same_answers_elsewhere(sampled, kind, score):
    rows, tokens, lengths = sampled
    config = dataclasses.replace(KINDS[kind], judge=dataclasses.replace(KINDS[kind].judge, score=score))
    made, scorer = scorer_of(config, rows)
    rewards = scorer(tokens, lengths)
    assert rewards.keys() == {"judge"}
    read = {i: made.rules.read(tokens[i][: lengths[i]]) for i in np.ndindex(4, 2)}
    answers = {i: (rows[i[0]].example.question, c.answer) for i, c in read.items() if c.answer is not None}
    assert len(answers) > 2
    offline = load_judge(dataclasses.replace(config.judge, model="tiny"))
    said = dict(zip(answers, offline.judge(list(answers.values())), strict=True))
    for i in np.ndindex(4, 2):
        expected = said[i].score(score) if i in said else 0.0
        assert rewards["judge"][i] == pytest.approx(expected, abs=1e-5)
    is_right = [read[i].answer.strip() == rows[i[0]].example.answer for i in answers]
    agreed = [
        {True: 1, False: 0}[right] == (said[i].vote if score == "vote" else int(said[i].soft > 0.5))
        for i, right in zip(answers, is_right, strict=True)
    ]  # No verdict agrees with none.
    assert scorer.metrics == {
        "judge_accuracy": pytest.approx(np.mean(agreed)),
        "judge_unparseable": pytest.approx(sum(j.num_unparseable for j in said.values()) / (2 * len(said))),
    }


def test_a_judge_has_the_devices_behind_those_that_train_to_itself():
    made = setup.prepare(KINDS["apart"])
    devices = jax.devices()
    copies = [{device for leaf in jax.tree.leaves(copy) for device in leaf.devices()} for copy in made.judge.params]
    assert copies == [{devices[2], devices[3]}, {devices[4], devices[5]}]
    assert {device for leaf in jax.tree.leaves(made.params) for device in leaf.devices()} == {devices[0], devices[1]}


def test_a_judge_apart_judges_what_is_done_while_the_rest_is_sampled_and_nothing_twice(monkeypatch):
    """The rewards are those of one call."""
    asked, judge = [], Judge.judge

    def spy(self, responses):
        asked.append((threading.current_thread() is threading.main_thread(), responses))
        return judge(self, responses)

    monkeypatch.setattr(Judge, "judge", spy)
    rewards = []
    for devices in (2, 0):
        config = dataclasses.replace(
            CONFIG,
            rollout=dataclasses.replace(CONFIG.rollout, max_rows=2),
            judge=dataclasses.replace(JUDGE, model="tiny", devices=devices),
        )
        made = setup.prepare(config)
        state = create_state(made.params, make_optimizer(config.optimizer, 1), **loop.state_parts(config))
        outcome = loop._rollout(config, made, state, made.train[:4], jax.random.key(0))[2]
        rewards.append(np.asarray(outcome.rewards["judge"]))
    np.testing.assert_allclose(*rewards, atol=1e-5)
    *ahead, (is_main, rest), (_, at_once) = asked
    assert len(ahead) > 1 and not any(on_main for on_main, _ in ahead)
    assert is_main and rest == []
    assert sorted(response for _, part in ahead for response in part) == sorted(at_once)


def test_a_step_that_fails_does_not_wait_for_parts_that_were_not_begun():
    scorer, go, fetched = Scorer(CONFIG, None, [], None), threading.Event(), []
    for i in range(2):
        scorer.begin(np.arange(1), lambda i=i: (fetched.append(i), go.wait(), 1 / 0))
    while not fetched:
        time.sleep(0.01)
    scorer.close()
    go.set()
    scorer._ahead.shutdown(wait=True)
    assert fetched == [0]


def test_a_judge_is_told_the_turns_before_a_question(sampled):
    rows, tokens, lengths = sampled
    chats = [
        dataclasses.replace(
            row, example=dataclasses.replace(row.example, history=(("user", f"{i}"), ("assistant", "so")))
        )
        for i, row in enumerate(rows)
    ]
    _, scorer = scorer_of(CONFIG, chats)
    asked = []
    scorer.judge = type("Deaf", (), {"judge": lambda self, responses: asked.extend(responses) or 1 / 0})()
    with pytest.raises(ZeroDivisionError):
        scorer(tokens, lengths)
    told = {question for question, _ in asked}
    assert told and told <= {f"{i}\nso\n{row.example.question}" for i, row in enumerate(rows)}


def test_without_an_answer_nobody_is_asked_and_the_reward_is_nothing(sampled):
    rows, tokens, lengths = sampled
    made, scorer = scorer_of(CONFIG, rows)
    delimiter = made.trace_format.delimiter
    silent = np.where(tokens == delimiter, made.trace_format.eos, tokens)
    scorer.judge = type("Nobody", (), {"judge": lambda self, responses: [] if not responses else 1 / 0})()
    np.testing.assert_array_equal(scorer(silent, lengths)["judge"], np.zeros((4, 2)))


def test_a_run_without_labels_learns_from_its_own_verdicts_on_whole_answers(tmp_path):
    """A dummy reference of one token does not say how long an answer may be."""
    rows = [dataclasses.replace(e, answer="-") for e in tasks.get("clock").examples(8, 0)]
    config = dataclasses.replace(CONFIG, data=(str(write_rows(tmp_path / "rows.jsonl", rows)),))
    made = setup.prepare(config)
    assert made.limits.answer == config.text.max_answer_length
    loop.train(config, made, tmp_path / "run", log=lambda _: None)
    (record,) = read_metrics(tmp_path / "run" / METRICS_FILE)
    assert 0 <= record["reward"] <= 1
    assert 0 <= record["judge_accuracy"] <= 1 and 0 <= record["judge_unparseable"] <= 1
    groups = [json.loads(line) for line in (tmp_path / "run" / TRACES_FILE).read_text().splitlines()]
    longest = max(trace["tokens"] for group in groups for trace in group["traces"])
    assert longest > config.rollout.max_trace_length + 1 + made.train.longest_answer


@pytest.mark.parametrize(
    ("reward", "audit", "longest"),
    [
        (RewardConfig(), True, 5),
        (RewardConfig(intrinsic=0.0, verifiable=1.0), True, 5),
        (RewardConfig(intrinsic=0.0, verifiable=1.0, judge=1.0), True, 5),
        (RewardConfig(intrinsic=0.0, judge=1.0), True, 24),
        (RewardConfig(judge=1.0), False, 24),
    ],
)
def test_references_say_how_long_an_answer_may_be_only_where_a_reward_looks_at_them(reward, audit, longest):
    config = dataclasses.replace(CONFIG, reward=reward, judge=dataclasses.replace(JUDGE, audit=audit))
    assert config.max_answer_length(5) == longest
    assert dataclasses.replace(config, rollout=RolloutConfig(max_answer_length=9)).max_answer_length(5) == 9


def test_a_runs_judge_is_asked_as_it_was_trained_but_for_what_the_user_says(tmp_path, monkeypatch):
    trained = {"text": {"template": "Q: {question}", "system": "s"}, "trace": {"closing": "<|response_start|>"}}
    model = write_run(tmp_path / "run", monkeypatch, **trained)
    same = load_judge(JudgeConfig(model)).encoder
    assert (same.config.template, same.config.system, same.format.opening) == ("Q: {question}", "s", ())
    asked = JudgeConfig(
        model, text=TextConfig(template="{question}?"), trace=TraceFormatConfig("<think>", "</answer>", "any")
    )
    other = load_judge(asked).encoder
    assert (other.config.template, other.config.system) == ("{question}?", "s")
    assert other.tokenizer.decode([other.format.delimiter]) == "</answer>" and other.format != same.format


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"judge": dataclasses.replace(JUDGE, model="reference")}, "reference.kind"),
        ({"judge": dataclasses.replace(JUDGE, thoughts=0)}, "judge.thoughts"),
        ({"reward": RewardConfig(intrinsic=0.0, judge=float("nan"))}, "reward"),
        ({"judge": dataclasses.replace(JUDGE, model="no/such/folder")}, "no/such/folder"),
        ({"judge": dataclasses.replace(JUDGE, devices=2)}, "judge.devices: 2 cannot work; expected 0 unless"),
        ({"judge": dataclasses.replace(JUDGE, model="tiny", devices=3, tensor=2)}, "judge.tensor: 2 .* divisor of 3"),
        ({"judge": dataclasses.replace(JUDGE, model="tiny", tensor=2)}, "judge.tensor: 2 .* 1 without --judge.devices"),
        (
            {"judge": dataclasses.replace(JUDGE, model="tiny", devices=99)},
            "rollout.devices: 1 cannot work; expected at most 0, the devices of this process less 99 for others",
        ),
    ],
)
def test_judges_that_cannot_be_asked_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        setup.prepare(dataclasses.replace(CONFIG, **changes))
