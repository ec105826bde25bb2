import json
import re

import pytest

from nrt_jax.errors import UserError
from nrt_jax.training import workdir
from nrt_jax.training.workdir import code_version, prepare, read_config

CONFIG = {"steps": 10, "seed": 0, "optimizer": {"betas": (0.9, 0.95), "schedule": {"warmup": 3}}, "stops": {}}


def test_a_new_folder_is_created_and_holds_the_config(tmp_path):
    assert prepare(tmp_path / "a" / "b", CONFIG) is False
    assert read_config(tmp_path / "a" / "b") == json.loads(json.dumps(CONFIG))


def test_the_same_run_is_resumed(tmp_path):
    prepare(tmp_path, CONFIG)
    assert prepare(tmp_path, CONFIG) is True


def test_a_resumed_run_may_change_what_it_is_told_it_may(tmp_path):
    prepare(tmp_path, CONFIG)
    changed = CONFIG | {
        "steps": 20,
        "optimizer": {"betas": (0.9, 0.95), "schedule": {"warmup": 4, "decay": 1}},
    }
    assert prepare(tmp_path, changed, resume_may_change=("steps", "optimizer.schedule")) is True
    assert read_config(tmp_path)["steps"] == 20


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1}, "seed is 0 there, 1 here"),
        (
            {"optimizer": {"betas": (0.9, 0.99), "schedule": {"warmup": 3}}},
            r"optimizer.betas is \[0.9, 0.95\] there",
        ),
        ({"stop": True}, r"stop is '\(absent\)' there, True here"),
    ],
)
def test_a_folder_of_another_run_is_refused_and_left_as_it_is(tmp_path, change, words):
    prepare(tmp_path, CONFIG)
    with pytest.raises(UserError, match=rf"holds another run \({words}.* choose another --workdir"):
        prepare(tmp_path, CONFIG | change)
    assert read_config(tmp_path) == json.loads(json.dumps(CONFIG))


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="holds files of something else; choose a new or empty folder"):
        prepare(tmp_path, CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "run").write_text("x")
    with pytest.raises(UserError, match="File exists; choose a folder that can be written"):
        prepare(tmp_path / "run", CONFIG)


@pytest.mark.parametrize("text", ["{", "[]", '{"a": '])
def test_a_damaged_config_is_an_error(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config.json"):
        prepare(tmp_path, CONFIG)


def test_what_a_kill_left_half_written_does_not_stand_in_the_way(tmp_path):
    (tmp_path / "config.json.partial").write_text('{"se')
    assert prepare(tmp_path, CONFIG) is False
    (tmp_path / ".hf.abc" / "new").mkdir(parents=True)
    (tmp_path / "hf").mkdir()
    assert prepare(tmp_path, CONFIG) is True
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "hf"]


def test_code_has_a_version_and_in_a_checkout_a_commit():
    assert re.fullmatch(r"\d+\.\d+\.\d+(, commit [0-9a-f]{12}(-dirty)?)?", code_version())


def test_a_folder_belongs_to_one_process_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(workdir, "LOCK_SECONDS", 0.1)
    held = r"workdir '.*run': another process is running in it; wait for its end"
    with workdir.owned(tmp_path / "run"):
        with pytest.raises(UserError, match=held), workdir.owned(tmp_path / "run"):
            pytest.fail("two hold it")
        with workdir.owned(tmp_path / "other"):
            pass
    with workdir.owned(tmp_path / "run"):  # It is free again, and nothing lies in it.
        assert not list((tmp_path / "run").iterdir())
