"""launch.eval: its numbers follow from its records, likelihoods are those of launch.score, comparisons are paired."""

import json

import numpy as np
import pytest

pytest.importorskip("torch")  # of the shared fixtures

from hypothesis import given
from hypothesis import strategies as st

from launch import cli, score
from launch import eval as evaluate
from nrt_jax import tasks
from nrt_jax.evaluation import results
from nrt_jax.evaluation.attempts import Record
from nrt_jax.evaluation.questions import shares
from tests.fixtures_serve import write_jsonl

NUM, K, SMALL_SOURCE = 6, 3, 2
SMALL = ["--decoding.max-trace-length", "24", "--decoding.chunk-size", "48"]


def run(*args):
    cli.run(evaluate.main, evaluate.EvalConfig, "eval", "", args=[*map(str, args)], implied=evaluate.as_in_run)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """The folder with the results of the shipped model against the weak one, on two sources."""
    folder = tmp_path_factory.mktemp("eval")
    rows = [vars(example) for example in tasks.get("clock").examples(SMALL_SOURCE, 0, split="train")]
    sources = ["clock", write_jsonl(folder / "small.jsonl", rows)]
    sizes = ["--samples", K, "--questions", NUM, *SMALL]
    run("--checkpoint", "tiny", "--against", "tiny_weak", "--data", *sources, "--output", folder / "e.json", *sizes)
    return folder


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_numbers_follow_from_the_records(evaluated):
    found, rows = json.loads((evaluated / "e.json").read_text()), records(evaluated / "e.jsonl")
    assert found["questions"] == len(rows) == NUM and all(len(row["samples"]) == K for row in rows)
    metrics = {name: value["mean"] for name, value in found["metrics"].items()}
    right = np.array([[sample["correct"] for sample in row["samples"]] for row in rows])
    assert metrics["avg@3"] == pytest.approx(right.mean()) and metrics["pass@3"] == pytest.approx(right.any(1).mean())
    assert metrics["greedy accuracy"] == pytest.approx(np.mean([row["greedy"]["correct"] for row in rows]))
    c = [np.exp([s["token_log_probs"] for s in row["samples"]]).mean(0) for row in rows]
    base = [np.exp(row["base_token_log_probs"]) for row in rows]
    assert metrics["mean c"] == pytest.approx(np.concatenate(c).mean())
    assert metrics["mean c - c_base"] == pytest.approx((np.concatenate(c) - np.concatenate(base)).mean())
    by_difficulty = found["by_difficulty"]
    assert sum(row["tokens"] for row in by_difficulty) == sum(map(len, base))
    gain = sum(row["tokens"] * row["gain"]["mean"] for row in by_difficulty) / sum(map(len, base))
    assert gain == pytest.approx(metrics["mean c - c_base"])
    assert all(x["low"] <= x["mean"] <= x["high"] for x in found["metrics"].values())


def test_each_source_has_its_share_and_its_numbers(evaluated):
    """The first source alone would fill the quota."""
    found, rows = json.loads((evaluated / "e.json").read_text()), records(evaluated / "e.jsonl")
    names = ["clock", str(evaluated / "small.jsonl")]
    assert [row["source"] for row in rows] == [names[0]] * (NUM - SMALL_SOURCE) + [names[1]] * SMALL_SOURCE
    for content in (found, found["against"]):
        assert list(content["by_source"]) == names
        for name in ("greedy accuracy", "avg@3"):
            parts = [part["questions"] * part["metrics"][name]["mean"] for part in content["by_source"].values()]
            assert sum(parts) / NUM == pytest.approx(content["metrics"][name]["mean"])


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(6, 60))
def test_questions_are_shared_evenly_and_none_is_lost(sizes, most):
    found = shares({str(i): size for i, size in enumerate(sizes)}, most)
    counts = [found[str(i)] for i in range(len(sizes))]
    assert sum(counts) == min(most, sum(sizes))
    full = max(counts)
    assert all(count >= full - 1 or count == size for count, size in zip(counts, sizes, strict=True))


def test_likelihoods_are_those_of_launch_score(evaluated, tmp_path):
    """The scorer that takes given traces as text, from no cache that sampling left."""
    rows = records(evaluated / "e.jsonl")
    given = [
        {"question": row["question"], "answer": row["reference"], "trace": attempt["trace"]}
        for row in rows
        for attempt in (row["greedy"], row["samples"][0])
    ]
    source, output = write_jsonl(tmp_path / "in.jsonl", given), tmp_path / "out.jsonl"
    args = ["--checkpoint", "tiny", "--input", str(source), "--output", str(output)]
    cli.run(score.main, score.ScoreConfig, "score", "", args=args)
    scored = iter(records(output))
    for row in rows:
        for attempt in (row["greedy"], row["samples"][0]):
            expected = next(scored)
            for name, found in (("token", attempt["token_log_probs"]), ("base_token", row["base_token_log_probs"])):
                np.testing.assert_allclose(found, expected[f"{name}_log_probs"], rtol=0, atol=1e-4)


def test_two_results_compare_as_two_checkpoints_do_and_the_other_way_round(evaluated, tmp_path, capsys):
    own = json.loads((evaluated / "e.json").read_text())
    against = evaluated / "e.against.json"
    against.write_text(json.dumps(own["against"]))
    for names, sign in (("e.json", "e.against.json"), 1), (("e.against.json", "e.json"), -1):
        run("--compare", *(evaluated / name for name in names), "--output", tmp_path / "c.json")
        compared = json.loads((tmp_path / "c.json").read_text())["comparison"]
        for name, row in own["comparison"].items():
            assert compared[name]["difference"]["mean"] == pytest.approx(sign * row["difference"]["mean"])
            assert compared[name]["p"] == pytest.approx(row["p"])
    assert "only the first was right" in capsys.readouterr().out
    same = [Record.of_json(row) for row in records(evaluated / "e.jsonl")]
    assert all(row["p"] == 1 and row["difference"]["mean"] == 0 for row in results.compare(same, same, 0).values())


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--checkpoint", "tiny"], "data: missing"),
        (["--data", "clock"], "checkpoint: missing"),
        (["--checkpoint", "tiny", "--data", "clock", "induction", "--questions", "1"], "questions: 1 of 2 sources"),
        (["--compare", "a.json"], "compare: 1 files"),
        (["--compare", "a.json", "b.json"], "compare: cannot read 'a.json'"),
        (["--checkpoint", "tiny", "--data", "clock", "--samples", "-1"], "samples: -1 cannot work"),
        (["--checkpoint", "tiny", "--data", "clock", "--output", "e.txt"], "output: 'e.txt' cannot work"),
        (["--checkpoint", "tiny", "--data", "clock", "--lm-eval", "gsm8k"], "lm_eval: 'gsm8k' given with --data"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(tmp_path, monkeypatch, capsys, flags, problem):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        run(*flags)
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and problem in error
    assert list(tmp_path.iterdir()) == []
