"""Runs of direct preference optimisation: they start at the reference, raise the margin, resume, and fit a mesh."""

import dataclasses
import json
import math

import chex
import jax
import numpy as np
import pytest

from nrt_jax import hf
from nrt_jax.errors import Stopped, UserError
from nrt_jax.models import LoRAConfig
from nrt_jax.objectives import DPOConfig
from nrt_jax.parallel import MeshConfig
from nrt_jax.training import loop, preference
from nrt_jax.training.config import TrainConfig
from nrt_jax.training.optimizer import make_optimizer
from nrt_jax.training.preference import REFERENCE_FILE, row_keys
from nrt_jax.training.setup import prepare
from nrt_jax.training.state import create_state
from tests.fixtures_run import examples, records, write_config

DELIMITER, HELD_OUT = "<|response_start|>", 3


def pairs(num: int, start: int = 0) -> list[dict]:
    """Sums: the chosen completion works and is right, the rejected one is wrong; of some, neither has a trace."""
    rows = []
    for i, e in enumerate(examples(num, start=start)):
        trace = f"{e.trace}{DELIMITER}" if i % 3 else ""
        rows.append({"prompt": e.question, "chosen": trace + e.answer, "rejected": f"It is {i + 5}."})
    return rows


def write_pairs(path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> TrainConfig:
    folder = tmp_path_factory.mktemp("inputs")
    config = write_config(folder)
    held_out = [*pairs(HELD_OUT, start=50), {"question": "What is 1 plus 3?", "answer": "It is 4."}]
    return dataclasses.replace(
        config,
        objective="dpo",
        data=(write_pairs(folder / "pairs.jsonl", pairs(12)),),
        dataset=dataclasses.replace(config.dataset, held_out=write_pairs(folder / "held_out.jsonl", held_out)),
        rollout=dataclasses.replace(config.rollout, prompts=12),
        optimizer=dataclasses.replace(config.optimizer, learning_rate=2e-3),
        evaluation=dataclasses.replace(config.evaluation, every=1, questions=4, batch_size=4, examples=0),
        checkpoint=dataclasses.replace(config.checkpoint, every=1, keep=3),
    )


def run(config: TrainConfig, folder, log=lambda line: None) -> dict:
    return loop.train(config, prepare(config), folder, log)


def params(folder):
    return hf.load_model(folder / "hf")[1]


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """A run of three steps: its folder and what it said."""
    folder, lines = tmp_path_factory.mktemp("runs") / "finished", []
    run(config, folder, lines.append)
    return folder, lines


def test_a_run_starts_at_the_reference_and_raises_the_margin(config, finished):
    folder, lines = finished
    first, *_, last = records(folder)
    assert first["loss"] == np.float32(math.log(2))
    for name in ("reward_chosen", "reward_rejected", "reward_margin", "preference_accuracy"):
        assert first[name] == 0
    assert first["log_prob_chosen"] < 0 and first["log_prob_rejected"] < 0
    assert last["loss"] < first["loss"]
    margins = [record["reward_margin"] for record in records(folder)]
    assert margins == sorted(margins) and margins[-1] > 0.01
    assert lines.count(f"computing the reference's log-probabilities of {12 + HELD_OUT} pairs, once") == 1


def test_preferences_are_measured_on_held_out_pairs_and_choose_the_best_checkpoint(config, finished):
    """Against whole sequences through the exported and the initial model, one at a time."""
    folder, lines = finished
    setup, last = prepare(config), records(folder)[-1]
    models = [(setup.model, setup.params), (setup.model, params(folder))]
    ratios, beta = [], config.dpo.beta
    for row in setup.held_out[:HELD_OUT]:
        before, after = ([whole_log_prob(*model, row.prompt, ids) for ids in row.pair] for model in models)
        ratios.append([a - b for a, b in zip(after, before, strict=True)])
    margins = np.array([beta * (chosen - rejected) for chosen, rejected in ratios])
    expected = {
        "loss": np.log1p(np.exp(-margins)).mean(),
        "reward_margin": margins.mean(),
        "reward_chosen": beta * np.mean([chosen for chosen, _ in ratios]),
        "preference_accuracy": (margins > 0).mean(),
    }
    summary = json.loads((folder / "summary.json").read_text())
    for name, value in expected.items():
        assert last[f"held_out_{name}"] == summary[f"{name}_after"] == pytest.approx(value, abs=2e-5), name
    assert any(line.startswith("held-out pairs after training: preference_accuracy") for line in lines)
    assert scores(folder) == {record["step"]: record["held_out_preference_accuracy"] for record in records(folder)}


def scores(folder) -> dict[int, float]:
    """By which each checkpoint is ranked."""
    notes = {int(path.parts[-3]): json.loads(path.read_text()) for path in folder.glob("checkpoints/*/extra/metadata")}
    return {step: note["score"] for step, note in notes.items()}


def test_without_held_out_pairs_accuracy_chooses_and_the_run_says_so(config, tmp_path):
    lines, rows = [], [{"question": e.question, "answer": e.answer} for e in examples(4, start=50)]
    dataset = dataclasses.replace(config.dataset, held_out=write_pairs(tmp_path / "plain.jsonl", rows))
    run(dataclasses.replace(config, dataset=dataset, steps=1), tmp_path / "run", lines.append)
    (record,) = records(tmp_path / "run")
    assert not {name for name in record if name.startswith("held_out_") and "preference" in name}
    assert scores(tmp_path / "run") == {1: record["accuracy"]}
    assert sum(line.startswith("no held-out row has a pair") for line in lines) == 1


def test_the_reference_is_read_again_and_a_resumed_run_is_the_same(config, finished, tmp_path):
    """Damaged on the way, the file is made anew: from the params before training, not from those that learned."""
    folder, _ = finished
    lines = []
    run(dataclasses.replace(config, steps=1), tmp_path)
    written = (tmp_path / REFERENCE_FILE).read_bytes()
    run(dataclasses.replace(config, steps=2), tmp_path, lines.append)
    assert not any("once" in line for line in lines) and (tmp_path / REFERENCE_FILE).read_bytes() == written
    (tmp_path / REFERENCE_FILE).write_bytes(written[:-9])
    run(config, tmp_path)
    assert (tmp_path / REFERENCE_FILE).read_bytes() == written == (folder / REFERENCE_FILE).read_bytes()
    assert records(tmp_path) == records(folder)
    chex.assert_trees_all_equal(params(tmp_path), params(folder))


def steps(config: TrainConfig, folder, num: int):
    """The steps of a run without its evaluation: the last state, and what each said."""
    setup = prepare(config)
    initial = preference.Policy(setup.model, setup.params, setup.frozen)
    folder.mkdir()
    found = preference.pair_reference(config, initial, setup.train, setup.max_length, folder, print)
    setup = dataclasses.replace(setup, pair_reference=found)
    optimizer, rows, said = make_optimizer(config.optimizer, config.steps), list(setup.train), []
    state = create_state(setup.params, optimizer)
    for step in range(num):
        state, metrics, _ = loop._step(config, setup, optimizer, state, rows, step)
        said.append({name: float(value) for name, value in metrics.items()})
    return state, said


def test_a_mesh_and_micro_batches_change_nothing(config, tmp_path):
    one = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, eps=1e-3))
    split = dataclasses.replace(one, mesh=MeshConfig(data=2, fsdp=1, tensor=2), micro_batches=3)
    (state, said), (other_state, others) = (steps(c, tmp_path / n, 2) for c, n in ((split, "mesh"), (one, "one")))
    for metrics, other in zip(said, others, strict=True):
        assert metrics.keys() == other.keys()
        names = metrics.keys() - {"padding_share", "preference_accuracy"}  # At the start the sign of 0 is rounding.
        np.testing.assert_allclose([metrics[name] for name in names], [other[name] for name in names], atol=1e-4)
    chex.assert_trees_all_close(jax.device_get(state.params), jax.device_get(other_state.params), rtol=0, atol=1e-5)


def test_adapters_start_at_the_reference_too_and_a_pair_that_is_not_finite_is_skipped(config, tmp_path, monkeypatch):
    adapted = dataclasses.replace(config, lora=LoRAConfig(rank=2, alpha=4.0), dpo=DPOConfig(loss="ipo"))
    _, (first, last) = steps(adapted, tmp_path / "finite", 2)
    assert first["loss"] == pytest.approx(25, rel=1e-5) and last["loss"] < first["loss"]
    assert first["reward_margin"] == 0
    assert (first["skipped_updates"], last["skipped_updates"]) == (0, 0)
    monkeypatch.setattr(preference, "score_pairs", lambda *args: [])  # Numbers stay as they were made: NaN.
    _, (first,) = steps(adapted, tmp_path / "nan", 1)
    assert first["skipped_updates"] == 1


def test_a_row_finds_its_numbers_by_its_tokens(config, finished):
    setup = prepare(config)
    found = preference.read(finished[0] / REFERENCE_FILE, row_keys(setup.train))
    rows = list(setup.train)
    policy = preference.Policy(setup.model, setup.params, setup.frozen)
    ((part, values),) = preference.score_pairs(policy, setup.encoder, rows, setup.max_length, len(rows))
    batch = found.batch(setup.encoder, part, setup.max_length)
    np.testing.assert_allclose(batch.reference_log_probs, values, rtol=0, atol=1e-5)
    back = found.batch(setup.encoder, part[::-1], setup.max_length)
    np.testing.assert_array_equal(back.reference_log_probs, batch.reference_log_probs[::-1])
    for row, (chosen, rejected) in zip(part, np.asarray(batch.reference_log_probs), strict=True):
        for ids, value in zip(row.pair, (chosen, rejected), strict=True):
            assert whole_log_prob(setup.model, setup.params, row.prompt, ids) == pytest.approx(value, abs=1e-4)


def whole_log_prob(model, params, prompt, ids) -> float:
    """log pi of a completion, in one plain forward, padded to one length for one program."""
    whole = np.array([*prompt, *ids])
    padded = np.pad(whole, (0, 48 - len(whole)))[None]
    of_all = np.asarray(jax.nn.log_softmax(model.logits(params, padded))[0])
    at = np.arange(len(prompt), len(whole))
    return of_all[at - 1, whole[at]].sum()


def test_a_run_that_is_stopped_while_the_reference_is_computed_leaves_none_and_goes_on(config, tmp_path):
    setup, lines = prepare(config), []
    args = (config, preference.Policy(setup.model, setup.params, setup.frozen), setup.train, setup.max_length, tmp_path)

    def stops():
        raise Stopped("stopped")

    with pytest.raises(Stopped):
        preference.pair_reference(*args, lines.append, stops)
    assert not list(tmp_path.iterdir())
    preference.pair_reference(*args, lines.append)
    assert [path.name for path in tmp_path.iterdir()] == [REFERENCE_FILE] and len(lines) == 2


def test_rows_without_a_pair_are_refused(config, tmp_path):
    path = tmp_path / "rows.jsonl"
    plain = {"question": "What is 1 plus 3?", "answer": "It is 4."}
    path.write_text("".join(json.dumps(row) + "\n" for row in [*pairs(3), plain]))
    with pytest.raises(
        UserError, match=r"objective: 'dpo' learns from pairs, and 1 rows of .* have none; expected col"
    ):
        prepare(dataclasses.replace(config, data=(str(path),)))


@pytest.mark.parametrize(
    ("dpo", "message"),
    [
        (DPOConfig(beta=0.0), "dpo.beta: 0.0 cannot work; expected a number above 0"),
        (DPOConfig(label_smoothing=0.5), "dpo.label_smoothing: 0.5 cannot work"),
        (DPOConfig(loss="ipo", label_smoothing=0.1), "expected 0 with --dpo.loss ipo"),
    ],
)
def test_a_loss_that_cannot_work_is_refused(config, dpo, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(config, dpo=dpo).validate()
