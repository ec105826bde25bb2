"""Runs that are killed, asked to stop, out of disk, damaged or fed with NaN: nothing that was done is lost or wrong."""

import contextlib
import dataclasses
import errno
import json
import os
import resource
import signal

import jax
import jax.numpy as jnp
import pytest

from nrt_jax.errors import Stopped, UserError
from nrt_jax.training import loop
from nrt_jax.training.config import CheckpointConfig
from nrt_jax.training.metrics import MetricsWriter
from nrt_jax.training.setup import prepare
from nrt_jax.training.signals import StopRequest
from tests.fixtures_run import examples, records, write_config
from tests.soak import kill_loop


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Four steps; checkpoints at the end, evaluations every two steps."""
    config = write_config(tmp_path_factory.mktemp("inputs"))
    return dataclasses.replace(config, steps=4, checkpoint=CheckpointConfig(every=0))


def run(config, folder, log=lambda line: None):
    return loop.train(dataclasses.replace(config, workdir=str(folder)), prepare(config), folder, log)


@pytest.fixture(autouse=True)
def as_in_a_terminal():
    """A shell starts a job in its background with SIGINT ignored, and so would the tests of it be."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.fixture(scope="module")
def reference(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "reference"
    run(config, folder)
    return folder


def assert_same_run(folder, reference):
    found = kill_loop.differences(folder, reference, 4)
    assert not [line for line in found if not line.startswith("checkpoints: ")]  # The stop has one of its own.
    assert {p.name for p in folder.iterdir()} == {p.name for p in reference.iterdir()}


def before_step(monkeypatch, index, action):
    """Does something before the step of this number, from 0."""
    step = loop._step

    def patched(*args):
        if args[-1] == index:
            action()
        return step(*args)

    monkeypatch.setattr(loop, "_step", patched)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_after_its_step_and_it_goes_on_exactly(config, reference, tmp_path, monkeypatch, number):
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with monkeypatch.context() as patch, pytest.raises(Stopped) as stopped:
        before_step(patch, 0, lambda: os.kill(os.getpid(), number))
        run(config, tmp_path / "run")
    assert str(stopped.value) == f"stopped by {number.name} after step 1 of 4, saved in {tmp_path / 'run'}"
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert [record["step"] for record in records(tmp_path / "run")] == [1]
    lines = []
    run(config, tmp_path / "run", lines.append)
    assert any(line.startswith("resumed at step 1") for line in lines)
    assert_same_run(tmp_path / "run", reference)


def test_a_signal_during_an_evaluation_ends_it_and_the_resumed_run_makes_it(config, reference, tmp_path, monkeypatch):
    answer, calls = loop._answer, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 2:  # The first is that before training.
            os.kill(os.getpid(), signal.SIGTERM)
        return answer(*args)

    with monkeypatch.context() as patch, pytest.raises(Stopped, match="after step 2 of 4"):
        patch.setattr(loop, "_answer", interrupted)
        run(config, tmp_path / "run")
    assert "accuracy" not in records(tmp_path / "run")[-1]
    run(config, tmp_path / "run")
    assert_same_run(tmp_path / "run", reference)


def test_a_second_signal_does_what_it_does_elsewhere():
    with StopRequest() as stop, pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.name == "SIGINT" and stop.is_asked()
        with pytest.raises(Stopped):
            stop.check()
        os.kill(os.getpid(), signal.SIGINT)


def test_killed_while_it_writes_a_checkpoint_or_the_export_a_run_goes_on_exactly(config, reference, tmp_path):
    every = dataclasses.replace(config, checkpoint=CheckpointConfig(every=1, keep=1, best=0))
    runs, folder = kill_loop.Runs(jax.config.jax_compilation_cache_dir), tmp_path / "run"
    assert runs.kill(every, folder, kill_loop.appears(folder, "checkpoints/*-tmp*"))
    assert runs.kill(every, folder, kill_loop.appears(folder, ".hf.*"))
    runs.finish(every, folder)
    found = kill_loop.differences(folder, reference, 4)
    assert [line.split(":")[0] for line in found] == ["config.json"]  # `every` is another


@contextlib.contextmanager
def full_disk(size):
    """No file grows beyond `size` bytes; writing more fails as on a full disk, with another errno."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)


def test_a_full_disk_ends_the_run_in_one_line_and_costs_no_checkpoint(config, reference, tmp_path, monkeypatch, capfd):
    every = dataclasses.replace(config, checkpoint=CheckpointConfig(every=1, keep=1, best=0))
    with full_disk(4000) as fill, monkeypatch.context() as patch, pytest.raises(UserError) as error:
        before_step(patch, 2, fill)
        run(every, tmp_path / "run")
    assert f"{tmp_path}/run/checkpoints': cannot be written (" in str(error.value) and "\n" not in str(error.value)
    assert "earlier ones are whole: make room, and the same command goes on from the last" in str(error.value)
    lines = []
    run(every, tmp_path / "run", lines.append)
    assert any(line.startswith("resumed at step ") for line in lines)
    found = kill_loop.differences(tmp_path / "run", reference, 4)
    assert [line.split(":")[0] for line in found] == ["config.json"]


def test_a_disk_with_no_room_for_records_ends_the_run_in_one_line(config, tmp_path, monkeypatch):
    def full(self):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    monkeypatch.setattr(MetricsWriter, "_write_pending", full)
    with pytest.raises(UserError) as error:
        run(config, tmp_path)
    assert str(error.value).startswith(f"'{tmp_path}/metrics.jsonl': No space left on device; mend that, and the same")


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(config, reference, tmp_path):
    every = dataclasses.replace(config, checkpoint=CheckpointConfig(every=1))
    run(dataclasses.replace(every, steps=3), tmp_path / "run")
    for file in (tmp_path / "run" / "checkpoints" / "3" / "state").rglob("d/*"):
        file.write_bytes(file.read_bytes()[:-1])
    lines = []
    run(every, tmp_path / "run", lines.append)
    (named,) = (line for line in lines if "is damaged (" in line)
    assert f"{tmp_path}/run/checkpoints/3'" in named and named.endswith("set aside, step 2 is used instead")
    assert any(line.startswith("resumed at step 2") for line in lines)
    assert (tmp_path / "run" / "checkpoints" / "3.damaged").is_dir()
    assert records(tmp_path / "run") == records(reference)
    assert kill_loop.state(tmp_path / "run", 4) == kill_loop.state(reference, 4)


def test_a_checkpoint_of_other_code_is_noted_when_it_is_used(config, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(loop.run_folder, "code_version", lambda: "0.0.9, commit abc")
        run(dataclasses.replace(config, steps=1), tmp_path)
    lines = []
    run(dataclasses.replace(config, steps=2), tmp_path, lines.append)
    assert any(line.startswith("note: written by nrt_jax 0.0.9, commit abc, goes on with 0.1.0") for line in lines)
    note = json.loads((tmp_path / "checkpoints" / "1" / "extra" / "metadata").read_text())
    assert note["config"]["seed"] == config.seed and note["metrics"]["step"] == 1 and note["data"]["step"] == 1


def poison(monkeypatch, steps):
    """Makes the advantages of these steps, counted from 0 in this process, NaN; returns the rows of every step."""
    rollout, rows = loop._rollout, []

    def poisoned(config, setup, state, batch_rows, rng):
        state, batch, *told = rollout(config, setup, state, batch_rows, rng)
        rows.append(batch_rows)
        if len(rows) - 1 in steps:
            batch = batch.replace(advantage=jnp.full_like(batch.advantage, jnp.nan))
        return state, batch, *told

    monkeypatch.setattr(loop, "_rollout", poisoned)
    return rows


def test_skipped_updates_are_counted_and_their_rows_are_named(config, tmp_path, monkeypatch):
    rows = poison(monkeypatch, {1})
    run(config, tmp_path)
    assert [record["skipped_updates"] for record in records(tmp_path)] == [0, 1, 0, 0]
    assert [record["loss"] is None for record in records(tmp_path)] == [False, True, False, False]
    (line,) = map(json.loads, (tmp_path / "skipped.jsonl").read_text().splitlines())
    lines = [examples(12).index(row.example) + 1 for row in rows[1]]
    assert line == {"step": 2, "skipped_updates": 1, "rows": [f"{config.data[0]}, row {number}" for number in lines]}


def test_skipped_updates_in_a_row_stop_the_run_also_if_it_resumes_between(config, tmp_path, monkeypatch):
    few = dataclasses.replace(config, max_skipped=3, checkpoint=CheckpointConfig(every=3))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        poison(patch, {1, 2})
        before_step(patch, 3, lambda: signal.raise_signal(signal.SIGINT) or signal.raise_signal(signal.SIGINT))
        run(few, tmp_path)
    with monkeypatch.context() as patch, pytest.raises(UserError) as error:
        poison(patch, {0})
        run(few, tmp_path)
    assert str(error.value).startswith("step 4: the loss or its gradient was not finite in 3 steps in a row")
    assert [json.loads(line)["step"] for line in (tmp_path / "skipped.jsonl").read_text().splitlines()] == [2, 3, 4]
    assert [record["step"] for record in records(tmp_path)] == [1, 2, 3, 4]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["3"]
    assert not (tmp_path / "summary.json").exists()
