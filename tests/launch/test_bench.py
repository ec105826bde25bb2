"""The benchmark measures what it says: its two ways to score agree, and its long tail is as long as asked."""

import json
import statistics

import jax
import numpy as np
import pytest

from launch import bench, cli
from nrt_jax.models import ModelConfig
from nrt_jax.training.update import Lengths

SHAPE = {"num-layers": 1, "hidden-size": 16, "intermediate-size": 24, "num-heads": 2, "num-kv-heads": 1, "head-dim": 8}
SIZE = {"prompts": 3, "group-size": 2, "prompt-length": 6, "trace-length": 8, "answer-length": 4}
SMALL = [f"--model.{name}={value}" for name, value in (SHAPE | {"vocab-size": 64}).items()]
SMALL += [f"--size.{name}={value}" for name, value in SIZE.items()] + ["--chunk-size=8", "--repeats=2"]


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
    sizes = ("--size.trace-length", "40", "--size.group-size", "40", "--chunk-size", "40")
    work = bench.Bench(config("rollout", "--mean-length", str(share), *sizes))
    (part,) = work.sample(work.params)
    length = float(np.mean(part.rollout.mask.sum(-1)))
    assert low <= length <= high


def report_of(work: str, folder, *flags: str) -> dict:
    path = folder / "out.json"
    bench.main(config(work, "--json", str(path), *flags))
    report = json.loads(path.read_text())
    for result in report["results"].values():
        assert len(result["seconds"]) == 2 and min(result["seconds"]) <= result["median"] <= max(result["seconds"])
    assert report["config"]["size"]["group_size"] == 2 and report["device"] == jax.devices()[0].device_kind
    assert 0 < report["work_memory_bytes"] <= report["peak_memory_bytes"]
    return report


def test_train_reports_its_share_of_the_peak_measured_before_during_and_after(tmp_path, capsys):
    report = report_of("train", tmp_path)
    assert len(report["matmul_peaks_flops"]) == 2 + 2
    assert report["matmul_peak_flops"] == pytest.approx(statistics.median(report["matmul_peaks_flops"]))
    per_second = report["train_flops"] / report["results"]["train"]["median"]
    assert report["share_of_peak"] == pytest.approx(per_second / report["matmul_peak_flops"])
    assert "train: " in capsys.readouterr().out


def test_step_reports_how_its_time_is_spent(tmp_path, capsys):
    report = report_of("step", tmp_path, "--mean-length", "0.25", "--micro-batches", "3")
    step = report["results"]["step"]
    for i, seconds in enumerate(step["seconds"]):
        assert sum(step[f"{name}_seconds"][i] for name in bench.PHASES) == pytest.approx(seconds, rel=0.1)
    assert sum(report["phases"].values()) == pytest.approx(1) and min(report["phases"].values()) > 0
    assert 0 < report["padding_share"] < 1
    assert "step: rollout " in capsys.readouterr().out


def test_rollout_reports_tokens_a_second(tmp_path):
    report = report_of("rollout", tmp_path)
    for name, result in report["results"].items():
        assert result["tokens"] == [3 * 2 * 8] * 2
        rates = [48 / seconds for seconds in result["seconds"]]
        assert report[f"{name}_tokens_per_second"] == pytest.approx(statistics.median(rates))


@pytest.mark.parametrize("tied", [False, True])
def test_flops_are_those_of_every_product_counted_one_by_one(tied):
    """Two prompts of 2 and 3 tokens, completions of 1 and 4 and of 2 and 2; forward, then twice that backward."""
    c = ModelConfig(vocab_size=11, hidden_size=6, intermediate_size=10, num_layers=3, num_heads=4, num_kv_heads=2,
                    head_dim=8, tie_embeddings=tied)  # fmt: skip
    lengths = Lengths(np.array([2, 3]), np.array([[1, 4], [2, 2]]))
    q, kv, feed = 6 * 4 * 8, 6 * 2 * 8, 6 * 10
    forward = 0
    for x, group in zip(lengths.prompts, lengths.completions, strict=True):
        for start, tokens, head in [(0, x, False), *((x, n, True) for n in group)]:
            for i in range(tokens):
                products = 3 * (2 * q + 2 * kv + 3 * feed + 2 * (start + i + 1) * 4 * 8) + head * 11 * 6
                forward += 2 * products
    norms = 3 * 2 * 6 + 6  # Counted as matrices; nothing beside them in a real model.
    assert bench.train_flops(c, lengths) == 3 * forward + 6 * norms * 14


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mean-length", "0"], "mean_length: 0.0 cannot work; expected a share above 0 and at most 1"),
        (["--mean-length", "0.01"], "mean_length: traces of 0.08 tokens on average cannot be drawn; expected"),
        (["--repeats", "0"], "repeats: 0 is no size; expected a number above 0"),
        (["--size.group-size", "-1"], "size.group_size: -1 is no size; expected a number above 0"),
        (["--model.num-kv-heads", "3"], "model.num_heads: 2 is no multiple of model.num_kv_heads, 3"),
        (["--model.head-dim", "7"], "model.head_dim: 7 is odd; expected an even number"),
        (["--micro-batches", "2"], "micro_batches: 3 prompts cannot be split into 2 equal parts; expected a divisor"),
        (["--json", "nowhere/out.json"], "json: 'nowhere/out.json' is in no folder that exists; make the folder"),
    ],
)
def test_what_cannot_be_measured_is_one_line(flags, message, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.run(bench.main, bench.BenchConfig, "bench", "", args=["step", *SMALL, *flags])
    lines = capsys.readouterr().err.splitlines()
    assert exit.value.code == 2 and len(lines) == 1 and lines[0].startswith(f"error: {message}")
