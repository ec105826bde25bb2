"""A run's folder: it belongs to one run, named by its `config.json`, and nothing in it is ever deleted here.

Layout: `config.json`, `metrics.jsonl`, `summary.json`, `checkpoints/`, `hf/`, `tensorboard/`.
"""

import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nrt_jax import json_file
from nrt_jax.errors import UserError

CONFIG_FILE = "config.json"

_ABSENT = "(absent)"


def prepare(
    workdir: str | os.PathLike,
    config: Mapping[str, Any],
    *,
    resume_may_change: Sequence[str] = ("steps", "workdir"),
) -> bool:
    """Makes `workdir` the folder of the run that `config` describes.

    Args:
        workdir: the run's folder; created when absent.
        config: the run's config as JSON values (`config_io.to_dict`); written to `config.json`.
        resume_may_change: dotted names of fields in which a resumed run may differ (`steps`, `eval.every`);
            a name stands for everything below it too.

    Returns:
        Whether the folder already held this run, so that it may be resumed.

    Raises:
        UserError: the folder holds another run or other files, or cannot be written.
    """
    workdir = pathlib.Path(workdir)
    config = json.loads(json.dumps(config))  # compare as JSON sees it: a tuple is a list
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        resumed = (workdir / CONFIG_FILE).exists()
        if resumed:
            _check_same_run(workdir, read_config(workdir), config, resume_may_change)
        elif any(workdir.iterdir()):
            raise UserError(f"workdir {str(workdir)!r}: holds files of something else; choose a new or empty folder")
        write_json(workdir / CONFIG_FILE, config)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"workdir {str(workdir)!r}: {reason}; choose a folder that can be written") from error
    return resumed


def read_config(workdir: str | os.PathLike) -> dict[str, Any]:
    """Reads `config.json` of a run's folder.

    Raises:
        UserError: the file is absent or is no JSON object.
    """
    path = pathlib.Path(workdir) / CONFIG_FILE
    try:
        config = json_file.read(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{str(path)!r}: cannot be read as JSON ({error}); expected a run's folder") from error
    if not isinstance(config, dict):
        raise UserError(f"{str(path)!r}: expected a JSON object, found {type(config).__name__}")
    return config


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes indented JSON so that a reader sees the old file or the new one, never half of it."""
    path = pathlib.Path(path)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def _check_same_run(
    workdir: pathlib.Path, old: Mapping[str, Any], new: Mapping[str, Any], resume_may_change: Sequence[str]
) -> None:
    """Raises UserError naming the first field in which two configs differ and may not."""
    old, new = dict(_leaves(old)), dict(_leaves(new))
    for name in new | old:
        may_change = any(name == free or name.startswith(f"{free}.") for free in resume_may_change)
        before, now = old.get(name, _ABSENT), new.get(name, _ABSENT)
        if before != now and not may_change:
            raise UserError(
                f"workdir {str(workdir)!r}: holds another run ({name} is {before!r} there, {now!r} here); "
                f"choose another --workdir, or set {name} back to resume that run"
            )


def _leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
