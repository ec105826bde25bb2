"""launch.generate against transformers' generate, and each promise that its rows make."""

import json

import jax
import numpy as np
import pytest

pytest.importorskip("torch")
import torch
import transformers

from launch import generate
from nrt_jax import checkpoints, tasks
from nrt_jax.checkpoints import ASSETS
from nrt_jax.errors import UserError
from nrt_jax.evaluation import generation
from nrt_jax.rollout import Truncation
from tests import fixtures_serve
from tests.fixtures_run import tokenizer
from tests.fixtures_serve import torch_log_probs, write_checkpoint, write_jsonl

NEW = 64
PROMPTS = [
    "What is 3 plus 3?",
    "",
    "It is 7. What is 1 plus 3? It is 4. What is 2 plus 3? It is 5. What is 12 plus 3?",
    "é <think> 12 + 3",
    "What",
]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """(folder, transformers' model)."""
    folder = tmp_path_factory.mktemp("llama")
    return folder, write_checkpoint(folder, "llama")


@pytest.fixture(scope="module", params=["llama", "mistral", "tiny"])
def model_and_prompts(request, tmp_path_factory, llama):
    """(folder, transformers' model, prompts)."""
    if request.param == "llama":
        return *llama, PROMPTS
    if request.param == "mistral":
        folder = tmp_path_factory.mktemp("mistral")
        return folder, write_checkpoint(folder, "mistral"), PROMPTS[:3]
    folder, (example,) = ASSETS / "tiny", tasks.get("clock").examples(1, 0, split="heldout")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    return folder, model, ["Lena", example.question + "\n"]


def run(folder, checkpoint, rows, *flags):
    return fixtures_serve.run(generate.main, generate.GenerateConfig, folder, checkpoint, rows, *flags)


def their_greedy(model, ids, num=NEW):
    with torch.no_grad():
        out = model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=num,
            do_sample=False,
            pad_token_id=0,
        )
    return out[0, len(ids) :].tolist()


def test_greedy_completions_equal_those_of_transformers(model_and_prompts, tmp_path):
    folder, model, prompts = model_and_prompts
    rows = run(tmp_path, folder, [{"prompt": p} for p in prompts], f"--max-new-tokens={NEW}", "--temperature=0")
    texts = transformers.AutoTokenizer.from_pretrained(folder)
    for prompt, row in zip(prompts, rows, strict=True):
        ids = [texts.bos_token_id, *texts(prompt, add_special_tokens=False)["input_ids"]]
        expected = their_greedy(model, ids)
        assert row["token_ids"] == expected
        stopped = expected[-1] == texts.eos_token_id
        assert row["finish_reason"] == ("stop" if stopped else "length") and (stopped or len(expected) == NEW)
        assert row["completion"] == texts.decode(expected[:-1] if stopped else expected)
        log_probs = torch_log_probs(model, ids + expected, len(expected))
        np.testing.assert_allclose(row["log_probs"], log_probs, rtol=0, atol=1e-4)
    assert folder != ASSETS / "tiny" or {row["finish_reason"] for row in rows[1:]} == {"stop"}


def test_stop_ids_are_those_of_generation_config_and_of_the_tokenizer(llama, tmp_path):
    prompt = {"prompt_ids": [1, 9, 30, 31, 32, 40]}
    (free,) = run(tmp_path, llama[0], [prompt], f"--max-new-tokens={NEW}", "--temperature=0")
    stop = free["token_ids"][5]
    first = free["token_ids"].index(stop)
    model = write_checkpoint(tmp_path / "chat", "llama", eos_token_id=[stop, 3])
    (row,) = run(tmp_path, tmp_path / "chat", [prompt], f"--max-new-tokens={NEW}", "--temperature=0")
    assert row["token_ids"] == free["token_ids"][: first + 1] == their_greedy(model, prompt["prompt_ids"])
    assert row["log_probs"] == free["log_probs"][: first + 1] and row["finish_reason"] == "stop"
    assert row["completion"] == tokenizer().decode(free["token_ids"][:first])
    assert generation.stop_ids(tmp_path / "chat", tokenizer(), 500) == (tokenizer().eos_token_id, stop, 3)


def test_an_eos_token_id_that_is_no_id_is_refused(tmp_path):
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    assert generation.stop_ids(tmp_path, tokenizer(), 8) == (tokenizer().eos_token_id, 7)
    (tmp_path / "config.json").write_text('{"eos_token_id": "</s>"}')
    with pytest.raises(UserError, match=r"config\.json: eos_token_id: '</s>'; expected a token id"):
        generation.stop_ids(tmp_path, tokenizer(), 8)
    for beyond in (8, -1, 10**30):
        (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": beyond}))
        with pytest.raises(UserError, match=rf"config\.json: eos_token_id: {beyond}; expected a token id from 0 to 7"):
            generation.stop_ids(tmp_path, tokenizer(), 8)


def test_log_probs_are_those_of_the_distribution_that_was_sampled_from(llama, tmp_path):
    prompts = [[1, *range(10, 20)], [1, 50]]
    flags = ("--max-new-tokens=16", "--temperature=0.5", "--seed=3")
    rows = run(tmp_path, llama[0], [{"prompt_ids": ids} for ids in prompts], *flags)
    for ids, row in zip(prompts, rows, strict=True):
        sampled = row["token_ids"]
        expected = torch_log_probs(llama[1], ids + sampled, len(sampled), temperature=0.5)
        np.testing.assert_allclose(row["log_probs"], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("temperature", [0.6, 1.5])
def test_first_tokens_are_drawn_from_the_softmax(llama, tmp_path, temperature):
    num, ids = 4000, [1, 40, 41, 42]
    flags = ("--max-new-tokens=1", f"--temperature={temperature}", "--batch-size=1000")
    rows = run(tmp_path, llama[0], [{"prompt_ids": ids}] * num, *flags)
    with torch.no_grad():
        probabilities = torch.softmax(llama[1](torch.tensor([ids])).logits[0, -1].double() / temperature, -1).numpy()
    counts = np.bincount([row["token_ids"][0] for row in rows], minlength=len(probabilities))
    common = num * probabilities >= 8  # the rest is one cell
    expected = num * np.append(probabilities[common], probabilities[~common].sum())
    observed = np.append(counts[common], counts[~common].sum())
    statistic, freedom = np.sum((observed - expected) ** 2 / expected), common.sum()
    assert freedom >= 5
    assert abs(statistic - freedom) < 5 * np.sqrt(2 * freedom)  # a statistic near 0 would be suspicious too


ROWS = [{"prompt_ids": [1, *range(20, 20 + n)]} for n in (3, 9, 1, 12, 5, 2, 11)]


def test_a_row_does_not_depend_on_the_batch_around_it(llama, tmp_path):
    flags = ("--max-new-tokens=12", "--seed=5")
    together = run(tmp_path, llama[0], ROWS, *flags)
    assert len({tuple(row["token_ids"]) for row in together}) == len(ROWS)
    assert tokens(run(tmp_path, llama[0], ROWS, *flags, "--batch-size=3")) == tokens(together)
    others = [row if i % 2 else {"prompt_ids": [1, 60, 61]} for i, row in enumerate(ROWS)]
    assert tokens(run(tmp_path, llama[0], others, *flags))[1::2] == tokens(together)[1::2]


def test_permuted_rows_that_keep_their_numbers_keep_their_completions(llama):
    model, params, _ = checkpoints.load(llama[0])
    prompts, order = [row["prompt_ids"] for row in ROWS], np.random.default_rng(0).permutation(len(ROWS))

    def complete(rows):
        settings = {"stop_ids": (2,), "max_new_tokens": 12, "temperature": 1.0, "seed": 5, "batch_size": 64}
        settings["truncation"] = Truncation()
        parts = generation.complete(model, params, [prompts[i] for i in rows], rows, **settings)
        return {rows[i]: completion.token_ids for part in parts for i, completion in part.items()}

    assert complete(list(order)) == complete(list(range(len(ROWS))))


def test_the_seed_and_the_line_decide_what_is_sampled(llama, tmp_path):
    flags = ("--max-new-tokens=12",)
    prompt = {"prompt_ids": [1, 40]}
    same = run(tmp_path, llama[0], [prompt] * 7, *flags)
    assert same == run(tmp_path, llama[0], [prompt] * 7, *flags)
    assert len({tuple(row["token_ids"]) for row in same}) == 7  # no line repeats another
    other = run(tmp_path, llama[0], [prompt] * 7, *flags, "--seed=1")
    assert not {tuple(row["token_ids"]) for row in other} & {tuple(row["token_ids"]) for row in same}
    blank = run(tmp_path, llama[0], [prompt, "", prompt, *[prompt] * 5], *flags)
    assert tokens(blank) == [tokens(same)[0], *tokens(same)[2:], tokens(blank)[-1]]


def test_a_prompt_is_its_ids_with_one_bos_and_special_tokens_meant(llama, tmp_path):
    texts = tokenizer()
    bos, think = texts.bos_token_id, texts.convert_tokens_to_ids("<think>")
    words = texts.encode("What is 3", add_special_tokens=False)
    pairs = [
        ("What is 3", [bos, *words]),
        ("<bos>What is 3", [bos, *words]),
        ("<think>What is 3", [bos, think, *words]),
    ]
    rows = [{"prompt": text} for text, _ in pairs] + [{"prompt_ids": ids, "prompt": None} for _, ids in pairs]
    out = tokens(run(tmp_path, llama[0], rows, "--max-new-tokens=12", "--temperature=0"))
    assert out[:3] == out[3:] and out[0] == out[1] != out[2]


def test_rows_keep_their_keys_and_order(llama, tmp_path, capsys):
    rows = [row | {"id": i, "nested": {"ü": [1, None, 0.1]}} for i, row in enumerate(ROWS)]
    out = run(tmp_path, llama[0], rows, "--max-new-tokens=12", "--batch-size=3")
    assert [{key: row[key] for key in rows[0]} for row in out] == rows
    assert all(list(row) == [*rows[0], *generate.ADDS] for row in out)
    printed = capsys.readouterr()
    assert printed.out.startswith("completed 7 prompts with ") and printed.out.count("\n") == 1
    assert printed.err.splitlines()[-1].startswith("7 of 7 rows, ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def tokens(rows):
    return [row["token_ids"] for row in rows]


GOOD = {"prompt": "What is 3 plus 3?"}


def fails(capsys, folder, checkpoint, rows, *flags):
    """The line that the command dies with; it must leave an older output as it was, and nothing else."""
    (folder / "out.jsonl").write_text("older\n")
    with pytest.raises(SystemExit) as exit_:
        run(folder, checkpoint, rows, *flags)
    err = capsys.readouterr().err
    assert exit_.value.code == 2
    assert err.startswith("error: ") and err.count("\n") == 1, err
    assert (folder / "out.jsonl").read_text() == "older\n"
    assert sorted(path.name for path in folder.iterdir()) == ["in.jsonl", "out.jsonl"]
    return err


@pytest.mark.parametrize(
    ("rows", "flags", "expected"),
    [
        ([], [], "in.jsonl' is empty; expected one JSON object a line"),
        ([""], [], "in.jsonl' is empty"),
        ([GOOD, "{"], [], "in.jsonl', line 2: is not JSON"),
        ([GOOD, "", "[1]"], [], "in.jsonl', line 3: is a list; expected an object"),
        (['{"prompt": NaN}'], [], "line 1: is not JSON (the number NaN)"),
        (['{"prompt": "a", "weight": 1e999}'], [], "line 1: is not JSON (the number 1e999)"),
        (["[" * 100_000], [], "line 1: is not JSON"),
        ([GOOD, {"id": 1}], [], "line 2: has neither 'prompt' nor 'prompt_ids'; expected one of them"),
        ([{"prompt": "a", "prompt_ids": [1]}], [], "line 1: has both 'prompt' and 'prompt_ids'"),
        ([{"prompt": 3}], [], "line 1: 'prompt' is 3; expected text"),
        (['{"prompt": "\\ud800"}'], [], "line 1: 'prompt' holds half a surrogate pair"),
        ([{"prompt_ids": []}], [], "line 1: 'prompt_ids' is []; expected a non-empty list of integers"),
        ([{"prompt_ids": "1 2"}], [], "line 1: 'prompt_ids' is '1 2'; expected a non-empty list"),
        ([{"prompt_ids": [1, True]}], [], "line 1: 'prompt_ids' is [1, True]; expected"),
        ([{"prompt_ids": [1, 2.0]}], [], "line 1: 'prompt_ids' is [1, 2.0]; expected"),
        ([GOOD | {"completion": "mine"}], [], "line 1: has 'completion', which the output adds; rename"),
        ([GOOD], ["--max-new-tokens=0"], "max_new_tokens: 0 cannot work; expected a number above 0"),
        ([GOOD], ["--max-new-tokens=-1"], "max_new_tokens: -1 cannot work"),
        ([GOOD], ["--batch-size=0"], "batch_size: 0 cannot work"),
        ([GOOD], ["--temperature=-0.5"], "temperature: -0.5 cannot work; expected 0 (greedy) or a number above it"),
        ([GOOD], ["--temperature=nan"], "temperature: nan cannot work"),
        ([GOOD], ["--temperature=inf"], "temperature: inf cannot work"),
        ([GOOD], ["--seed=-1"], "seed: -1 cannot work; expected a number from 0 to below 2**32"),
        ([GOOD], [f"--seed={2**32}"], "seed: 4294967296 cannot work"),
        ([GOOD], ["--input=nowhere.jsonl"], "input: cannot read 'nowhere.jsonl': No such file"),
        ([GOOD], ["--input=."], "input: cannot read '.': Is a directory"),
        ([GOOD], ["--output=nowhere/out.jsonl"], "output: cannot write 'nowhere/out.jsonl': No such file or directory"),
        ([GOOD], ["--output=/dev/null"], "output: '/dev/null' is not a regular file"),
        ([GOOD], ["--output=."], "output: '.' is not a regular file"),
        ([GOOD], ["--dtype=float16"], "--dtype: bad value 'float16'; expected one of 'float32', 'bfloat16'"),
    ],
)
def test_bad_input_is_refused_before_the_model_is_loaded(tmp_path, capsys, monkeypatch, rows, flags, expected):
    monkeypatch.setattr(checkpoints, "load", None)
    monkeypatch.chdir(tmp_path)
    assert expected in fails(capsys, tmp_path, "model", rows, *flags)


@pytest.mark.parametrize("missing", ["checkpoint", "input", "output"])
def test_required_flags(capsys, missing):
    flags = [f"--{name}=x" for name in ("checkpoint", "input", "output") if name != missing]
    with pytest.raises(SystemExit):
        fixtures_serve.cli.run(generate.main, generate.GenerateConfig, "prog", "Does it.", args=flags)
    assert capsys.readouterr().err == f"error: --{missing}: missing; expected str\n"


@pytest.mark.parametrize(
    ("rows", "flags", "expected"),
    [
        (
            [GOOD, {"prompt_ids": [1, 391]}],
            ["--max-new-tokens=9"],
            "line 2: 'prompt_ids' holds 391; expected ids from 0 to 390",
        ),
        ([{"prompt_ids": [-1]}], [], "line 1: 'prompt_ids' holds -1; expected"),
        (
            [GOOD, {"prompt_ids": [1] * 200}],
            ["--max-new-tokens=57"],
            "line 2: 200 prompt tokens and max_new_tokens 57 are 257; expected at most 256, the model's max_position",
        ),
    ],
)
def test_prompts_that_the_model_cannot_take_are_refused_before_anything_runs(
    llama, tmp_path, capsys, monkeypatch, rows, flags, expected
):
    monkeypatch.setattr(generation, "complete", None)
    assert expected in fails(capsys, tmp_path, llama[0], rows, *flags)


def test_the_longest_prompt_that_fits_is_taken(llama, tmp_path):
    (row,) = run(tmp_path, llama[0], [{"prompt_ids": [1] * 255}], "--max-new-tokens=1")
    assert len(row["token_ids"]) == 1


def test_a_tokenizer_without_bos_and_eos(llama, tmp_path, capsys, monkeypatch):
    model, params, texts = checkpoints.load(llama[0])
    texts.bos_token = texts.eos_token = None
    monkeypatch.setattr(checkpoints, "load", lambda path, dtype: (model, params, texts))
    monkeypatch.setattr(generation, "_eos_ids", lambda path, vocab_size: [])
    assert generation.prompt_ids(texts, "What") == texts.encode("What", add_special_tokens=False)
    rows = run(tmp_path, llama[0], [{"prompt": f"What is {i}?"} for i in range(7)], "--max-new-tokens=12")
    assert {(len(row["token_ids"]), row["finish_reason"]) for row in rows} == {(12, "length")}
    capsys.readouterr()
    line = fails(capsys, tmp_path, llama[0], [{"prompt": ""}])
    assert "line 1: 'prompt' is empty and the tokenizer has no BOS; expected at least one token" in line


def test_no_checkpoint(tmp_path, capsys):
    assert "nowhere: no such folder" in fails(capsys, tmp_path, "nowhere", [GOOD])


def test_weights_that_are_not_finite_end_in_one_line_and_keep_the_older_output(llama, tmp_path, capsys, monkeypatch):
    model, params, texts = checkpoints.load(llama[0])
    broken = jax.tree.map(lambda x: x * np.nan, params)
    monkeypatch.setattr(checkpoints, "load", lambda path, dtype: (model, broken, texts))
    source = write_jsonl(tmp_path / "in.jsonl", ROWS)
    (tmp_path / "out.jsonl").write_text("older\n")
    config = generate.GenerateConfig(
        checkpoint=str(llama[0]), input=str(source), output=str(tmp_path / "out.jsonl"), max_new_tokens=12
    )
    with pytest.raises(UserError, match=r"in\.jsonl', line 1: the result is not finite"):
        generate.main(config)
    assert (tmp_path / "out.jsonl").read_text() == "older\n"
    assert len(list(tmp_path.iterdir())) == 2


def test_an_output_that_is_a_link_stays_one(llama, tmp_path):
    (tmp_path / "real.jsonl").write_text("older\n")
    (tmp_path / "out.jsonl").symlink_to("real.jsonl")
    out = run(tmp_path, llama[0], ROWS, "--max-new-tokens=12")
    assert (tmp_path / "out.jsonl").is_symlink()
    assert [json.loads(line) for line in (tmp_path / "real.jsonl").read_text().splitlines()] == out
