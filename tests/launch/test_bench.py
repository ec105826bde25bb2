"""The benchmark measures what it says: its two ways to score agree, and its long tail is as long as asked."""

import json

import jax
import numpy as np
import pytest

from launch import bench, cli

SHAPE = {"num-layers": 1, "hidden-size": 16, "intermediate-size": 24, "num-heads": 2, "num-kv-heads": 1, "head-dim": 8}
SIZE = {"prompts": 3, "group-size": 2, "prompt-length": 6, "trace-length": 8, "answer-length": 4}
SMALL = [f"--model.{name}={value}" for name, value in (SHAPE | {"vocab-size": 64}).items()]
SMALL += [f"--size.{name}={value}" for name, value in SIZE.items()] + ["--chunk-size=4", "--repeats=2"]


def config(*args: str) -> bench.BenchConfig:
    return cli.parse(bench.BenchConfig, "bench", "", args=[*args[:1], *SMALL, *args[1:]])


def test_scoring_on_the_rollouts_caches_equals_scoring_by_full_forwards():
    works = bench.Bench(config("score")).works()
    (scores, base), (full, full_base) = works["score"](), works["score_by_full_forward"]()
    assert scores.shape == (3, 2, 4) and base.shape == (3, 4)
    np.testing.assert_allclose(scores, full.reshape(scores.shape), atol=1e-5)
    np.testing.assert_allclose(base, full_base[:, 0], atol=1e-5)


@pytest.mark.parametrize(("share", "low", "high"), [(1.0, 39.99, 40.01), (0.25, 6.0, 13.0)])
def test_traces_are_as_long_as_asked(share, low, high):
    work = bench.Bench(
        config("rollout", "--mean-length", str(share), "--size.trace-length", "40", "--size.group-size", "40")
    )
    length = float(np.mean(work.rollout(work.params).mask.sum(-1)))
    assert low <= length <= high


@pytest.mark.parametrize("work", ["train", "step"])
def test_report_holds_every_measurement(work, tmp_path, capsys):
    bench.main(config(work, "--json", str(tmp_path / "out.json")))
    report = json.loads((tmp_path / "out.json").read_text())
    result = report["results"][work]
    assert len(result["seconds"]) == 2 and min(result["seconds"]) <= result["median"] <= max(result["seconds"])
    assert report["config"]["size"]["group_size"] == 2 and report["device"] == jax.devices()[0].device_kind
    assert f"{work}: " in capsys.readouterr().out


def test_flops_count_the_question_once_a_group_and_everything_else_k_times():
    one, two = (bench.Bench(config("train", "--size.group-size", k)).train_flops() for k in ("1", "2"))
    c, completion = bench.Bench(config("train")).model.config, 8 + 4 + 2
    per_row = 6 * (c.num_parameters - c.vocab_size * c.hidden_size) * completion
    attention = 12 * c.num_heads * c.head_dim * completion * (6 + completion / 2)
    assert two - one == pytest.approx(3 * (per_row + attention))
    assert two < 2 * one


def test_what_cannot_be_measured_is_one_line(capsys):
    with pytest.raises(SystemExit):
        cli.run(bench.main, bench.BenchConfig, "bench", "", args=["step", "--mean-length", "0"])
    assert capsys.readouterr().err.startswith("error: mean_length, repeats: 0.0, 5 cannot work")
