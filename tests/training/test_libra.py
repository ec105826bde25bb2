"""Figures of judges by hand, and the pipeline's promise that half-made pieces do not count."""

import dataclasses
import json
import types
from pathlib import Path

import pytest

from configs.libra import embedded
from launch import libra
from nrt_jax.errors import UserError
from nrt_jax.rewards import Judgement
from nrt_jax.tasks.judging import Judged
from nrt_jax.training.config_io import to_dict
from nrt_jax.training.libra import figures, tables


def judgement(verdicts, p_correct, p_without_thought) -> Judgement:
    return Judgement(("a b",) * len(verdicts), verdicts, p_correct, p_without_thought)


def test_figures_by_hand():
    judgements = [
        judgement((1, 1, 0), (0.9, 0.8, 0.1), 0.9),
        judgement((0, 0, None), (0.6, 0.7, 0.4), 0.2),
        judgement((0, 1), (0.4, 0.4), 0.7),
        judgement((None, None), (0.1, 0.1), 0.8),
    ]
    found = figures(judgements, [1, 0, 1, 0])
    assert found == {
        "accuracy": 0.5,
        "accuracy_soft": 0.5,
        "accuracy_without_thought": 0.75,
        "unparseable": pytest.approx(0.3),
        "says_correct": 0.25,
        "thought_words": 2.0,
        "rows": 4,
    }


def test_a_judge_that_always_says_correct_is_right_on_half_of_balanced_rows():
    always = [judgement((1, 1), (1.0, 1.0), 1.0)] * 6
    found = figures(always, [0, 1] * 3)
    assert found["accuracy"] == found["accuracy_soft"] == found["accuracy_without_thought"] == 0.5
    assert found["says_correct"] == 1.0


def test_tables_have_means_and_extremes_of_the_seeds():
    row = figures([judgement((1,), (1.0,), 0.0)], [1])
    policy = {"accuracy_before": 0.1, "accuracy_best": 0.95, "accuracy_after": 0.9}
    text = tables({"base": [row, row | {"accuracy": 0.5}]}, {"with_nrt": [policy]})
    assert "| base | 2 | 0.000 (0.000 to 0.000) | 0.750 (0.500 to 1.000) |" in text
    cells = "0.100 (0.100 to 0.100) | 0.950 (0.950 to 0.950) | 0.900 (0.900 to 0.900)"
    assert f"| NRT, labelled questions | 1 | {cells} |" in text


def test_a_piece_counts_once_it_is_whole(tmp_path):
    made = []

    def make(path, *, fails=False):
        made.append(path)
        (path / "inner").mkdir(parents=True)
        (path / "inner" / "file").write_text("part")
        if fails:
            raise OSError

    with pytest.raises(OSError):
        libra._unless_there(tmp_path / "piece", lambda path: make(path, fails=True))
    assert not (tmp_path / "piece").exists()
    for _ in range(2):
        assert libra._unless_there(tmp_path / "piece", make) == tmp_path / "piece"
    assert (tmp_path / "piece" / "inner" / "file").exists() and len(made) == 2


@pytest.fixture
def started(tmp_path, monkeypatch):
    """The pipeline whose pieces only note what they were asked to make."""
    monkeypatch.chdir(tmp_path)
    calls = []

    def note(kind, write):
        def make(asked):
            calls.append((kind, asked))
            write(Path(asked.output))

        return make

    def write_tasks(folder):
        folder.mkdir()
        rows = [Judged(f"q{i}", f"r{i % 2}", i % 2, subset="clock", model="m") for i in range(8)]
        repeated = dataclasses.replace(rows[0], model="other")
        for name, part in (("train.jsonl", [*rows[:6], repeated]), ("test.jsonl", rows[6:])):
            (folder / name).write_text("".join(json.dumps(dataclasses.asdict(row)) + "\n" for row in part))

    def train(run, prepared, folder, log):
        calls.append((folder.name, run))
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text('{"step": 1, "accuracy": 0.75}\n')
        summary = {"accuracy_before": 0.25, "accuracy_after": 0.5, "seconds": 1.0}
        (folder / "summary.json").write_text(json.dumps(summary))
        (folder / "config.json").write_text(json.dumps(to_dict(run)))
        return summary

    monkeypatch.setattr(libra.pretrain, "main", note("base", Path.mkdir))
    monkeypatch.setattr(libra.judgements, "main", note("judging", write_tasks))
    monkeypatch.setattr(libra.chains, "main", note("chains", Path.touch))
    monkeypatch.setattr(libra.loop, "train", train)
    monkeypatch.setattr(libra.setup, "prepare", lambda run: None)
    always = types.SimpleNamespace(judge=lambda rows: [judgement((1,), (1.0,), 0.0)] * len(rows))
    monkeypatch.setattr(libra, "load_judge", lambda how: always)
    return calls


def test_each_stage_starts_from_the_one_before_and_none_is_run_twice(started, tmp_path, capsys):
    config = dataclasses.replace(embedded.get_config(), seeds=(0, 5))
    libra.main(config)
    of_seed = ["chains", "direct", "sft", "grpo", "with_judge", "with_verifier", "with_nrt"]
    assert [kind for kind, _ in started] == ["base", "judging", "judging", "chains", *of_seed, *of_seed]
    train, test = (f"judging:runs/libra/judging/{name}.jsonl" for name in ("train", "test"))
    for seed, calls in ((0, dict(started[4:11])), (5, dict(started[11:]))):
        folder, runs = f"runs/libra/seed{seed}", [calls[name] for name in of_seed[1:]]
        assert [run.model for run in runs[:3]] == ["runs/libra/base", "runs/libra/base", f"{folder}/sft/hf"]
        assert [run.data for run in runs[:3]] == [
            (train,),
            (f"{folder}/chains.jsonl", "runs/libra/other.jsonl"),
            (train,),
        ]
        assert [run.objective for run in runs[:3]] == ["sft", "sft_with_trace", "nrt"]
        assert all(run.dataset.held_out == test for run in runs[:3]) and all(run.seed == seed for run in runs)
        with_judge, with_verifier, with_nrt = (run.reward for run in runs[3:])
        assert (with_judge.judge, with_judge.verifiable, with_judge.intrinsic) == (1.0, 0.0, 0.0)
        assert (with_verifier.judge, with_verifier.verifiable, with_verifier.intrinsic) == (0.0, 1.0, 0.0)
        assert with_nrt.intrinsic == 1.0 and runs[3].judge.model == f"{folder}/grpo"
        assert {calls["chains"].seed, *(run.seed for run in runs)} == {seed}
    assert {asked.seed for _, asked in started[1:4]}.isdisjoint(config.seeds)
    assert "| after SFT on verdicts alone | 2 | 0.500 (0.500 to 0.500) | 0.500 (" in capsys.readouterr().out
    libra.main(config)
    assert len(started) == 18
    with pytest.raises(UserError, match=r"holds another run \(samples is 4 there, 2 here\)"):
        libra.main(dataclasses.replace(config, samples=2))


def test_what_several_models_answered_alike_is_one_judging_task(started, tmp_path):
    libra.main(dataclasses.replace(embedded.get_config(), seeds=(0,)))
    rows = [json.loads(line) for line in (tmp_path / "runs/libra/judging/train.jsonl").read_text().splitlines()]
    assert len(rows) == 6 and len({(row["question"], row["response"]) for row in rows}) == 6


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"other_share": 0.0}, "other_share: 0.0 cannot work"),
        ({"samples": 0}, "samples: 0 is not positive"),
        ({"seeds": ()}, "seeds: is empty"),
        ({"min_answer_prob": 1.5}, "min_answer_prob: 1.5 is no probability"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_made(changes, line, tmp_path):
    config = dataclasses.replace(embedded.get_config(), output=str(tmp_path / "out"), **changes)
    with pytest.raises(UserError, match=line):
        libra.main(config)
    assert not (tmp_path / "out").exists()
