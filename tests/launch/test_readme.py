"""The commands of README and docs: each is accepted as it stands; those of some pages are run one after the other."""

import importlib
import inspect
import json
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from launch import cli, convert, generate, score, train
from nrt_jax import tasks
from nrt_jax.checkpoints import ASSETS
from nrt_jax.training import config_io
from nrt_jax.training.config import TrainConfig
from nrt_jax.training.metrics import read_metrics

ROOT = pathlib.Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = {"README.md": README} | {path.name: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}
_BLOCK, _INLINE = re.compile(r"```(?:bash)?\n(.*?)```", re.DOTALL), re.compile(r"`((?:python|pip) [^`]*)`")
_INDENTED = re.compile(r"(?<=\n\n)((?: {4}.*\n)+)")
_LAUNCHER = re.compile(r"(?:srun|gcloud) .*?(?=python )")


def commands():
    """Those of code blocks, and those in a sentence; not what only begins one."""
    for page, text in PAGES.items():
        blocks = "\n".join(_BLOCK.findall(text) + _INDENTED.findall(text))
        lines = blocks.replace("\\\n", " ").splitlines() + _INLINE.findall(text)
        for line in dict.fromkeys(lines):
            line = line.split(" #")[0].strip()
            if launcher := _LAUNCHER.match(line):  # It may quote the command.
                line = line[launcher.end() :].removesuffix('"')
            if re.match(r"(python|pip) ", line) and "..." not in line:
                yield pytest.param(line, id=f"{page}: {line}")


def config_of(command: str, *, exists: bool = False):
    """What a command's flags are parsed into, as its own last lines do it; of existing checkpoints, with their run."""
    _, _, name, *flags = shlex.split(command)
    module = importlib.import_module(name)
    (parameter,) = inspect.signature(module.main, eval_str=True).parameters.values()
    ending = inspect.getsource(module).split("cli.run(main")[-1]
    default, implied = re.search(r'default_config="([\w/]+)"', ending), re.search(r"implied=(\w+)", ending)
    how = {"implied": getattr(module, implied[1])} if implied and exists else {}
    return cli.parse(parameter.annotation, name, "", default_config=default and default[1], args=flags, **how)


@pytest.mark.parametrize("command", commands())
def test_every_command_is_accepted(command):
    """Ours parse and are valid as they stand; of others, what they name exists."""
    words = shlex.split(command)
    if words[0] == "pip":
        for extra in re.findall(r"\[(.*)\]", command):
            assert all(f'"{name}": [' in (ROOT / "setup.py").read_text() for name in extra.split(","))
    elif words[1] != "-m":
        assert (ROOT / words[1]).is_file()
    elif words[2].startswith("launch."):
        config = config_of(command)
        if hasattr(config, "validate"):
            config.validate()
    else:
        assert importlib.util.find_spec(words[2])
        assert all((ROOT / word).exists() for word in words[3:] if word.startswith("tests/"))


SMALL = {
    "train": "--steps 12 --rollout.prompts 16 --evaluation.every 0 --evaluation.questions 128",
    "eval": "--questions 2 --samples 4 --decoding.chunk-size 48 --decoding.max-trace-length 24",
}


def run_page(name, own):
    """A page's commands in their order, with few steps and questions; installing is what CI begins with.

    Args:
        name: Of the page.
        own: What stands for names that a user has; a command with a name for which nothing stands is left out.
    """
    for line in "".join(re.findall(r"```bash\n(.*?)```", PAGES[name], re.DOTALL)).splitlines():
        words = [own.get(word, word) for word in shlex.split(line)]
        if words[0] == "echo":
            subprocess.run(["bash", "-c", line], check=True)
        elif words[1:3] == ["-m", "pytest"] or not {"venv", "path/to/model"}.isdisjoint(words):
            continue
        elif words[:2] == ["python", "-m"]:
            small = [] if "--compare" in words else SMALL.get(words[2].removeprefix("launch."), "").split()
            importlib.import_module(words[2]).main(config_of(shlex.join(words + small), exists=True))


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """The folder in which the quickstart was run."""
    folder = tmp_path_factory.mktemp("quickstart")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_page("index.md", {})
    return folder


def test_the_quickstart_runs(quickstart):
    both = json.loads((quickstart / "both.json").read_text())
    assert both["questions"] == 2 and both["comparison"].keys() == both["metrics"].keys()
    assert (quickstart / "runs" / "first" / "report.html").stat().st_size > 10_000
    (row,) = [json.loads(line) for line in (quickstart / "out.jsonl").read_text().splitlines()]
    assert set(generate.ADDS) < set(row)


def test_a_few_steps_make_the_model_use_its_skill(quickstart):
    summary = json.loads((quickstart / "runs" / "first" / "summary.json").read_text())
    assert summary["accuracy_before"] < 0.3
    assert summary["accuracy_after"] > summary["accuracy_before"] + 0.15
    assert summary["accuracy_empty_trace_after"] < 0.05  # the trace does the work
    records = read_metrics(quickstart / "runs" / "first" / "metrics.jsonl")
    assert max(record["sampler_trainer_kl"] for record in records) < 1e-6
    assert records[-1]["reward_gain"] > records[0]["reward_gain"]


def test_the_commands_of_evaluation_and_report_run(quickstart, monkeypatch):
    monkeypatch.chdir(quickstart)
    run_page("evaluation.md", {"runs/mine": "runs/first", "first.json": "eval.json", "second.json": "both.json"})
    compared = json.loads((quickstart / "compared.json").read_text())
    assert compared["comparison"]["greedy accuracy"]["difference"]["mean"] is not None
    (quickstart / "both.html").unlink(missing_ok=True)
    run_page("report.md", dict.fromkeys(("runs/mine", "runs/a", "runs/b"), "runs/first"))
    assert "first (2)" in (quickstart / "both.html").read_text()


FILES = sorted(path.relative_to(ROOT / "configs").with_suffix("") for path in (ROOT / "configs").rglob("*.py"))


@pytest.mark.parametrize("name", map(str, FILES))
def test_every_recipe_has_values_of_the_types_that_its_fields_have(name):
    config = cli.load_config(name, object)
    assert config_io.from_dict(type(config), config_io.to_dict(config), where=name) == config


def test_every_recipe_is_on_its_page():
    files = set(FILES)
    assert {f"`{path.as_posix()}`" for path in files} <= set(re.findall(r"`[\w/]+`", PAGES["recipes.md"]))


@pytest.mark.parametrize("name", ["rollout", "rewards", "objectives", "report"])
def test_the_api_page_has_all_functions_and_classes_of_a_public_face(name):
    module = importlib.import_module(f"nrt_jax.{name}")
    section = re.search(rf"::: nrt_jax\.{name}\n.*?members: \[(.*?)\]", PAGES["api.md"], re.DOTALL)[1].split(", ")
    assert {one for one in module.__all__ if callable(getattr(module, one))} <= set(section) <= set(module.__all__)


def test_every_page_stands_in_the_menu_once():
    menu = re.findall(r": (\w+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(menu) == sorted(PAGES.keys() - {"README.md"})


def test_every_message_that_the_faq_quotes_is_one():
    source = "".join(path.read_text() for path in (ROOT / "nrt_jax").rglob("*.py"))
    rows = re.search(r"\| message has .*?\n\n", PAGES["faq.md"], re.DOTALL)[0].splitlines()[2:]
    quoted = [re.match(r"\| `([^`]+)`", row)[1] for row in rows if row] + re.findall(
        r"\*\*`([^`]+)`\.\*\*", PAGES["faq.md"]
    )
    assert len(quoted) > 5
    for message in quoted:
        assert message in source, message


def test_every_metric_that_the_faq_names_is_logged():
    source = "".join(path.read_text() for path in (ROOT / "nrt_jax").rglob("*.py"))
    named = set(re.findall(r"`(\w+_(?:share|length|gain|prob|trace|norm|kl))`", PAGES["faq.md"]))
    assert len(named) > 5 and all(re.search(rf"\b{name}\b", source) for name in named)


def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    subprocess.run(command, cwd=ROOT, check=True)
    method = (tmp_path / "site" / "method" / "index.html").read_text()
    assert method.count("<math") > 30 and "$" not in method.split("<article")[1].split("</article>")[0]
    remote = re.findall(r"""(?:src|<link[^>]*href)=["'](https?:[^"']+)""", method)
    assert not remote, "the site would fetch from elsewhere"


def test_from_a_hugging_face_folder_to_one_that_transformers_generates_from(tmp_path, monkeypatch, capsys):
    """The whole path of "Your model, your data", on the embedded model: train, convert, load, generate."""
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    rows = [vars(example) for example in tasks.get("clock").examples(40, 0, split="train")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = {"path/to/model": str(ASSETS / "tiny"), "path/to/rows.jsonl": str(tmp_path / "rows.jsonl")}
    section = README.split("## Your model, your data")[1]
    bash, python = (re.search(f"```{kind}\n(.*?)```", section, re.DOTALL)[1] for kind in ("bash", "python"))
    first, second = ([own.get(word, word) for word in shlex.split(line)[3:]] for line in bash.splitlines())
    small = "--steps 1 --rollout.prompts 4 --rollout.group-size 2 --evaluation.every 0 --evaluation.questions 2"
    cli.run(train.main, TrainConfig, "train", "", default_config="default", args=[*first, *small.split()])
    summary = json.loads((tmp_path / "runs" / "mine" / "summary.json").read_text())
    assert summary["steps"] == 1 and summary["questions"] == 2
    cli.run(convert.main, convert.ConvertConfig, "convert", "", args=second)

    capsys.readouterr()
    exec(python, {})
    text = capsys.readouterr().out
    assert text.startswith("<bos>It is 3 o'clock.") and "<|response_start|>" in text
    exec(python.replace("runs/mine/hf", "exported"), {})  # in bfloat16
    assert capsys.readouterr().out.startswith("<bos>It is 3 o'clock.")


def test_generate_and_score_read_what_the_readme_shows(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "It is 3 o\'clock."}\n{"prompt_ids": [1, 5, 6]}\n')
    row = {"question": "It is 3 o'clock. Mia reads for 5 hours.", "trace": "From 3, reads 5 to 8.", "answer": "8"}
    (tmp_path / "qa.jsonl").write_text(json.dumps(row))
    section = README.split("## Complete, score, convert")[1]
    lines = re.search("```bash\n(.*?)```", section, re.DOTALL)[1].replace("path/to/model", str(ASSETS / "tiny"))
    for line in lines.splitlines():
        _, _, module, *flags = shlex.split(line)
        command = {"generate": generate, "score": score, "convert": convert}[module.removeprefix("launch.")]
        (parameter,) = inspect.signature(command.main).parameters.values()
        cli.run(command.main, parameter.annotation, module, "", args=flags)
    completed = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [set(row) - {"prompt", "prompt_ids"} for row in completed] == [set(generate.ADDS)] * 2
    (scored,) = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert set(scored) - set(row) == set(score.ADDS)
    assert (tmp_path / "exported" / "config.json").is_file()
