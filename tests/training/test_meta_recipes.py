"""The recipes of the meta-ability paper have its numbers and run as they stand."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from launch import cli
from nrt_jax.checkpoints import load
from nrt_jax.data import Example
from nrt_jax.objectives import group_advantage
from nrt_jax.rewards import Completion, get_verifier
from nrt_jax.tasks import SYSTEM_PROMPT
from nrt_jax.training import loop, setup
from nrt_jax.training.config import TrainConfig
from tests.fixtures_run import CHAT_TEMPLATE, examples, write_model, write_rows

SPECIALISTS = ("deduction", "induction", "abduction")
#: What makes a run small; the method stays.
SMALL = (
    "--steps 2 --updates-per-step 1 --micro-batches 1 --dtype float32 --remat none --rollout.prompts 2 "
    "--rollout.max-rows 0 --rollout.max-trace-length 8 --rollout.max-answer-length 8 --dataset.size 8 "
    "--evaluation.questions 2 --evaluation.batch-size 2 --evaluation.every 0 --optimizer.warmup-updates 0"
)


def recipe(name: str, *args) -> TrainConfig:
    return cli.parse(TrainConfig, "prog", "", args=["--config", f"meta/{name}", *map(str, args)])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random Llama whose chat template takes a system turn."""
    folder = write_model(tmp_path_factory.mktemp("meta") / "model")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return folder


@pytest.mark.parametrize("name", (*SPECIALISTS, "domain"))
def test_numbers_are_the_papers(name):
    config = recipe(name)
    config.validate()
    assert config.rollout.group_size == 4 and config.rollout.temperature == 0.7
    assert config.optimizer.learning_rate == 5e-7 and config.loss.kl_weight == 1e-3
    assert config.reference.kind == "initial" and config.advantage.scale == "std"
    assert config.trace.opening == "<think>" and config.trace.closing == "</think>"
    assert config.verifier.answer_tag == "answer" and config.text.system == SYSTEM_PROMPT
    scores = [config.verifier.score(verdict) for verdict in (1.0, 0.0, None)]
    assert scores == [2.0, -1.5, -2.0] and config.reward.verifiable == 1.0 and config.reward.intrinsic == 0.0
    if name in SPECIALISTS:
        assert config.data == (name,) and config.dataset.level == "1" and config.verifier.name == name


def test_hints_go_with_answers_in_tags():
    recipe("domain", "--hints.steps", 4, "--rollout.group-size", 12).validate()


def test_format_worth_two_or_nothing_gives_the_advantages_of_plus_and_minus_one():
    config, rng = recipe("deduction"), np.random.default_rng(0)
    answer = rng.choice([2.0, -1.5, -2.0], (16, 4))
    is_formed = rng.random((16, 4)) < 0.5
    papers = answer + np.where(is_formed, 1.0, -1.0)
    ours = config.reward.verifiable * answer + config.reward.format * is_formed
    np.testing.assert_allclose(group_advantage(ours), group_advantage(papers), atol=1e-6)


def test_what_is_judged_stands_in_the_answer_tags():
    verify = get_verifier("deduction")
    example = Example("..", "A=true, B=false")
    assert [verify(example, Completion("", text, True)) for text in ("B=false, A=true", "A=true, B=true", "A")] == [
        1.0,
        0.0,
        None,
    ]


def run(config: TrainConfig, folder) -> list[dict]:
    loop.train(config, setup.prepare(config), folder, log=lambda _: None)
    return [json.loads(line) for line in (folder / "answers_after.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("tag", ["", "answer"])
def test_the_longest_reference_fits_into_what_is_sampled_with_its_tags(model, tag):
    config = recipe("abduction", "--model", model, *SMALL.split(), "--verifier.answer-tag", tag)
    given = dataclasses.replace(config.rollout, max_answer_length=0)
    made = setup.prepare(dataclasses.replace(config, rollout=given))
    rows = [*made.train, *made.held_out]
    answers = [f"<{tag}>{row.example.answer}</{tag}>" if tag else row.example.answer for row in rows]
    lengths = [len(made.tokenizer(text, add_special_tokens=False).input_ids) + 1 for text in answers]
    assert max(lengths) == made.limits.answer
    assert setup.prepare(config).limits.answer == config.rollout.max_answer_length == 8


def test_a_specialist_runs_and_level_2_goes_on_from_level_1(model, tmp_path):
    first = recipe("deduction", "--model", model, *SMALL.split())
    prepared = setup.prepare(first)
    prompt = prepared.tokenizer.decode(prepared.held_out[0].prompt)
    assert prompt.startswith(f"<bos>[system] {SYSTEM_PROMPT}\n[user] Each of A, B, C, D is") and prompt.endswith(
        "<think>"
    )
    answered = run(first, tmp_path / "level1")
    second = recipe("deduction", "--model", tmp_path / "level1" / "hf", "--dataset.level", 2, *SMALL.split())
    start, last = setup.prepare(second).params, load(tmp_path / "level1")[1]
    assert all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (start, last)), strict=True))
    harder = run(second, tmp_path / "level2")
    assert all("Each of A, B, C, D is" in row["question"] for row in answered)
    assert all("Each of A, B, C, D, E, F is" in row["question"] for row in harder)


@pytest.mark.parametrize("name", ["induction", "abduction", "domain"])
def test_the_other_recipes_find_model_and_data(name, model, tmp_path):
    """They differ from the one that runs in their questions and verifier."""
    args = ["--model", model, *SMALL.split()]
    if name == "domain":
        rows = [dataclasses.replace(example, answer=str(i)) for i, example in enumerate(examples(24))]
        args += ["--data", write_rows(tmp_path / "rows.jsonl", rows)]
    prepared = setup.prepare(recipe(name, *args))
    assert prepared.tokenizer.decode(prepared.held_out[0].prompt).endswith("<think>") and len(prepared.train) >= 8
