"""The page's data and its text: what is in a run's folder is in the page, and nothing that a policy writes gets out."""

import html.parser
import json
import math

import numpy as np
import pytest

from launch import cli, report
from nrt_jax.errors import UserError
from nrt_jax.report import render, write_report
from nrt_jax.report.data import DIFFICULTY, MAX_POINTS, curves, difficulty, read_run
from tests.report.runs import HOSTILE, group, write_run


class Page(html.parser.HTMLParser):
    """Tags of a page, and the text of each script."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] == "script":
            self.scripts.append(data)


def test_the_page_holds_the_run_as_it_is_in_the_folder(tmp_path):
    write_run(tmp_path / "run", steps=5)
    write_report([tmp_path / "run"], tmp_path / "page.html")
    (run,) = json.loads(Page((tmp_path / "page.html").read_text()).scripts[0])["runs"]
    assert curve(run, "entropy") == [(i, pytest.approx(0.5 / i, rel=1e-4)) for i in range(1, 6)]
    assert curve(run, "accuracy") == [(5, 0.25)] and run["last_step"] == 5
    assert [len(g["traces"]) for g in run["groups"]] == [3] * 5
    assert run["config"]["steps"] == 9 and run["name"] == "run"


def curve(run, name):
    """The points of a metric."""
    (found,) = [part for part in run["curves"] if name in part["metrics"]]
    return list(zip(found["steps"], found["metrics"][name], strict=True))


def test_a_long_run_keeps_every_evaluation_and_bounded_curves():
    """Evaluations stand in few records, so thinning all records alike would lose most of them."""
    records = [{"step": i, "time": 0.0, "loss": 1 / i, "grown": None if i < 5 else i} for i in range(1, 5001)]
    for record in records[99::100]:
        record |= {"accuracy": record["step"] / 5000, "held_out_token_prob": 0.5}
    found = {"curves": curves(records)}
    assert curve(found, "accuracy") == [(i, i / 5000) for i in range(100, 5001, 100)]
    assert len(curve(found, "held_out_token_prob")) == 50
    for name, first in (("loss", 1), ("grown", 5)):
        steps = [step for step, _ in curve(found, name)]
        assert len(steps) == MAX_POINTS and (steps[0], steps[-1]) == (first, 5000) and set(np.diff(steps)) <= {4, 5, 6}
    assert len(found["curves"]) == 3  # Those of the same records share their steps.


def test_hostile_text_stays_text(tmp_path):
    write_run(tmp_path, steps=1, text=HOSTILE)
    harmless = Page(render({"run": read_run(write_run(tmp_path / "other", steps=1), 100)}))
    page = Page(render({HOSTILE: read_run(tmp_path, 100)}))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in harmless.tags]
    groups = json.loads(page.scripts[0])["runs"][0]["groups"]
    assert groups[0]["question"] == groups[0]["traces"][0]["text"] == HOSTILE


def test_nothing_in_the_page_is_loaded_from_elsewhere(tmp_path):
    text = render({"run": read_run(write_run(tmp_path, steps=1), 100)})
    for _, attributes in Page(text).tags:
        assert not {"src", "srcset", "data", "action"} & attributes.keys()
        assert attributes.get("href", "#").startswith("#")
    assert "@import" not in text and "url(" not in text


def test_traces_are_thinned_evenly_and_counted(tmp_path):
    run = read_run(write_run(tmp_path, steps=100), max_traces=30)
    steps = [g["step"] for g in run["groups"]]
    assert len(steps) == 10 and run["num_groups"] == 100
    assert steps[0] == 1 and steps[-1] == 100 and set(np.diff(steps)) == {11}


def test_tokens_are_counted_by_difficulty_and_gains_are_means():
    log = math.log
    row = {"base_token_log_probs": [0.0, log(0.5), log(0.25)], "token_log_probs": [0.0, log(0.75), log(0.75)]}
    bins = difficulty([row, row], [row | {"token_log_probs": [0.0, 0.0, 0.0]}] * 2)
    assert len(bins) == len(DIFFICULTY) - 1 and sum(bin["count"] for bin in bins) == 6
    found = {bin["low"]: bin for bin in bins if bin["count"]}
    assert {low: bin["gain_before"] for low, bin in found.items()} == {0.0: 0.0, 0.5: 0.25, 1.0: 0.5}
    assert {low: bin["gain_after"] for low, bin in found.items()} == {0.0: 0.0, 0.5: 0.5, 1.0: 0.75}


def test_a_run_that_goes_on_has_a_page(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "lo')
    run = read_run(tmp_path, 100)
    assert curve(run, "loss") == [(1, 0.5)] and run["groups"] == [] and run["difficulty"] is None


def test_runs_of_one_name_are_told_apart(tmp_path):
    folders = [write_run(tmp_path / name / "run", steps=1) for name in ("a", "b")]
    cli.run(report.main, report.ReportConfig, "report", "", args=[*map(str, folders), "--output", str(tmp_path / "x")])
    runs = json.loads(Page((tmp_path / "x").read_text()).scripts[0])["runs"]
    assert [run["name"] for run in runs] == ["a/run", "b/run"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nowhere"], "nowhere/config.json"),
        ([], "RUNS: missing"),
        (["run", "--max-traces", "0"], "max_traces: 0 cannot work"),
        (["run", "--output", "no/such/folder/x.html"], "output: cannot write 'no/such/folder/x.html'"),
    ],
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys, args, message):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run", steps=1)
    with pytest.raises(SystemExit) as ended:
        cli.run(report.main, report.ReportConfig, "report", "", args=args)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_broken_file_is_named(tmp_path):
    write_run(tmp_path, steps=2)
    (tmp_path / "environment.jsonl").write_text("{}\nno JSON\n")
    with pytest.raises(UserError, match=r"environment\.jsonl: is not JSON Lines"):
        read_run(tmp_path, 100)


def test_a_number_that_is_not_finite_is_none(tmp_path):
    write_run(tmp_path, steps=1)
    with (tmp_path / "traces.jsonl").open("a") as file:
        file.write(json.dumps(group(2) | {"reward_empty_trace": None}) + "\n")
    assert read_run(tmp_path, 100)["groups"][-1]["reward_empty_trace"] is None
