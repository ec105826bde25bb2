"""launch.score against torch on ids joined by hand, and its rewards against the paper's formulas in float64."""

import numpy as np
import pytest

pytest.importorskip("torch")
import transformers

from launch import score
from nrt_jax import checkpoints
from nrt_jax.checkpoints import ASSETS
from nrt_jax.evaluation import scoring
from nrt_jax.rewards import AGGREGATIONS
from tests import fixtures_serve
from tests.fixtures_run import CHAT_TEMPLATE
from tests.fixtures_serve import torch_log_probs, write_checkpoint

ROWS = [
    {"question": "What is 3 plus 3?", "trace": "3 + 3 = 6", "answer": "It is 6.", "id": 9},
    {"question": "What is 4 plus 3?", "trace": "", "answer": "It is 7."},
    {"question": "What is 12 plus 3? " * 3, "trace": "12 + 3 = 15. " * 4, "answer": "15"},
    {"question": "<eos> spelt", "trace": "<think>é</think><|response_start|>", "answer": "a <eos> b", "é": [None]},
    {"question": "What", "trace": " ", "answer": "It is " + ", ".join(map(str, range(20)))},
]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """(folder, transformers' model)."""
    folder = tmp_path_factory.mktemp("llama")
    return folder, write_checkpoint(folder, "llama")


def run(folder, checkpoint, rows, *flags):
    return fixtures_serve.run(score.main, score.ScoreConfig, folder, checkpoint, rows, *flags)


def joined(tokenizer, row, trace, before="<bos>", after="\n", closing="<|response_start|>"):
    """Ids of a sample, segment by segment: (all of them, how many are the answer's)."""

    def data(text):
        return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def template(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    # The plain template is data; another is encoded together with the question, if that spells no special token.
    question = data(row["question"] + "\n") if (before, after) == ("<bos>", "\n") else None
    prompt = template(before) + question if question else template(before + row["question"] + after)
    answer = [*data(row["answer"]), tokenizer.eos_token_id]
    return [*prompt, *data(trace), *template(closing), *answer], len(answer)


def float64_rewards(log_c, log_base):
    """The table of the paper's aggregations."""
    c, base, num = np.exp(log_c), np.exp(log_base), len(log_c)
    return {
        "log_prob": log_c.sum(),
        "prob": c.prod(),
        "arithmetic_mean": c.sum() / num,
        "geometric_mean": c.prod() ** (1 / num),
        "weighted_sum_inverse_prob": (c / base).sum() / num,
        "weighted_sum_log_prob": (-c * np.log(base)).sum() / num,
    }


def check(model, tokenizer, rows, temperature=1.0, **parts):
    """Every number of every row against torch and float64."""
    for row in rows:
        log_c, log_base = (
            torch_log_probs(model, *joined(tokenizer, row, trace, **parts), temperature) for trace in (row["trace"], "")
        )
        np.testing.assert_allclose(row["token_log_probs"], log_c, rtol=0, atol=1e-4)
        np.testing.assert_allclose(row["base_token_log_probs"], log_base, rtol=0, atol=1e-4)
        expected = float64_rewards(np.float64(row["token_log_probs"]), np.float64(row["base_token_log_probs"]))
        assert row["rewards"].keys() == expected.keys() == AGGREGATIONS.keys()
        for mode, reward in row["rewards"].items():
            # Products of many small numbers may leave the range of float32.
            np.testing.assert_allclose(reward, expected[mode], rtol=2e-5, atol=np.finfo("f4").tiny, err_msg=mode)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_scores_equal_those_of_torch(family, llama, tmp_path):
    folder, model = llama if family == "llama" else (tmp_path / "hf", write_checkpoint(tmp_path / "hf", family))
    check(model, transformers.AutoTokenizer.from_pretrained(folder), run(tmp_path, folder, ROWS))


def test_scores_of_the_shipped_model_equal_those_of_torch(tmp_path):
    folder = ASSETS / "tiny"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    question = (
        "It is 3 o'clock. Mia reads for 5 hours, walks for 4 hours and sleeps for 5 hours. "
        "When does she stop walking, and when is she done?"
    )
    row = {"question": question, "answer": "Mia stops walking at 12 o'clock and is done at 5 o'clock."}
    traces = ("From 3, reads 5 to 8, walks 4 to 12, sleeps 5 to 5.", "")
    rows = run(tmp_path, folder, [row | {"trace": trace} for trace in traces])
    check(model, transformers.AutoTokenizer.from_pretrained(folder), rows)
    assert rows[0]["rewards"]["prob"] > rows[1]["rewards"]["prob"]


def test_the_temperature_divides_the_logits(llama, tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama[0])
    check(llama[1], tokenizer, run(tmp_path, llama[0], ROWS, "--temperature=0.5"), temperature=0.5)


def test_the_papers_tags_and_a_template_of_ones_own(llama, tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama[0])
    flags = ("--trace.opening=<think>", "--trace.closing=</think>", "--text.template=Q: {question} A: ")
    rows = run(tmp_path, llama[0], ROWS[:3], *flags)
    check(llama[1], tokenizer, rows, before="<bos>Q: ", after=" A: <think>", closing="</think>")


def test_the_chat_template_of_the_tokenizer_is_used_and_bos_is_not_doubled(tmp_path):
    model = write_checkpoint(tmp_path / "chat", "llama")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "chat")
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(tmp_path / "chat")
    rows = run(tmp_path, tmp_path / "chat", ROWS[:3])
    check(model, tokenizer, rows, before="<bos>[user] ", after="\n[assistant] ")


def test_an_empty_trace_is_worth_its_baseline(llama, tmp_path):
    rows = run(tmp_path, llama[0], [row | {"trace": ""} for row in ROWS])
    for row in rows:
        np.testing.assert_allclose(row["token_log_probs"], row["base_token_log_probs"], atol=1e-5)
        np.testing.assert_allclose(row["rewards"]["weighted_sum_inverse_prob"], 1.0, rtol=1e-5)


def test_scores_do_not_depend_on_the_batch(llama, tmp_path):
    together = run(tmp_path, llama[0], ROWS)
    for rows in (run(tmp_path, llama[0], ROWS, "--batch-size=2"), run(tmp_path, llama[0], ROWS[::-1])[::-1]):
        for one, other in zip(rows, together, strict=True):
            for name in ("token_log_probs", "base_token_log_probs"):
                np.testing.assert_allclose(one[name], other[name], rtol=0, atol=2e-5)
            np.testing.assert_allclose(*[list(row["rewards"].values()) for row in (one, other)], rtol=1e-4)


def test_rows_keep_their_keys_and_order(llama, tmp_path, capsys):
    out = run(tmp_path, llama[0], ROWS, "--batch-size=2")
    assert all(list(row) == [*source, *score.ADDS] for row, source in zip(out, ROWS, strict=True))
    assert [{key: row[key] for key in source} for row, source in zip(out, ROWS, strict=True)] == ROWS
    printed = capsys.readouterr()
    assert printed.out.startswith("scored 5 rows with ") and printed.out.count("\n") == 1
    assert printed.err.splitlines()[-1].startswith("5 of 5 rows, ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


GOOD = ROWS[0]


def fails(capsys, folder, checkpoint, rows, *flags):
    """The line that the command dies with; it must leave nothing behind."""
    with pytest.raises(SystemExit) as exit_:
        run(folder, checkpoint, rows, *flags)
    err = capsys.readouterr().err
    assert exit_.value.code == 2
    assert err.startswith("error: ") and err.count("\n") == 1, err
    assert [path.name for path in folder.iterdir()] == ["in.jsonl"]
    return err


@pytest.mark.parametrize(
    ("rows", "flags", "expected"),
    [
        ([], [], "in.jsonl' is empty; expected one JSON object a line"),
        ([GOOD, "nonsense"], [], "in.jsonl', line 2: is not JSON"),
        ([{"question": "a", "answer": "b"}], [], "line 1: 'trace' is missing; expected text"),
        ([{"question": "a", "trace": None, "answer": "b"}], [], "line 1: 'trace' is None; expected text"),
        ([GOOD | {"question": " "}], [], "line 1: 'question' is ' '; expected non-empty text"),
        ([GOOD | {"answer": ""}], [], "line 1: 'answer' is ''; expected non-empty text"),
        ([GOOD | {"answer": 6}], [], "line 1: 'answer' is 6; expected non-empty text"),
        ([GOOD | {"rewards": {}}], [], "line 1: has 'rewards', which the output adds"),
        ([GOOD], ["--temperature=0"], "temperature: 0.0 cannot work; expected a number above 0"),
        ([GOOD], ["--temperature=nan"], "temperature: nan cannot work"),
        ([GOOD], ["--batch-size=0"], "batch_size: 0 cannot work"),
        ([GOOD], ["--trace.opening=</think>", "--trace.closing=</think>"], "trace.opening: '</think>' cannot work"),
        ([GOOD], ["--output=nowhere/out.jsonl"], "output: cannot write 'nowhere/out.jsonl': No such file or directory"),
        ([GOOD], ["--input=nowhere.jsonl"], "input: cannot read 'nowhere.jsonl': No such file"),
        ([GOOD], ["--sed=1"], "unknown field --sed"),
    ],
)
def test_bad_input_is_refused_before_the_model_is_loaded(tmp_path, capsys, monkeypatch, rows, flags, expected):
    monkeypatch.setattr(checkpoints, "load", None)
    monkeypatch.chdir(tmp_path)
    assert expected in fails(capsys, tmp_path, "model", rows, *flags)


@pytest.mark.parametrize(
    ("row", "flags", "expected"),
    [
        ({"question": "3 " * 1100}, ["--text.max-prompt-length=9"], "the prompt has 1103 tokens; expected at most"),
        ({"answer": "3"}, ["--text.max-answer-length=1"], "the answer has 2 tokens; expected at most text.max_answer"),
        (
            {"trace": "+" * 252, "question": "3", "answer": "3"},
            [],
            "258 tokens of prompt, trace, delimiter and answer; expected at most 256",
        ),
        ({}, ["--text.template=Q:"], "text.template: 'Q:' has no {question}"),
        ({}, ["--trace.closing=<answer>"], "trace.closing: '<answer>' is missing from the tokenizer"),
    ],
)
def test_rows_that_training_would_not_take_are_refused_before_anything_runs(
    llama, tmp_path, capsys, monkeypatch, row, flags, expected
):
    monkeypatch.setattr(scoring, "score", None)
    assert expected in fails(capsys, tmp_path, llama[0], [GOOD | row], *flags)
