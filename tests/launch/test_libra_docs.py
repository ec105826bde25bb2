"""The commands of docs/libra.md and docs/dpo.md, in their order, on a random model of one layer."""

import json
import pathlib
import re
import shlex

import pytest

from launch import cli
from nrt_jax.rewards.verifiable import Completion
from nrt_jax.tasks import judging
from nrt_jax.tasks.judging import Judged
from nrt_jax.training import setup
from nrt_jax.training.config import TrainConfig
from tests.fixtures_run import examples, write_model, write_rows

DOCS = pathlib.Path(__file__).parents[2] / "docs"


def command(page: str, start: str) -> list[str]:
    """Flags of the one command of a page that starts so."""
    blocks = "".join(re.findall(r"```bash\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)).replace("\\\n", " ")
    (line,) = (line for line in blocks.splitlines() if line.startswith(f"python -m {start}"))
    return shlex.split(line)[3:]


def write(path: pathlib.Path, rows: list[dict]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path, monkeypatch) -> pathlib.Path:
    """Where the commands find what they name."""
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "path" / "to" / "model")
    return tmp_path


def test_what_sft_holds_out_has_verdicts_though_other_data_is_mixed_in(folder):
    tasks = [Judged(e.question, e.answer, i % 2).example(e.trace) for i, e in enumerate(examples(12))]
    write_rows(folder / "chains.jsonl", tasks)
    write_rows(folder / "other.jsonl", examples(12, start=20))
    write(folder / "judging" / "test.jsonl", [vars(Judged(e.question, e.answer, 1)) for e in examples(3, start=40)])
    config = cli.parse(TrainConfig, "", "", args=command("libra.md", "launch.train --config libra/sft"))
    made = setup.prepare(config)
    assert len(made.held_out) == 3
    said = Completion("", judging.verdict(1), well_formed=True)
    assert [made.rules.verdict(row, said) for row in made.held_out] == [1.0] * 3
