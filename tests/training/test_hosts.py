"""Two processes of four devices each are one process of eight; when one of them is killed, the other ends."""

import contextlib
import os
import pathlib
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
    "XLA_FLAGS": "",
}
SETTINGS = {
    "steps": 3,
    "updates-per-step": 1,
    "micro-batches": 2,
    "mesh.data": 2,
    "mesh.fsdp": 2,
    "mesh.tensor": 2,
    "rollout.prompts": 16,
    "rollout.group-size": 2,
    "rollout.max-trace-length": 8,
    "rollout.chunk-size": 8,
    "evaluation.questions": 5,
    "evaluation.batch-size": 2,
    "evaluation.every": 2,
    "checkpoint.every": 1,
    "optimizer.learning-rate": 1e-2,
    "optimizer.eps": 1e-3,  # Keeps rounding as small as it is.
}


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hosts")
    rows = [*examples(30), *examples(2, start=1_000_000)]  # The processes' longest prompts differ.
    return [
        *("--model", str(write_model(folder / "model"))),
        *("--data", str(write_rows(folder / "train.jsonl", rows))),
        *("--dataset.held-out", str(write_rows(folder / "test.jsonl", examples(5, start=50)))),
        *(word for name, value in SETTINGS.items() for word in (f"--{name}", str(value))),
    ]


@contextlib.contextmanager
def running(folder, *flags):
    """Both processes of a run; what process i says is in files beside the folder."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    processes = []
    for i in range(2):
        where = f"--distributed.coordinator 127.0.0.1:{port} --distributed.processes 2 --distributed.process {i}"
        command = [sys.executable, "-m", "launch.train", *flags, "--workdir", str(folder), *where.split()]
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


def test_two_processes_are_one(tmp_path, flags):
    two, one = tmp_path / "two", tmp_path / "one"
    with running(two, *flags) as processes:
        config = cli.parse(TrainConfig, "train", "", args=[*flags, "--workdir", str(one)])
        loop.train(config, prepare(config), one, lambda line: None)
        assert [process.wait() for process in processes] == [0, 0], said(two, 0) + said(two, 1)
    found, expected = records(two), records(one)
    assert [record["step"] for record in found] == [1, 2, 3]
    for record, other in zip(found, expected, strict=True):
        assert record.keys() == other.keys()
        np.testing.assert_allclose([*record.values()], [other[name] for name in record], rtol=1e-5, atol=1e-5)
    for name in ("answers_before.jsonl", "answers_after.jsonl"):
        pairs = zip(loop.read_answers(two / name), loop.read_answers(one / name), strict=True)
        assert all((answer.question, answer.trace) == (other.question, other.trace) for answer, other in pairs)
    _, params = hf.load_model(two / "hf")
    _, other = hf.load_model(one / "hf")
    for name in ("q", "down"):
        np.testing.assert_allclose(params["layers"][name], other["layers"][name], atol=1e-5)
    assert "after training" in said(two, 0)[0]
    assert "training" not in said(two, 1)[0]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other(tmp_path, flags, victim):
    folder = tmp_path / "run"
    metrics = folder / "metrics.jsonl"
    with running(folder, *flags, "--steps", "100000") as processes:
        while not (metrics.exists() and metrics.read_text().count("\n") > 1):
            assert [process.poll() for process in processes] == [None, None], said(folder, 0) + said(folder, 1)
            time.sleep(0.1)
        processes[victim].kill()
        assert processes[1 - victim].wait(60) == 1
    assert said(folder, 1 - victim)[1] == [
        "error: another process of this run has ended; start all of them again to resume the run"
    ]


def test_an_error_of_the_first_process_is_that_of_all(tmp_path, flags):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with running(folder, *flags) as processes:
        assert [process.wait() for process in processes] == [2, 2]
    line = f"error: workdir {str(folder)!r}: holds files of something else; choose a new or empty folder"
    assert said(folder, 0)[1] == said(folder, 1)[1] == [line]
