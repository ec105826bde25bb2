"""Every mistake of a user ends in one line that names the field and the cure, before anything is written."""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from launch import cli, train
from nrt_jax import hf
from nrt_jax.training.config import TrainConfig
from nrt_jax.training.config_io import to_dict
from tests.fixtures_run import examples, write_model, write_rows

SMALL = ("--rollout.prompts=4", "--rollout.group-size=2", "--evaluation.questions=2", "--steps=1")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> pathlib.Path:
    """A folder with a good `model` and good `rows.jsonl`."""
    folder = tmp_path_factory.mktemp("inputs")
    write_model(folder / "model")
    write_rows(folder / "rows.jsonl", examples(12))
    return folder


@pytest.fixture
def fails(inputs, tmp_path, capsys, monkeypatch):
    """Runs the command, good but for the given flags, and returns the line that it dies with."""
    workdir = tmp_path / "run"

    def command(*flags: str) -> str:
        monkeypatch.chdir(tmp_path)
        before = contents(tmp_path)
        good = (
            f"--model={inputs / 'model'}",
            f"--data={inputs / 'rows.jsonl'}",
            f"--workdir={workdir}",
            *SMALL,
        )
        with pytest.raises(SystemExit) as exit_:
            cli.run(train.main, TrainConfig, "python -m launch.train", "Trains.", args=[*good, *flags])
        err = capsys.readouterr().err
        assert exit_.value.code == 2
        assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err, err
        assert contents(tmp_path) == before
        return err

    command.workdir = workdir
    return command


def contents(folder: pathlib.Path) -> dict[pathlib.Path, bytes | None]:
    """Every path below a folder, and what its files hold."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("flag", "suggestion"),
    [
        ("--rollout.promts=4", "did you mean --rollout.prompts?"),
        ("--learning-rate=1", "did you mean --optimizer.learning-rate?"),
        ("--sedd=1", "did you mean --seed?"),
    ],
)
def test_unknown_field_suggests_the_right_one(fails, flag, suggestion):
    line = fails(flag)
    assert f"unknown field {flag.partition('=')[0]}" in line and suggestion in line


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("--steps=many", "--steps: bad value 'many'"),
        ("--objective=rl", "--objective: bad value 'rl'; expected one of 'nrt', 'sft', 'sft_with_trace'"),
        ("--steps=0", "steps: 0 cannot work; expected a number above 0"),
        ("--rollout.temperature=0", "rollout.temperature: 0.0 cannot work; expected a number above 0"),
        ("--rollout.max-length=-1", "rollout.max_length: -1 cannot work; expected 0 or more"),
        ("--checkpoint.every=-1", "checkpoint.every: -1 cannot work; expected 0 or more"),
        ("--evaluation.every=-1", "evaluation.every: -1 cannot work; expected 0 or more"),
        ("--evaluation.temperature=-1", "evaluation.temperature: -1.0 cannot work; expected 0 or more"),
        ("--seed=-1", "seed: -1 cannot work; expected 0 or more"),
        (
            "--rollout.group-size=1",
            "rollout.group_size: 1 cannot work; expected at least 2",
        ),
        ("--reward.mode=weighted_sum", "reward.mode: unknown value 'weighted_sum'; expected one of"),
    ],
)
def test_value_that_cannot_work_is_refused(fails, flag, expected):
    assert expected in fails(flag)


def test_prompts_that_cannot_be_divided_name_the_divisor(fails):
    line = fails("--rollout.prompts=6", "--updates-per-step=2", "--micro-batches=2")
    assert "rollout.prompts: 6 cannot work" in line and "a multiple of 4" in line


def test_missing_data_file(fails):
    assert "data: cannot read 'nowhere/rows.jsonl': No such file" in fails("--data=nowhere/rows.jsonl")


def test_missing_held_out_file(fails):
    assert "cannot read 'test.jsonl': No such file" in fails("--dataset.held-out=test.jsonl")


def test_row_without_an_answer_is_named(fails, inputs):
    path = inputs / "no_answer.jsonl"
    path.write_text('{"question": "one", "answer": "1"}\n{"question": "two"}\n')
    line = fails(f"--data={path}", "--dataset.bad-rows=stop")
    assert f"{str(path)!r}, row 2: answer column 'answer' is missing" in line and "--dataset.answer-column" in line


def test_rows_left_out_are_listed_at_the_start_of_the_run(inputs, tmp_path, capsys, monkeypatch):
    path = write_rows(tmp_path / "rows.jsonl", examples(20))
    path.write_text(path.read_text() + '{"question": "two"}\nno\n')
    monkeypatch.setattr(train.loop, "train", lambda *_: sys.exit(0))
    args = [f"--model={inputs / 'model'}", f"--data={path}", f"--workdir={tmp_path / 'run'}", *SMALL]
    with pytest.raises(SystemExit):
        cli.run(train.main, TrainConfig, "python -m launch.train", "Trains.", args=args)
    assert capsys.readouterr().out.startswith(
        f"data {path}: 20 of 22 rows; left out: 1 answer is missing (first: row 21), 1 is not JSON (first: row 22)\n"
    )


def test_rows_without_a_trace_are_counted_when_traces_are_learned(inputs, tmp_path, capsys, monkeypatch):
    rows = [dataclasses.replace(e, trace=None) if i < 3 else e for i, e in enumerate(examples(20))]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    monkeypatch.setattr(train.loop, "train", lambda *_: sys.exit(0))
    args = [f"--model={inputs / 'model'}", f"--data={path}", f"--workdir={tmp_path / 'run'}", *SMALL]
    for objective, line in (("sft_with_trace", f"data {path}: 20 of 20 rows; 3 without a trace"), ("sft", "")):
        with pytest.raises(SystemExit):
            cli.run(train.main, TrainConfig, "python -m launch.train", "", args=[*args, f"--objective={objective}"])
        out = capsys.readouterr().out
        assert out.startswith(line) and ("without a trace" in out) == bool(line)


def test_a_reward_of_a_verifier_that_can_find_no_answer_right_is_refused(fails, inputs, tmp_path, monkeypatch):
    flags = ("--data=induction", "--dataset.size=8", "--dataset.level=mini", "--verifier.name=deduction")
    line = fails(*flags, "--reward.verifiable=1")
    assert "no example is left of the 8 rows of 'induction': 8 answer is not right to the verifier 'deduction'" in line
    monkeypatch.setattr(train.loop, "train", lambda *_: sys.exit(0))
    args = [f"--model={inputs / 'model'}", *SMALL, f"--workdir={tmp_path / 'other'}", *flags]
    with pytest.raises(SystemExit) as exit_:
        cli.run(train.main, TrainConfig, "python -m launch.train", "Trains.", args=args)
    assert exit_.value.code == 0, "it only measures"


def test_column_that_no_row_has(fails):
    line = fails("--dataset.question-column=problem")
    assert "no example is left of the 12 rows" in line and "12 question is missing (first: row 1)" in line
    assert "its columns are question, answer, trace" in line and "--dataset.question-column" in line


def test_empty_data_file(fails, inputs):
    (inputs / "empty.jsonl").write_text("")
    assert "empty.jsonl' is empty; expected rows with 'question' and 'answer'" in fails(
        f"--data={inputs / 'empty.jsonl'}"
    )


def test_limits_that_leave_no_example(fails):
    line = fails("--text.max-prompt-length=2")
    assert "data: no example is left of the 12 rows" in line and "longer than text.max_prompt_length" in line


def test_data_without_traces_cannot_be_fine_tuned_with_traces(fails, inputs):
    rows = [json.dumps({"question": e.question, "answer": e.answer}) for e in examples(4)]
    (inputs / "no_traces.jsonl").write_text("\n".join(rows))
    line = fails(f"--data={inputs / 'no_traces.jsonl'}", "--objective=sft_with_trace")
    assert "objective: 'sft_with_trace'" in line and "trace" in line


def test_template_together_with_a_chat_template_file(fails):
    line = fails("--text.template={question}", "--text.chat-template=chat.jinja")
    assert "text.chat_template: 'chat.jinja' and text.template are both given; expected one of them" in line


def test_weights_that_do_not_fit_the_sources(fails):
    line = fails("--dataset.weights", "1", "2")
    assert "dataset.weights: 1.0, 2.0 for 1 sources; expected one finite number above 0 for each" in line


def test_template_without_a_place_for_the_question(fails):
    assert "text.template: 'Q:' has no {question}; expected e.g. " in fails("--text.template=Q:")


def test_model_folder_that_does_not_exist(fails):
    assert "nowhere: no such folder; expected a local folder in Hugging Face format" in fails("--model=nowhere")


def test_checkpoint_whose_tensors_do_not_fit_its_config(fails, inputs):
    config = json.loads((write_model(inputs / "unfit") / "config.json").read_text())
    (inputs / "unfit" / "config.json").write_text(json.dumps(config | {"intermediate_size": 32}))
    line = fails(f"--model={inputs / 'unfit'}")
    assert "tensor model.layers.0.mlp" in line
    assert "found shape (24, 16); its config.json expects (32, 16)" in line


@pytest.mark.parametrize("field", ["opening", "closing"])
def test_delimiter_missing_from_the_tokenizer(fails, field):
    line = fails(f"--trace.{field}=<answer>")
    assert f"trace.{field}: '<answer>' is missing from the tokenizer" in line and "--trace.add-tokens any" in line


def test_workdir_that_holds_another_run(fails):
    fails.workdir.mkdir()
    (fails.workdir / "config.json").write_text(json.dumps({"steps": 1, "seed": 5}))
    line = fails("--seed=6")
    assert "holds another run" in line and "choose another --workdir" in line


def test_workdir_that_holds_other_files(fails):
    fails.workdir.mkdir()
    (fails.workdir / "thesis.tex").write_text("years of work")
    assert "holds files of something else; choose a new or empty folder" in fails()


def test_workdir_that_is_a_file(fails):
    fails.workdir.write_text("")
    assert f"workdir {str(fails.workdir)!r}: File exists" in fails()


def test_resumed_run_names_the_field_that_differs(fails, inputs):
    good = TrainConfig(model=str(inputs / "model"), data=(str(inputs / "rows.jsonl"),), workdir=str(fails.workdir))
    fails.workdir.mkdir()
    (fails.workdir / "config.json").write_text(json.dumps(to_dict(good)))
    assert "(rollout.prompts is 256 there, 4 here)" in fails()


def test_shell_sees_one_line_and_exit_code_2(tmp_path):
    root = pathlib.Path(__file__).resolve().parents[2]
    ran = subprocess.run(
        [sys.executable, "-m", "launch.train", "--rollout.promts", "4"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 2 and ran.stdout == ""
    assert ran.stderr == "error: unknown field --rollout.promts; did you mean --rollout.prompts?\n"
    assert not list(tmp_path.iterdir())


def test_model_without_its_tokenizer(fails, inputs):
    model, params = hf.load_model(inputs / "model")
    hf.save(inputs / "no_tokenizer", model, params)
    assert "no tokenizer found; expected tokenizer.json" in fails(f"--model={inputs / 'no_tokenizer'}")


def test_a_bad_row_is_found_before_the_weights_are_read(fails, inputs, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(inputs / "model", model)
    (model / "model.safetensors").write_bytes(b"no weights")
    assert "model.safetensors" in fails(f"--model={model}")
    rows = tmp_path / "rows.jsonl"
    rows.write_text((inputs / "rows.jsonl").read_text() + "{}\n")
    assert "row 13" in fails(f"--model={model}", f"--data={rows}", "--dataset.bad-rows=stop")
