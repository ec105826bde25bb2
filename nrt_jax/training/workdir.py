"""A run's folder: it belongs to one run, named by its `config.json`, and nothing that is complete is deleted here.

Layout: `config.json`, `metrics.jsonl`, `summary.json`, `checkpoints/`, `hf/`, `tensorboard/`.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nrt_jax import __version__, json_file
from nrt_jax.errors import UserError

CONFIG_FILE = "config.json"
LOCK_SECONDS = 10.0  # A held folder is waited for.

_ABSENT = "(absent)"
_HALF_WRITTEN = (".model.*", ".hf.*", ".adapter.*")  # Folders that a killed process never gave their names.


@contextlib.contextmanager
def owned(workdir: str | os.PathLike) -> Iterator[None]:
    """Holds the folder, which is made if it is absent, against other processes until the end of the block.

    The operating system lets go of it when this process ends, however it ends; reading processes of a killed one may
    live for seconds longer, so that a held folder is waited for. Where a file system has no locks, nothing is held.

    Raises:
        UserError: another process holds it, or it cannot be made.
    """
    try:
        pathlib.Path(workdir).mkdir(parents=True, exist_ok=True)
        folder = os.open(workdir, os.O_RDONLY)
    except OSError as error:
        raise _unusable(workdir, error) from error
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        while not _lock(folder):
            if time.monotonic() > deadline:
                raise UserError(
                    f"workdir {str(workdir)!r}: another process is running in it; wait for its end, or choose another "
                    "--workdir"
                )
            time.sleep(0.2)
        yield
    finally:
        os.close(folder)


def _lock(folder: int) -> bool:
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # No locks there.
        pass
    return True


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
            for path in (path for pattern in _HALF_WRITTEN for path in workdir.glob(pattern)):
                shutil.rmtree(path, ignore_errors=True)
        elif any(path != _partial(workdir / CONFIG_FILE) for path in workdir.iterdir()):
            raise UserError(f"workdir {str(workdir)!r}: holds files of something else; choose a new or empty folder")
        write_json(workdir / CONFIG_FILE, config)
    except OSError as error:
        raise _unusable(workdir, error) from error
    return resumed


def _unusable(workdir: str | os.PathLike, error: OSError) -> UserError:
    return UserError(f"workdir {str(workdir)!r}: {error.strerror or error}; choose a folder that can be written")


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
    partial = _partial(path)
    partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def code_version() -> str:
    """The package's version and, in a checkout, its commit: `0.1.0, commit 1f2e3d4c5b6a`, `-dirty` if files differ."""
    root = pathlib.Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return __version__
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude", "*"]
    try:
        found = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return __version__
    return f"{__version__}, commit {found.stdout.strip()}"


@contextlib.contextmanager
def disk_errors(workdir: str | os.PathLike) -> Iterator[None]:
    """Turns what the operating system raises when a run's files cannot be written into one line."""
    try:
        yield
    except BrokenPipeError:  # Of the terminal, not of the disk.
        raise
    except OSError as error:
        raise UserError(
            f"{str(error.filename or workdir)!r}: {error.strerror or error}; mend that, and the same command goes on "
            "from the last checkpoint, which is whole"
        ) from error


def _partial(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(path.name + ".partial")


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
