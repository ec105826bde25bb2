import io
import json
import math
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nrt_jax.errors import UserError
from nrt_jax.training.metrics import CompilationCounter, MetricsWriter, Progress, read_metrics
from nrt_jax.training.step import Outcome
from nrt_jax.training.traces import Sample
from nrt_jax.training.wandb_run import open_run
from tests.fixtures_run import curves, events


def records(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def writer(workdir, **options):
    return MetricsWriter(workdir, stream=io.StringIO(), **options)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_record_is_one_json_object_with_step_time_and_numbers(tmp_path):
    with writer(tmp_path) as metrics:
        metrics.write(1, {"loss": jnp.float32(0.5), "rows": np.int64(3), "rate": 0.25})
    (record,) = records(tmp_path)
    assert record.pop("time") > 1e9
    assert record == {"step": 1, "loss": 0.5, "rows": 3, "rate": 0.25}


def test_numbers_are_fetched_one_step_late(tmp_path):
    with writer(tmp_path) as metrics:
        metrics.write(1, {"loss": jnp.float32(1)})
        assert not (tmp_path / "metrics.jsonl").exists()
        metrics.write(2, {"loss": jnp.float32(2)})
        assert [record["step"] for record in records(tmp_path)] == [1]
        metrics.flush()
        assert [record["step"] for record in records(tmp_path)] == [1, 2]


def test_writes_of_one_step_make_one_record(tmp_path):
    with writer(tmp_path) as metrics:
        metrics.write(1, {"loss": 1.0})
        metrics.write(1, {"eval/accuracy": 0.5})
    (record,) = records(tmp_path)
    assert (record["loss"], record["eval/accuracy"]) == (1.0, 0.5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_null(tmp_path, value):
    with writer(tmp_path) as metrics:
        metrics.write(1, {"loss": jnp.float32(value)})
    assert records(tmp_path)[0]["loss"] is None


def test_a_resumed_run_leaves_no_gap_and_no_repeat(tmp_path):
    with writer(tmp_path) as metrics:
        for step in range(1, 6):
            metrics.write(step, {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # the crash
    with writer(tmp_path) as metrics:
        metrics.resume(3, None)
        for step in range(4, 8):
            metrics.write(step, {"loss": 10.0 * step})
    assert [(r["step"], r["loss"]) for r in records(tmp_path)] == [
        *[(1, 1.0), (2, 2.0), (3, 3.0)],
        *[(4, 40.0), (5, 50.0), (6, 60.0), (7, 70.0)],
    ]


def test_resuming_a_run_without_records_is_fine(tmp_path):
    assert writer(tmp_path).resume(0, None) == []
    assert not (tmp_path / "metrics.jsonl").exists()


def test_the_record_saved_with_a_checkpoint_stands_once_and_can_be_added_to(tmp_path):
    with writer(tmp_path) as metrics:
        for step in range(1, 6):
            metrics.write(step, {"loss": math.nan if step == 3 else float(step)})
            if step == 3:
                metrics.flush(sync=True)
                saved = metrics.last
    for _ in range(2):  # A crash before the record is written again loses nothing.
        again = writer(tmp_path)
        assert [record["step"] for record in again.resume(3, saved)] == [1, 2]
        assert [record["step"] for record in records(tmp_path)] == [1, 2]
    with again as metrics:
        metrics.write(3, {"accuracy": 0.5})
        metrics.write(4, {"loss": 40.0})
    assert [(r["step"], r["loss"], r.get("accuracy")) for r in records(tmp_path)] == [
        *[(1, 1.0, None), (2, 2.0, None), (3, None, 0.5), (4, 40.0, None)]
    ]
    assert records(tmp_path)[2]["time"] == saved["time"]
    assert curves(tmp_path)["loss"] == {1: 1.0, 2: 2.0, 3: pytest.approx(math.nan, nan_ok=True), 4: 40.0}


@pytest.mark.parametrize(
    ("line", "found"),
    [("\0\0\0", "is not JSON"), *((line, "has no whole number 'step'") for line in ("{}", "[1]", '{"step": null}'))],
)
def test_a_broken_line_is_named(tmp_path, line, found):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n' + line + '\n{"step": 3}\n')
    with pytest.raises(UserError, match=rf"metrics\.jsonl, line 2: {found}"):
        writer(tmp_path).resume(1, None)


def test_a_half_written_last_line_is_passed_over(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}')
    assert read_metrics(path) == [{"step": 1}]


def test_tensorboard_holds_the_same_numbers(tmp_path):
    with writer(tmp_path) as metrics:
        metrics.write(7, {"loss": jnp.float32(0.5)})
    (file,) = (tmp_path / "tensorboard").iterdir()
    found = [(v.tag, e.step, v.simple_value) for e in events(file.read_bytes()) for v in e.summary.value]
    assert found == [("loss", 7, 0.5)]


def test_progress_names_step_metrics_and_time_left_without_counting_compilation():
    stream = io.StringIO()
    progress = Progress(total_steps=50, show=("reward", "accuracy"), interval=10, stream=stream)
    progress.update(1, 100.0, {"reward": 0.1, "loss": 9.0, "accuracy": 0.25})
    progress.update(2, 102.0, {"reward": 0.2})
    progress.update(11, 120.0, {"reward": 0.41234})
    progress.update(50, 120.5, {"reward": 1.0})
    assert stream.getvalue().splitlines() == [
        "step 1/50  reward 0.1  accuracy 0.25",
        "step 11/50  reward 0.4123  accuracy 0.25  1:18 left",
        "step 50/50  reward 1  accuracy 0.25  0:00 left",
    ]


def test_progress_shows_tokens_a_second_of_the_last_steps():
    progress = Progress(total_steps=None, show=(), interval=0, stream=io.StringIO())
    for step, now, tokens in ((1, 100.0, 999), (2, 101.0, 3000), (3, 104.0, 5000)):
        progress.update(step, now, {"sampled_tokens": tokens})
    assert progress.line(3, 104.0) == "3  2,000 tokens/s"


def test_histograms_and_texts_reach_tensorboard(tmp_path):
    with writer(tmp_path) as metrics:
        metrics.write_sample(3, {"gain": np.array([0.0, 0.5, 1.0])}, {"traces/0": "    <b>text"})
        metrics.write_sample(4, {"gain": np.array([])}, {})
    (file,) = (tmp_path / "tensorboard").iterdir()
    counted, text = [(e.step, v) for e in events(file.read_bytes()) for v in e.summary.value]
    assert counted[0] == 3 and counted[1].histo.num == 3 and sum(counted[1].histo.bucket) == 3
    assert text[1].metadata.plugin_data.plugin_name == "text" and text[1].tensor.string_val == [b"    <b>text"]


def test_the_histogram_of_gains_holds_each_answer_token_of_each_trace_once():
    """log c_i of two questions, three traces and two tokens, of which the second question has one."""
    log_probs = np.log(np.array([[[0.5, 0.25], [0.75, 0.5], [1.0, 1.0]], [[0.5, 0.9], [0.25, 0.9], [0.75, 0.9]]]))
    traces = dict.fromkeys(("reward", "advantage", "trace_length", "num_sampled", "entropy", "matched", "finished"))
    outcome = Outcome(
        **traces | {"reward": np.zeros((2, 3)), "trace_length": np.ones((2, 3))},
        rewards={},
        baseline=None,
        reward_std=None,
        log_probs=log_probs,
        base_log_probs=np.log(np.array([[0.25, 0.5], [0.5, 0.1]])),
        answer_mask=np.array([[True, True], [True, False]]),
    )
    gains = Sample(1, np.zeros(()), np.zeros(()), outcome).histograms()["token_gain_histogram"]
    assert sorted(gains) == pytest.approx([-0.25, -0.25, 0.0, 0.0, 0.25, 0.25, 0.5, 0.5, 0.75])


def test_weights_and_biases_gets_the_numbers_of_each_step_and_is_finished(tmp_path, monkeypatch):
    calls = []

    class Run:
        def log(self, numbers, step):
            calls.append((step, numbers))

        def finish(self):
            calls.append("finished")

    def init(**options):
        calls.append(options)
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    for started in (1.0, 1.0, 2.0):
        with writer(tmp_path) as metrics:
            metrics.wandb = open_run("project", tmp_path, {"steps": 2}, started)
            metrics.write(1, {"loss": 0.5})
    first, *_ = calls
    assert first["project"] == "project" and first["config"] == {"steps": 2} and first["resume"] == "allow"
    assert calls[1:3] == [(1, {"loss": 0.5}), "finished"]
    ids = [call["id"] for call in calls if isinstance(call, dict)]
    assert ids[0] == ids[1] != ids[2]


def test_progress_without_an_end_shows_no_time_left():
    progress = Progress(total_steps=None, show=(), interval=0, stream=io.StringIO())
    progress.update(1, 0.0, {})
    assert progress.line(3, 5000.0) == "3"


def test_a_long_time_left_shows_hours():
    progress = Progress(total_steps=102, show=(), interval=0, stream=io.StringIO())
    progress.update(1, 0.0, {})
    assert progress.line(2, 72.0) == "2/102  2:00:00 left"


def test_progress_on_a_terminal_is_a_live_line(tmp_path):
    stream = Terminal()
    with MetricsWriter(tmp_path, total_steps=2, show=("reward",), stream=stream) as metrics:
        metrics.write(1, {"reward": 0.5})
        metrics.write(2, {"reward": 0.75})
    assert "2/2  reward 0.75  0:00 left" in stream.getvalue()


def test_a_program_is_counted_when_it_is_compiled_and_only_while_counting():
    double = jax.jit(lambda x: 2 * x)
    arrays = [jax.device_put(np.ones(n)) for n in (3, 5, 7)]
    with CompilationCounter() as compiled:
        for x in (arrays[0], arrays[0], arrays[1]):
            double(x)
    double(arrays[2])
    assert compiled.count == 2
