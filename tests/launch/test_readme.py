"""The README's commands: each is accepted as it stands, and those for a user's own model and data are run."""

import json
import pathlib
import re
import shlex

import pytest

from launch import chains, cli, convert, generate, merge, plan, report, score, train
from launch.ablate import AblationConfig
from launch.prepare import PrepareConfig
from launch.pretrain import PretrainConfig
from nrt_jax import tasks
from nrt_jax.checkpoints import ASSETS
from nrt_jax.training.config import TrainConfig

README = (pathlib.Path(__file__).parents[2] / "README.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [line.split("#")[0] for block in BLOCKS for line in block.splitlines() if "-m launch." in line]
CONFIGS = {
    "train": (TrainConfig, "default"),
    "ablate": (AblationConfig, "ablation"),
    "pretrain": (PretrainConfig, None),
    "prepare": (PrepareConfig, None),
    "generate": (generate.GenerateConfig, None),
    "score": (score.ScoreConfig, None),
    "convert": (convert.ConvertConfig, None),
    "chains": (chains.ChainsConfig, None),
    "merge": (merge.MergeConfig, None),
    "plan": (plan.PlanConfig, None),
    "report": (report.ReportConfig, None),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_accepted(command):
    _, _, module, *flags = shlex.split(command)
    config_type, default = CONFIGS[module.removeprefix("launch.")]
    config = cli.parse(config_type, module, "", default_config=default, args=flags)
    if isinstance(config, TrainConfig):
        config.validate()


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
        cli.run(command.main, CONFIGS[module.removeprefix("launch.")][0], module, "", args=flags)
    completed = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [set(row) - {"prompt", "prompt_ids"} for row in completed] == [set(generate.ADDS)] * 2
    (scored,) = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert set(scored) - set(row) == set(score.ADDS)
    assert (tmp_path / "exported" / "config.json").is_file()
