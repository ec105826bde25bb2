"""launch.judge on files of responses and pairs in which a judge has spoken, and with a judge that is stood in for."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from launch import cli, judge, pairs
from nrt_jax.checkpoints import ASSETS
from nrt_jax.rewards import JudgeConfig
from nrt_jax.training.judged import load_judge
from tests.fixtures_run import write_model

EMBEDDED = str(ASSETS / "tiny")
#: The fields that Libra Bench publishes.
BENCH = [
    {
        "index": i,
        "question": f"What is {i} plus 3?",
        "response": f"It is {i + 3 + wrong}.",
        "label": 1 - wrong,
        "model": f"m{i % 2}",
        "reference": str(i + 3),
        "subset": "easy" if i < 4 else "hard",
        "response_with_cot": f"<think>{i} and 3</think>It is {i + 3 + wrong}.",
    }
    for i in range(8)
    for wrong in (0, 1)
]
PAIR = {"prompt": "What is 1 plus 3?", "chosen": "It is 4.", "rejected": "It is five.", "subset": "sums"}


def write(path, rows) -> str:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def run(*args: str) -> None:
    cli.run(judge.main, judge.MeasureConfig, "judge", "", args=list(args))


@pytest.fixture
def fails(capsys):
    def run_and_fail(*args: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            run(*args)
        out = capsys.readouterr()
        assert stopped.value.code == 2 and out.err.count("\n") == 1 and "Traceback" not in out.err
        return out.err

    return run_and_fail


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_judge_that_always_says_correct_scores_50_on_libra_bench(kind, tmp_path, capsys):
    path = write(tmp_path / f"bench.{kind}", [row | {"verdict": 1} for row in BENCH])
    run("--input", path, "--report", str(tmp_path / "report.json"))
    assert capsys.readouterr().out.startswith("score 50.0 (mean accuracy of subsets), macro-F1 33.3\n")
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["subsets"].keys() == {"easy", "hard"} and found["models"].keys() == {"m0", "m1"}
    assert found["all"]["count"] == 16 and found["calibration"] is None and found["length_bias"]["bias"] is None


@pytest.mark.parametrize(
    ("said", "score"),
    [
        (lambda label: {"verdict": ("incorrect", "correct")[label]}, 100),
        (lambda label: {"verdict": None}, 0),
        (lambda label: {"p_correct": 0.9 if label else 0.2}, 100),
        (lambda label: {"p_correct": 0.5}, 0),
        (lambda label: {"verdict": label, "p_correct": 0.5}, 100),
        (lambda label: {"judgement": "<think>so</think><verdict>correct</verdict>"}, 50),
        (lambda label: {"judgement": ["<verdict>correct</verdict>", "<verdict>incorrect</verdict>"]}, 50),
        (lambda label: {"judgement": ["<verdict>correct</verdict>"] * 2 + ["<verdict>incorrect</verdict>"]}, 50),
        (lambda label: {"judgement": "the verdict is correct"}, 0),
    ],
)
def test_judgements_are_verdicts_probabilities_or_what_a_judge_wrote(said, score, tmp_path, capsys):
    run("--input", write(tmp_path / "bench.jsonl", [row | said(row["label"]) for row in BENCH]))
    assert capsys.readouterr().out.startswith(f"score {score:.1f} ")


def test_calibration_is_plotted(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    rows = [row | {"p_correct": 0.8 if row["label"] else 0.3} for row in BENCH]
    run("--input", write(tmp_path / "bench.jsonl", rows), "--plot", str(tmp_path / "plot.png"))
    assert "calibration: ECE 25.0" in capsys.readouterr().out
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_pairs_are_measured_by_scores_and_by_both_orders(tmp_path, capsys):
    scored = [PAIR | {"score_chosen": 1.5, "score_rejected": s} for s in (0.5, 2.5)]
    run("--input", write(tmp_path / "scored.jsonl", scored))
    assert capsys.readouterr().out.startswith("score 50.0 ")
    shown = [PAIR | {"verdict_chosen_first": "A", "verdict_rejected_first": "A"}]
    run("--input", write(tmp_path / "shown.jsonl", shown))
    assert "bias to the first 50.0, consistent 0.0, unparseable 0.0" in capsys.readouterr().out


class Said:
    """What a judge says that takes the text of a response for its own judgement."""

    def __init__(self, response: str):
        self.vote, self.soft = int("4" in response), 0.9 if "4" in response else 0.1
        self.verdicts, self.thoughts = (self.vote,), ("hm",)


@pytest.fixture
def stand_in(monkeypatch):
    """A judge in place of a checkpoint's; what it was asked."""
    asked = []

    def answer(config, responses):
        asked.extend(responses)
        return [Said(response) for _, response in responses]

    monkeypatch.setattr(judge, "_judge", answer)
    return asked


def test_what_a_checkpoint_says_is_written_and_measures_the_same_when_it_is_read(stand_in, tmp_path, capsys):
    path, out = write(tmp_path / "bench.parquet", BENCH), str(tmp_path / "out.jsonl")
    run("--input", path, "--checkpoint", EMBEDDED, "--output", out, "--response-column", "response_with_cot")
    assert stand_in == [(row["question"], row["response_with_cot"]) for row in BENCH]
    first = capsys.readouterr().out
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [{name: row[name] for name in BENCH[0]} for row in written] == BENCH
    run("--input", out, "--response-column", "response_with_cot")
    assert first.startswith(capsys.readouterr().out)


def test_responses_without_labels_are_judged_and_give_pairs(stand_in, fails, tmp_path, capsys):
    rows = [{name: row[name] for name in ("question", "response", "reference")} for row in BENCH]
    path, out = write(tmp_path / "rows.jsonl", rows), str(tmp_path / "out.jsonl")
    run("--input", path, "--checkpoint", EMBEDDED, "--output", out)
    assert capsys.readouterr().out == f"judged 16 responses, 0 of them without a verdict; written to {out}\n"
    args = ["--input", out, "--output", str(tmp_path / "pairs.jsonl")]
    cli.run(pairs.main, pairs.PairsConfig, "pairs", "", args=args)
    made = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert [(row["chosen"], row["rejected"]) for row in made] == [("It is 4.", "It is 3."), ("It is 4.", "It is 5.")]
    assert "has a 'label', without which nothing can be measured" in fails("--input", path)


def test_a_checkpoint_is_asked_as_in_training(tmp_path, capsys):
    """The judge of a folder: what is written is what `load_judge` makes of it."""
    checkpoint = str(write_model(tmp_path / "model"))
    path, out = write(tmp_path / "bench.jsonl", BENCH[:4]), str(tmp_path / "out.jsonl")
    flags = ["--samples=2", "--max-thought-length=4", "--batch-size=2"]
    run("--input", path, "--checkpoint", checkpoint, "--output", out, *flags)
    said = [line for line in capsys.readouterr().err.splitlines() if "judged" in line]
    assert said == [f"{done} of 4 different responses judged" for done in (2, 4)]
    config = JudgeConfig(checkpoint, thoughts=2, max_thought_length=4, batch_size=2)
    expected = load_judge(config).judge([(row["question"], row["response"]) for row in BENCH[:4]])
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["p_correct"] for row in written] == [judgement.soft for judgement in expected]
    assert [row["thoughts"] for row in written] == [list(judgement.thoughts) for judgement in expected]
    assert [row["verdict"] for row in written] == [judgement.vote for judgement in expected]


def test_pairs_are_judged_one_response_at_a_time(stand_in, tmp_path, capsys):
    chat = {"chosen": [{"role": "user", "content": "sum?"}, {"role": "assistant", "content": "4"}]}
    chat["rejected"] = [*chat["chosen"][:1], {"role": "assistant", "content": "5"}]
    out = str(tmp_path / "out.jsonl")
    run("--input", write(tmp_path / "pairs.jsonl", [PAIR, chat]), "--checkpoint", EMBEDDED, "--output", out)
    texts = [(PAIR["prompt"], PAIR["chosen"]), (PAIR["prompt"], PAIR["rejected"]), ("sum?", "4"), ("sum?", "5")]
    assert stand_in == texts
    assert capsys.readouterr().out.startswith("score 100.0 ")
    run("--input", out)
    assert capsys.readouterr().out.startswith("score 100.0 ")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([BENCH[0]], "row 1: holds no judgement"),
        ([BENCH[0] | {"verdict": "maybe"}], "'verdict' is 'maybe'; expected 0, 1, 'correct', 'incorrect' or null"),
        ([BENCH[0] | {"p_correct": 1.5}], "'p_correct' is 1.5; expected a number from 0 to 1"),
        ([BENCH[0] | {"judgement": 7}], "'judgement' is 7; expected a text"),
        ([BENCH[0] | {"label": 2, "verdict": 1}], "column 'label' is 2"),
        ([{"question": "q", "verdict": 1}], "expected 'question', 'response' and 'label', or 'prompt', 'chosen'"),
        ([BENCH[0] | {"verdict": 1}, {"question": "q"}], "row 2: column 'response' is missing"),
        ([PAIR], "row 1: holds no judgement"),
        ([PAIR | {"verdict_chosen_first": "C", "verdict_rejected_first": "A"}], "is 'C'; expected 'A', 'B' or null"),
        ([PAIR | {"rejected": PAIR["chosen"]}], "chosen equals rejected"),
        ([], "is empty"),
        (["text"], "is a str; expected an object"),
        ([BENCH[0] | {"verdict": 1, "index": float("nan")}], "row 1: is no JSON (Out of range float"),
        ([{}], "has no columns; expected"),
    ],
)
def test_a_file_that_cannot_be_measured_is_refused(rows, message, fails, tmp_path):
    assert message in fails("--input", write(tmp_path / "rows.jsonl", rows))


def test_values_that_cannot_work_are_refused(fails, tmp_path):
    path = write(tmp_path / "rows.jsonl", [row | {"verdict": 1} for row in BENCH])
    assert "input: cannot read 'nowhere.jsonl'" in fails("--input", "nowhere.jsonl")
    assert "samples: 0 cannot work" in fails("--input", path, "--samples", "0")
    assert "output: 'x' cannot work without --checkpoint" in fails("--input", path, "--output", "x")
    assert "has 'verdict', which --checkpoint adds" in fails("--input", path, "--checkpoint", EMBEDDED)
    assert "no row has 'p_correct'" in fails("--input", path, "--plot", str(tmp_path / "x.png"))
    pairs = write(tmp_path / "pairs.jsonl", [PAIR])
    assert "plot: 'x' cannot work with pairs" in fails("--input", pairs, "--plot", "x")
    assert "report: cannot write" in fails("--input", path, "--report", str(tmp_path / "absent" / "x.json"))
