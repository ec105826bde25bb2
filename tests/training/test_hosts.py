"""A mesh is one device, and two processes of four devices are one of eight; they end together.

All runs of the mesh here have the same programs, so that this process compiles them once.
"""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from launch import cli
from nrt_jax import hf
from nrt_jax.training import loop
from nrt_jax.training.config import TrainConfig
from nrt_jax.training.setup import prepare
from tests.conftest import CACHE
from tests.fixtures_run import examples, records, write_model, write_rows

ROOT = pathlib.Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": str(CACHE),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # JAX caches nothing that the second process compiles.
    # The devices are made by the processes themselves.
    "XLA_FLAGS": " ".join(flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag),
}
SHARED = {
    "updates-per-step": 1,
    "rollout.group-size": 2,
    "rollout.max-trace-length": 8,
    "rollout.chunk-size": 8,
    "evaluation.every": 0,
    "checkpoint.every": 1,
    "optimizer.schedule": "constant",
    "optimizer.warmup-updates": 0,
    "optimizer.learning-rate": 1e-2,
    "optimizer.eps": 1e-3,  # Keeps rounding as small as it is.
}
REASONING = {
    "steps": 2,
    "micro-batches": 2,
    "mesh.data": 2,
    "mesh.fsdp": 2,
    "mesh.tensor": 2,
    "mesh.decode-tensor": 4,
    "rollout.prompts": 16,
    "evaluation.questions": 5,
    "evaluation.batch-size": 2,
}
#: What processes have to agree on beside tokens: where chains are cut, verdicts, a second policy. (`tests.soak.hosts`)
WITH_HINTS = REASONING | {
    "rollout.group-size": 3,
    "hints.steps": 2,
    "hints.per-level": 1,
    "hints.plain": 1,
    "hints.min-distance": 2,
    "reward.verifiable": 0.5,
    "reward.format": 0.5,
    "reference.kind": "initial",
    "loss.kl-weight": 0.1,
}
#: Half of the devices of each process judge, what is done while the rest is sampled. (`tests.soak.hosts`)
WITH_JUDGE = REASONING | {
    "mesh.tensor": 1,
    "mesh.decode-tensor": 1,
    "rollout.max-rows": 4,
    "reward.intrinsic": 0,
    "reward.judge": 1,
    "judge.devices": 4,
    "judge.tensor": 2,
    "judge.thoughts": 2,
    "judge.max-thought-length": 8,
    "judge.batch-size": 4,
}
TUNING = {
    "objective": "sft",
    "lora.rank": 2,
    "steps": 100_000,
    "mesh.data": 8,
    "rollout.prompts": 8,
    "evaluation.questions": 1,
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("hosts"))


def make_inputs(folder):
    rows = [*examples(30), *examples(2, start=1_000_000)]  # The processes' longest prompts differ.
    return {
        "model": write_model(folder / "model"),
        "data": write_rows(folder / "train.jsonl", rows),
        "dataset.held-out": write_rows(folder / "test.jsonl", examples(5, start=50)),
    }


def as_flags(settings):
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def train_alone(folder, settings):
    """The same run in this process, which has eight devices."""
    args = as_flags(settings | {"workdir": folder})
    config = cli.parse(TrainConfig, "train", "", default_config="default", args=args)
    loop.train(config, prepare(config), folder, lambda line: None)


@contextlib.contextmanager
def running(folder, settings):
    """Both processes of a run; what process i says is in files beside the folder."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    processes = []
    for i in range(2):
        where = {"coordinator": f"127.0.0.1:{port}", "processes": 2, "process": i}
        flags = as_flags(settings | {"workdir": folder} | {f"distributed.{name}": x for name, x in where.items()})
        command = [sys.executable, "-m", "launch.train", *flags]
        with folder.with_suffix(f".out{i}").open("w") as out, folder.with_suffix(f".err{i}").open("w") as err:
            processes.append(subprocess.Popen(command, cwd=ROOT, env=os.environ | ENVIRONMENT, stdout=out, stderr=err))
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()


def said(folder, i):
    """Standard output of process i, and the errors among its lines on standard error."""
    lines = folder.with_suffix(f".err{i}").read_text().splitlines()
    return folder.with_suffix(f".out{i}").read_text(), [line for line in lines if line.startswith("error:")]


def wait_until(condition, processes, folder):
    """While both run."""
    while not condition():
        assert [process.poll() for process in processes] == [None, None], said(folder, 0) + said(folder, 1)
        time.sleep(0.1)


def num_records(folder):
    path = folder / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def has_checkpoint(folder):
    """A whole one: of one that is still being written the name is longer."""
    return any(path.name.isdecimal() for path in (folder / "checkpoints").glob("*"))


def assert_same_curve(folder, other, but=()):
    found, expected = records(folder), records(other)
    assert [record["step"] for record in found] == list(range(1, len(expected) + 1))
    for record, other in zip(found, expected, strict=True):
        assert record.keys() == other.keys()
        names = [name for name in record if name not in but]
        np.testing.assert_allclose([record[x] for x in names], [other[x] for x in names], rtol=1e-5, atol=1e-5)


def assert_same_answers(folder, other):
    for name in ("answers_before.jsonl", "answers_after.jsonl"):
        pairs = zip(loop.read_answers(folder / name), loop.read_answers(other / name), strict=True)
        assert all((a.question, a.trace, a.answer) == (b.question, b.trace, b.answer) for a, b in pairs)


def assert_same_params(folder, other, start):
    """The exported parameters are those of another run, and not those that both started from."""
    found, expected, before = (hf.load_model(path)[1]["layers"] for path in (folder / "hf", other / "hf", start))
    for name in ("q", "down"):
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5)
        assert np.max(np.abs(found[name] - before[name])) > 1e-3


def assert_ended_by_the_other(process, folder, i):
    assert process.wait(60) == 1  # Within a minute.
    assert said(folder, i)[1] == [
        "error: another process of this run has ended; start all of them again to resume the run"
    ]


def test_a_run_on_a_mesh_is_that_of_one_device_and_may_go_on_there(tmp_path, inputs):
    """It may also be in other parts: micro-batches, remat, attention, rows and chunks of the rollout, batches."""
    mesh = SHARED | REASONING | inputs
    parts = {"micro-batches": 1, "remat": "full", "attention": "xla", "rollout.max-rows": 8, "rollout.chunk-size": 4}
    one = {name: value for name, value in mesh.items() if not name.startswith("mesh.")} | parts
    one["evaluation.batch-size"] = 5
    train_alone(tmp_path / "one", one)
    train_alone(tmp_path / "mesh", mesh | {"steps": 1})
    train_alone(tmp_path / "mesh", one)
    assert_same_curve(tmp_path / "mesh", tmp_path / "one", but=("padding_share",))
    assert_same_answers(tmp_path / "mesh", tmp_path / "one")
    assert_same_params(tmp_path / "mesh", tmp_path / "one", inputs["model"])


def test_a_cpu_is_made_as_many_devices_as_the_mesh_asks_for():
    """In a process of its own: here JAX has started, with eight."""
    code = """
from nrt_jax.parallel import MeshConfig
from nrt_jax.training import setup
from nrt_jax.training.config import RolloutConfig, TrainConfig
config = TrainConfig(mesh=MeshConfig(data=2), rollout=RolloutConfig(prompts=8))
print(setup.prepare(config).layout.train.size)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | ENVIRONMENT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "2\n"), done.stderr


def test_two_processes_are_one(tmp_path, inputs):
    compare(tmp_path, SHARED | REASONING | inputs)


def compare(folder, settings):
    """Runs the settings with two processes, and with one."""
    two, one = folder / "two", folder / "one"
    with running(two, settings) as processes:
        train_alone(one, settings)
        assert [process.wait() for process in processes] == [0, 0], said(two, 0) + said(two, 1)
    assert_same_curve(two, one)
    assert_same_answers(two, one)
    assert_same_params(two, one, settings["model"])
    assert "after training" in said(two, 0)[0]
    assert "training" not in said(two, 1)[0]


def kill_stop_and_resume(folder, inputs):
    """A run that is killed and stopped goes on with two processes and with one. (`tests.soak.hosts`: over a minute)"""
    folder, alone_in, settings = folder / "run", folder / "alone", SHARED | TUNING | inputs
    settings["data"] = write_rows(folder.with_name("rows.jsonl"), examples(16, start=20))
    with running(folder, settings) as processes:
        wait_until(lambda: has_checkpoint(folder), processes, folder)
        processes[0].kill()
        assert_ended_by_the_other(processes[1], folder, 1)
    before = num_records(folder)
    with running(folder, settings) as processes:
        wait_until(lambda: num_records(folder) > before, processes, folder)
        processes[1].send_signal(signal.SIGTERM)
        assert [process.wait() for process in processes] == [0, 0], said(folder, 0) + said(folder, 1)
    assert "resumed at step" in said(folder, 0)[0]
    ends = [said(folder, i)[0].splitlines()[-1] for i in range(2)]
    last = records(folder)[-1]["step"]
    line = f"stopped by SIGTERM after step {last} of {TUNING['steps']}, saved in {folder}: the same command goes on"
    assert ends == [line, line]
    assert (folder / "checkpoints" / str(last)).is_dir()
    alone = settings | {"mesh.data": 1, "mesh.fsdp": 8, "steps": last + 1}
    train_alone(folder, alone)
    train_alone(alone_in, alone)
    assert_same_curve(folder, alone_in)


def test_the_first_process_ends_when_another_is_killed(tmp_path, inputs):
    folder = tmp_path / "run"
    with running(folder, SHARED | TUNING | inputs) as processes:
        wait_until((folder / "config.json").exists, processes, folder)
        processes[1].kill()
        assert_ended_by_the_other(processes[0], folder, 0)


def test_an_error_of_the_first_process_is_that_of_all(tmp_path, inputs):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with running(folder, SHARED | TUNING | inputs) as processes:
        assert [process.wait() for process in processes] == [2, 2]
    line = f"error: workdir {str(folder)!r}: holds files of something else; choose a new or empty folder"
    assert said(folder, 0)[1] == said(folder, 1)[1] == [line]
