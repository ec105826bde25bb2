"""A whole run on a tiny random model: what it leaves behind, that it resumes exactly, and every objective."""

import dataclasses
import functools
import json
import sys

import chex
import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nrt_jax import hf
from nrt_jax.data.formats import TraceFormatConfig
from nrt_jax.errors import UserError
from nrt_jax.evaluation import summarise
from nrt_jax.training import loop
from nrt_jax.training.checkpoint import Checkpointer
from nrt_jax.training.config import CheckpointConfig, RewardConfig, TrainConfig
from nrt_jax.training.metrics import read_metrics
from nrt_jax.training.optimizer import make_optimizer
from nrt_jax.training.setup import prepare
from nrt_jax.training.state import abstract_state
from tests.fixtures_run import examples, records, write_config, write_rows


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> TrainConfig:
    return write_config(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """A run of three steps: its folder, its summary and what it said."""
    jax.clear_caches()  # It counts its programs, which a test before may have compiled.
    folder, lines = tmp_path_factory.mktemp("runs") / "finished", []
    return folder, run(config, folder, lines.append), lines


def run(config: TrainConfig, folder, log=lambda line: None) -> dict:
    return loop.train(config, prepare(config), folder, log)


def final_state(config: TrainConfig, folder):
    """The last checkpoint of a run."""
    optimizer = make_optimizer(config.optimizer, config.steps * config.updates_per_step)
    with Checkpointer(folder / "checkpoints") as checkpoints:
        assert checkpoints.latest_step() == config.steps
        return checkpoints.restore(abstract_state(prepare(config).params, optimizer))[0]


def test_run_folder_holds_config_metrics_checkpoints_answers_and_export(config, finished):
    folder, _, _ = finished
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.json", "metrics.jsonl", "summary.json", "checkpoints", "model", "hf", "tensorboard",
                     "answers_before.jsonl", "answers_after.jsonl", "traces.jsonl", "environment.jsonl",
                     "report.html"}  # fmt: skip
    assert json.loads((folder / "config.json").read_text())["rollout"]["group_size"] == 2
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {p.name for p in (folder / "hf").iterdir()}


def test_each_step_is_recorded_once_with_finite_numbers_and_evaluated_when_asked(finished):
    found = records(finished[0])
    assert [record["step"] for record in found] == [1, 2, 3]
    assert all(np.isfinite(value) for record in found for value in record.values())
    assert [("accuracy" in record) for record in found] == [False, True, False]
    for name in ("reward", "entropy", "trace_length", "empty_trace_share", "loss", "gradient_norm"):
        assert all(name in record for record in found), name


def test_kept_traces_are_those_of_the_step(config, finished):
    """Of the first step, which is always kept: groups of K, advantages and rewards in one order, y*'s own tokens."""
    folder, _, _ = finished
    groups = [json.loads(line) for line in (folder / "traces.jsonl").read_text().splitlines()]
    assert [group["step"] for group in groups] == [1, 1]
    known = {e.question: e.answer for e in examples(12)}
    for group in groups:
        assert group["reference"] == known[group["question"]]
        assert "".join(group["reference_tokens"]).startswith(group["reference"])
        num = len(group["reference_tokens"])
        assert len(group["base_log_probs"]) == num and max(group["base_log_probs"]) <= 0
        assert len(group["traces"]) == config.rollout.group_size
        for name in ("advantage", "reward"):
            values = [trace[name] for trace in group["traces"]]
            assert values == sorted(values, reverse=True)
        for trace in group["traces"]:
            assert len(trace["log_probs"]) == num and trace["tokens"] <= config.rollout.max_trace_length
            likelier = sum(np.exp(trace["log_probs"]) - np.exp(group["base_log_probs"]))
            assert np.isfinite(likelier) and trace["finished"] in (True, False)


def test_the_report_says_what_the_folder_holds(finished):
    folder, _, _ = finished
    text = (folder / "report.html").read_text()
    assert f'"name": "{folder.name}"' in text and "answers_unlearned" not in text
    start = json.loads((folder / "environment.jsonl").read_text())
    assert start["step"] == 0 and start["jax"] == jax.__version__ and start["code"] in text


def test_a_run_computes_with_resolved_numbers_and_keeps_what_was_asked_for(config, tmp_path, monkeypatch):
    """The most that a row samples is trace, delimiter and the longest answer that the data know."""
    asked, used = dataclasses.replace(config, loss=dataclasses.replace(config.loss, constant=0.0)), []
    asked = dataclasses.replace(asked, reward=RewardConfig(intrinsic=0.0, verifiable=1.0))
    monkeypatch.setattr(loop, "_answers_before", lambda config, *_: used.append(config) or sys.exit())
    with pytest.raises(SystemExit):
        run(asked, tmp_path)
    longest = prepare(asked).train.longest_answer
    assert used == [asked.resolve(longest)] != [asked]
    assert used[0].loss.constant == asked.rollout.max_trace_length + 1 + longest
    assert json.loads((tmp_path / "config.json").read_text())["loss"]["constant"] == 0


def test_padding_and_programs_are_logged(finished):
    found = read_metrics(finished[0] / "metrics.jsonl")
    assert all(0 < record["padding_share"] < 1 for record in found)
    programs = [record["compiled_programs"] for record in found]
    assert programs[0] > 0 and programs == sorted(programs)


def test_before_any_update_the_learner_is_the_sampler(finished):
    for record in records(finished[0]):
        assert abs(record["sampler_trainer_kl"]) < 1e-6
        assert record["clip_fraction"] == 0


def test_summary_compares_before_and_after(finished):
    folder, summary, lines = finished
    assert json.loads((folder / "summary.json").read_text()) == summary
    for name in ("accuracy", "accuracy_empty_trace", "answer_prob"):
        for when in ("before", "after"):
            assert 0 <= summary[f"{name}_{when}"] <= 1
    assert summary["steps"] == 3 and summary["questions"] == 4
    assert 0 < summary["seconds"] < 600
    assert 1e7 < summary["peak_memory_bytes"] < 1e11
    assert any("before training, on 4 held-out questions" in line for line in lines)
    assert any("after training, on 4 held-out questions" in line for line in lines)


def test_answers_of_every_held_out_question_are_kept_and_sum_up_to_the_summary(finished):
    folder, summary, _ = finished
    for when in ("before", "after"):
        answered = loop.read_answers(folder / f"answers_{when}.jsonl")
        assert [a.question for a in answered] == [e.question for e in examples(4, start=50)]
        for name, value in summarise(answered).items():
            assert summary[f"{name}_{when}"] == pytest.approx(value)
    assert summary["token_prob_after"] != summary["token_prob_before"]


def test_transformers_loads_the_export_and_gives_the_trained_models_logits(config, finished):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, _, _ = finished
    model, params, _ = hf.load(folder / "hf")
    chex.assert_trees_all_equal(params, final_state(config, folder).params)
    ids = AutoTokenizer.from_pretrained(folder / "hf").encode("<bos>What is 50 plus 3?\n")
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(folder / "hf")(torch.tensor([ids])).logits.numpy()
    assert np.isfinite(logits).all()
    np.testing.assert_allclose(logits, model.logits(params, np.array([ids])), atol=1e-4)


def test_training_leaves_no_parameter_as_it_was(config, finished):
    before, after = prepare(config).params, final_state(config, finished[0]).params
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), before, after)
    assert jax.tree.all(changed), changed


@pytest.fixture(scope="module")
def uninterrupted(config, tmp_path_factory):
    four = dataclasses.replace(config, steps=4)
    folder = tmp_path_factory.mktemp("runs") / "uninterrupted"
    run(four, folder)
    return four, folder


def assert_same_run(config, folder, other):
    chex.assert_trees_all_equal(final_state(config, folder), final_state(config, other))
    assert records(folder) == records(other)
    for name in ("answers_before.jsonl", "answers_after.jsonl", "traces.jsonl"):
        assert (folder / name).read_text() == (other / name).read_text()


def test_run_that_ended_and_goes_on_equals_one_that_never_stopped(uninterrupted, tmp_path):
    config, folder = uninterrupted
    run(dataclasses.replace(config, steps=2), tmp_path)
    lines = []
    run(config, tmp_path, lines.append)
    assert any(line.startswith("resumed at step 2") for line in lines)
    assert_same_run(config, tmp_path, folder)


def test_run_that_dies_after_its_last_checkpoint_repeats_the_lost_steps(uninterrupted, tmp_path, monkeypatch):
    config, folder = uninterrupted
    sparse = dataclasses.replace(config, checkpoint=CheckpointConfig(every=2))
    step = loop._step

    def dies_in_the_fourth(*args):
        if args[-1] == 3:
            raise KeyboardInterrupt
        return step(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "_step", dies_in_the_fourth)
        run(sparse, tmp_path)
    assert [record["step"] for record in records(tmp_path)] == [1, 2, 3]  # the third has no checkpoint
    assert not (tmp_path / "summary.json").exists()
    run(sparse, tmp_path)
    assert_same_run(sparse, tmp_path, folder)


@pytest.fixture(scope="module")
def mixed(config, tmp_path_factory):
    """A run of four steps on a mixture of a JSONL and a Parquet file with bad rows in them."""
    folder = tmp_path_factory.mktemp("mixed")
    lines = write_rows(folder / "rows.jsonl", examples(12)).read_text() + "not JSON\n"
    (folder / "rows.jsonl").write_text(lines)
    chats = [
        [{"role": "user", "content": e.question}, {"role": "assistant", "content": e.answer}]
        for e in examples(7, start=20)
    ]
    table = pa.table({"messages": [chats[0][:1], *chats]})  # nobody answers the first
    pq.write_table(table, folder / "chats.parquet", row_group_size=3)
    dataset = dataclasses.replace(config.dataset, weights=(2.0, 1.0))
    data = (str(folder / "rows.jsonl"), str(folder / "chats.parquet"))
    mixed = dataclasses.replace(config, data=data, dataset=dataset, steps=4)
    run(mixed, folder / "run")
    return mixed, folder / "run"


def test_run_on_a_mixture_of_files_goes_on_exactly_and_with_any_number_of_workers(mixed, tmp_path):
    config, folder = mixed
    run(dataclasses.replace(config, steps=2), tmp_path)
    run(dataclasses.replace(config, dataset=dataclasses.replace(config.dataset, workers=2)), tmp_path)
    assert_same_run(config, tmp_path, folder)


def test_run_whose_data_have_changed_does_not_go_on(mixed, tmp_path):
    config, _ = mixed
    path = write_rows(tmp_path / "rows.jsonl", examples(12))
    short = dataclasses.replace(config, data=(str(path), config.data[1]))
    run(dataclasses.replace(short, steps=1), tmp_path / "run")
    for text, rows in ((path.read_text() + path.read_text(), 24), (path.read_text().replace("11 plus", "12 plus"), 12)):
        path.write_text(text)
        with pytest.raises(
            UserError,
            match=rf"rows are \['{rows} rows \w+', '7 rows (\w+)'\], but were \['12 rows \w+', '7 rows \1'\] when",
        ):
            run(short, tmp_path / "run")


def test_finished_run_called_again_changes_nothing(config, finished):
    folder, summary, _ = finished
    before = records(folder)
    again = run(config, folder)
    assert records(folder) == before
    timed = {"seconds", "peak_memory_bytes"}
    assert {k: v for k, v in again.items() if k not in timed} == {k: v for k, v in summary.items() if k not in timed}


@pytest.mark.parametrize("objective", ["sft", "sft_with_trace"])
def test_supervised_objectives_raise_the_likelihood_of_the_answers_they_are_shown(config, objective, tmp_path):
    supervised = dataclasses.replace(config, objective=objective, steps=6)
    summary = run(supervised, tmp_path)
    losses = [record["loss"] for record in records(tmp_path)]
    assert losses[-1] < losses[0]
    assert "reward" not in records(tmp_path)[0]
    assert summary["token_prob_empty_trace_after"] > summary["token_prob_empty_trace_before"]


def test_each_process_takes_its_part_of_a_batch(config, tmp_path, monkeypatch):
    taken = []

    def step(*args):
        taken.append([row.example for row in args[4]])
        raise KeyboardInterrupt

    class Seen:
        """JAX as the loop sees it in process `index` of `count`; the rest of the run has one."""

        def __init__(self, index, count):
            self.process_index, self.process_count = (lambda: index), (lambda: count)

        def __getattr__(self, name):
            return getattr(jax, name)

    monkeypatch.setattr(loop, "_step", step)
    for index, count in ((0, 1), (0, 2), (1, 2)):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(loop, "jax", Seen(index, count))
            run(config, tmp_path / f"{index}{count}")
    alone, first, second = taken
    assert len(first) == len(second) == 2 and first + second == alone


def test_no_demonstration_is_longer_than_the_model_has_positions(config, tmp_path, monkeypatch):
    """A trace of 300 numbers, for a run that may use 40 tokens a sample."""
    rows = [dataclasses.replace(e, trace="1 " * 300) for e in examples(12)]
    limited = dataclasses.replace(
        config,
        objective="sft_with_trace",
        data=(str(write_rows(tmp_path / "long.jsonl", rows)),),
        rollout=dataclasses.replace(config.rollout, max_length=40),
    )
    shapes, lengths = [], []

    def update(state, batch, *_, **__):
        shapes.append(batch.tokens.shape)
        lengths.extend(batch.prompts.mask.sum(-1) + batch.masks.reference.sum((-2, -1)))
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "update", update)
    with pytest.raises(KeyboardInterrupt):
        run(limited, tmp_path / "run")
    assert lengths == [40] * 4 and shapes == [(4, 1, 40)]


def test_several_updates_and_micro_batches_a_step(config, tmp_path):
    split = dataclasses.replace(config, updates_per_step=2, micro_batches=2, steps=2)
    run(split, tmp_path)
    for record in records(tmp_path):
        assert abs(record["sampler_trainer_kl"]) < 1e-6  # of the first update
        assert record["approximate_kl"] > 1e-6  # of the last: the policy has moved since it sampled
        assert 0 <= record["clip_fraction"] <= 1


def test_think_tags_run_and_the_export_knows_them(config, tmp_path):
    trace = TraceFormatConfig("<think>", "</think>", add_tokens="never")
    tags = dataclasses.replace(config, trace=trace, steps=2)
    run(tags, tmp_path)
    assert [record["step"] for record in records(tmp_path)] == [1, 2]
    setup = prepare(tags)
    opening, delimiter = (hf.token_id(hf.load_tokenizer(tmp_path / "hf"), t) for t in ("<think>", "</think>"))
    assert (setup.trace_format.opening, setup.trace_format.delimiter) == ((opening,), delimiter)
    assert all(row.prompt[-1] == opening for row in [*setup.train, *setup.held_out])


def test_what_a_resumed_run_may_change_are_fields():
    for name in loop.MAY_CHANGE:
        functools.reduce(getattr, name.split("."), TrainConfig())
