"""The adapter against lm-eval's own `hf` model on the same weights, in tasks of a local folder."""

import json

import pytest

pytest.importorskip("lm_eval")
pytest.importorskip("torch")

from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from launch import cli
from launch import eval as evaluate
from nrt_jax import checkpoints
from nrt_jax.evaluation import lm_eval as adapter
from nrt_jax.evaluation.attempts import DecodingConfig
from tests.fixtures_serve import write_checkpoint, write_jsonl

TASKS = {
    "local_choice": 'output_type: multiple_choice\ndoc_to_text: "{{question}}"\ndoc_to_target: label\n'
    'doc_to_choice: "{{choices}}"\nmetric_list: [{metric: acc}, {metric: acc_norm}]\n',
    "local_text": 'output_type: loglikelihood_rolling\ndoc_to_text: ""\ndoc_to_target: "{{text}}"\n'
    "metric_list: [{metric: word_perplexity}]\n",
    "local_words": 'output_type: generate_until\ndoc_to_text: "{{question}}"\ndoc_to_target: "6"\n'
    'generation_kwargs: {until: ["a", "\\n\\n"], max_gen_toks: 20, do_sample: false}\n'
    "metric_list: [{metric: exact_match}]\n",
}
ROWS = [
    {"question": "What is 3 plus 3?", "choices": [" 6", " 7", " It is 8."], "label": 0, "text": "It is 6. " * 3},
    {"question": "What is 12 plus 3? " * 30, "choices": [" 15", " 9", " 3"], "label": 1, "text": "What is it? " * 90},
    {"question": "4 ", "choices": ["1", "2", "33 33"], "label": 2, "text": "7"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random checkpoint of 256 positions, fewer than the longest row has tokens, and the task files."""
    folder = tmp_path_factory.mktemp("harness")
    write_checkpoint(folder / "model", "llama")
    data = write_jsonl(folder / "rows.jsonl", ROWS)
    for name, text in TASKS.items():
        source = (
            f'task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: "{data}"}}}}\ntest_split: test\n'
        )
        (folder / f"{name}.yaml").write_text(source + text)
    return folder


@pytest.fixture(autouse=True)
def own_tasks_alone(monkeypatch):
    """To read all files of lm-eval takes seconds."""
    monkeypatch.setattr(adapter, "TaskManager", lambda **how: TaskManager(**{"include_defaults": False, **how}))


def model_of(folder, **options):
    model, params, tokenizer = checkpoints.load(folder / "model")
    config = DecodingConfig(batch_size=2, chunk_size=4)
    return adapter.NRTModel(model, params, tokenizer, (tokenizer.eos_token_id,), config, **options)


def test_results_equal_those_of_the_hf_model(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    theirs = HFLM(pretrained=str(folder / "model"), device="cpu", batch_size=1, dtype="float32")
    found = {}
    for name, model in (("ours", model_of(folder)), ("theirs", theirs)):
        found[name] = adapter.run(
            model,
            adapter.open_tasks(["local_*"], str(folder)),
            num_fewshot=None,
            limit=None,
            apply_chat_template=False,
            bootstrap_iters=0,
        )
    assert len(found["ours"].samples) == len(found["theirs"].samples) == 9
    for ours, other in zip(found["ours"].samples, found["theirs"].samples, strict=True):
        assert (ours["task"], ours["doc_id"]) == (other["task"], other["doc_id"])
        flat, expected = (
            json.loads(json.dumps(x["resps"]).replace('"True"', "1").replace('"False"', "0")) for x in (ours, other)
        )
        if ours["task"] == "local_words":
            assert flat == expected
            continue
        for mine, hf in zip(numbers(flat), numbers(expected), strict=True):
            assert mine == pytest.approx(hf, rel=1e-5, abs=1e-4)
    for task in TASKS:
        for metric, value in found["theirs"].content["results"][task].items():
            mine = found["ours"].content["results"][task][metric]
            assert mine == (pytest.approx(value, rel=1e-5) if isinstance(value, float) else value), (task, metric)


def numbers(tree):
    """All of a nested list, strings read."""
    return [x for item in tree for x in numbers(item)] if isinstance(tree, list) else [float(tree)]


def test_the_command_writes_results_and_samples(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    flags = ["--checkpoint", folder / "model", "--lm-eval", "local_words", "--harness.include-path", folder]
    flags += ["--harness.thinking", "True", "--decoding.max-trace-length", "8", "--decoding.batch-size", "2"]
    args = [*map(str, flags), "--harness.limit", "2", "--output", str(tmp_path / "e.json")]
    cli.run(evaluate.main, evaluate.EvalConfig, "eval", "", args=args, implied=evaluate.as_in_run)
    found = json.loads((tmp_path / "e.json").read_text())
    samples = [json.loads(line) for line in (tmp_path / "e.jsonl").read_text().splitlines()]
    assert found["results"]["local_words"]["alias"] == "local_words" and len(samples) == 2
    assert "exact_match" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        ("locale_words", "lm_eval: no task locale_words;"),
        ("local_words, local_lost", "lm_eval: local_lost cannot be loaded ("),
        ("local_split", "lm_eval: local_split cannot be loaded ("),
        ("local_group,local_words", "lm_eval: local_group, local_words cannot be loaded (Duplicate"),
        ("local_code", "lm_eval: local_code runs code of the model"),
    ],
)
def test_tasks_that_cannot_be_run_are_one_line_before_a_model_is_loaded(
    folder, tmp_path, capsys, monkeypatch, names, problem
):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    good = (folder / "local_words.yaml").read_text()
    wrong = {
        "local_lost": good.replace("rows.jsonl", "no_rows.jsonl"),
        "local_split": good.replace("test_split: test", "test_split: exam"),
        "local_code": good + "unsafe_code: true\n",
        "local_words": good,
    }
    for name, text in wrong.items():
        (tmp_path / f"{name}.yaml").write_text(text.replace("local_words", name))
    (tmp_path / "local_group.yaml").write_text("group: local_group\ntask: [local_words]\n")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")  # Cannot be loaded.
    flags = ["--checkpoint", tmp_path / "model", "--lm-eval", names, "--harness.include-path", tmp_path]
    args = [*map(str, flags), "--output", str(tmp_path / "e.json")]
    with pytest.raises(SystemExit) as end:
        cli.run(evaluate.main, evaluate.EvalConfig, "eval", "", args=args, implied=evaluate.as_in_run)
    error = capsys.readouterr().err
    assert end.value.code == 2 and problem in error and error.splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "e.json").exists()
