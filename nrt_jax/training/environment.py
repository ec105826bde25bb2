"""Where and how a run was started, for who reads it later: one line of `environment.jsonl` a start."""

import json
import pathlib
import platform
import shlex
import sys
import time
from typing import Any

import jax

from nrt_jax.training.workdir import code_version

ENVIRONMENT_FILE = "environment.jsonl"


def describe(step: int) -> dict[str, Any]:
    """This process and its devices, as JSON values.

    Args:
        step: Steps that an earlier part of the run had done.
    """
    executable, *arguments = sys.orig_argv
    devices = jax.devices()
    return {
        "step": step,
        "time": time.time(),
        "command": shlex.join([pathlib.Path(executable).name, *arguments]),
        "code": code_version(),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "processes": jax.process_count(),
    }


def append(folder: pathlib.Path, step: int) -> dict[str, Any]:
    """Adds this start to the folder's; returns the first one."""
    path = folder / ENVIRONMENT_FILE
    *whole, _ = path.read_text(encoding="utf-8").split("\n") if path.exists() else [""]  # A kill may leave half a line.
    lines = [*whole, json.dumps(describe(step))]
    partial = path.with_name(path.name + ".partial")
    partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
    partial.replace(path)
    return json.loads(lines[0])
