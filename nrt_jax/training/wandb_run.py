"""Weights & Biases, for runs that ask for it: `--report.wandb PROJECT`."""

import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any


def open_run(project: str, folder: pathlib.Path, config: Mapping[str, Any], started: float) -> Any:
    """Opens the run in a project, or goes on with it: a resumed run is the same one there.

    Steps that a crash lost and that are repeated are not logged again: there, numbers of a step are final.

    Args:
        project: Its name.
        folder: The run's, in which the package keeps its own files.
        config: What it shows as the config.
        started: When the run was first started; tells runs apart that had the same folder.
    """
    import wandb

    name = f"{folder.absolute()} {started}"
    return wandb.init(
        project=project,
        id=hashlib.sha256(name.encode()).hexdigest()[:12],
        resume="allow",
        name=folder.name,
        dir=str(folder),
        config=dict(config),
    )
