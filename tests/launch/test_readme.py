"""The README's commands: each is accepted as it stands, and the one for a user's own model and data is run."""

import json
import pathlib
import re
import shlex

import pytest

from launch import cli, train
from launch.ablate import AblationConfig
from launch.pretrain import PretrainConfig
from nrt_jax.training.config import TrainConfig
from tests.fixtures_run import examples, write_model, write_rows

README = (pathlib.Path(__file__).parents[2] / "README.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [line.split("#")[0] for block in BLOCKS for line in block.splitlines() if "-m launch." in line]
CONFIGS = {
    "train": (TrainConfig, "default"),
    "ablate": (AblationConfig, "ablation"),
    "pretrain": (PretrainConfig, None),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_accepted(command):
    _, _, module, *flags = shlex.split(command)
    config_type, default = CONFIGS[module.removeprefix("launch.")]
    config = cli.parse(config_type, module, "", default_config=default, args=flags)
    if isinstance(config, TrainConfig):
        config.validate()


def test_own_model_and_data_run_and_leave_an_export(tmp_path):
    (command,) = [c for c in COMMANDS if "--workdir runs/mine" in c]
    own = {
        "path/to/model": str(write_model(tmp_path / "model")),
        "path/to/rows.jsonl": str(write_rows(tmp_path / "rows.jsonl", examples(12))),
        "runs/mine": str(tmp_path / "run"),
    }
    flags = [own.get(word, word) for word in shlex.split(command)[3:]]
    small = "--steps 1 --rollout.prompts 4 --rollout.group-size 2 --rollout.max-trace-length 8 --evaluation.every 0"
    cli.run(train.main, TrainConfig, "train", "", default_config="default", args=[*flags, *small.split()])
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["steps"] == 1 and summary["questions"] == 1
    assert (tmp_path / "run" / "hf" / "model.safetensors").is_file()
