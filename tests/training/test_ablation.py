"""The grid's arms differ in what their names say, and the table reports what the runs wrote."""

import dataclasses
import json

import pytest

from configs import ablation, stephint
from nrt_jax.errors import UserError
from nrt_jax.training.ablation import ARMS, NRT_ARMS, AblationConfig, collect, run_grid, table

RECIPE = ablation.get_config().recipe


def test_arms_are_different_configs_that_can_run():
    configs = {name: change(RECIPE) for name, change in NRT_ARMS.items()}
    assert len(set(configs.values())) == len(NRT_ARMS)
    for config in configs.values():
        config.validate()
    assert configs["zero advantage"].loss.trace_weight == 0
    assert configs["geometric_mean, no clip, fixed"].advantage.clip == "none"
    assert configs["prob, clip, derived"].loss.token_signal == "derived"
    assert ARMS[f"{RECIPE.reward.mode}, clip, fixed"](RECIPE) == RECIPE  # the recipe is itself one of the arms


def test_hints_and_plain_rollouts_differ_in_the_hints_alone():
    grid = stephint.get_config()
    plain, hints = (ARMS[name](grid.recipe) for name in grid.arms)
    plain.validate(), hints.validate()
    assert plain.hints.steps == 0 and hints.hints.group_size == plain.rollout.group_size == 12
    assert dataclasses.replace(hints, hints=plain.hints) == plain


def test_unknown_arm_suggests_the_nearest():
    with pytest.raises(UserError, match="did you mean 'zero advantage'"):
        run_grid(AblationConfig(arms=("zero advantag",)))


def test_table_and_curves_come_from_the_runs_files(tmp_path):
    for seed, accuracy in ((0, 0.5), (1, 0.75)):
        folder = tmp_path / "tiny" / "zero_advantage" / f"seed{seed}"
        folder.mkdir(parents=True)
        summary = {"accuracy_before": 0.1, "accuracy_after": accuracy, "steps": 3, "answer_prob_after": 0.25}
        (folder / "summary.json").write_text(json.dumps(summary))
        records = [{"step": 1, "entropy": 1.0}, {"step": 2, "entropy": 3.0, "accuracy": accuracy}]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    rows = collect(AblationConfig(output=str(tmp_path), bases=("tiny",)))
    assert [row["curve"] for row in rows] == [[(0, 0.1), (2, 0.5), (3, 0.5)], [(0, 0.1), (2, 0.75), (3, 0.75)]]
    (line,) = table(rows, "tiny").splitlines()[2:]
    assert line == "| zero advantage | 2 | 0.62 (0.50 to 0.75) | 0.25 | - | 2.00 | - | - |"
