"""Weights & Biases, for runs that ask for it: `--report.wandb PROJECT`."""

import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any

from nrt_jax.errors import UserError


def open_run(project: str, folder: pathlib.Path, config: Mapping[str, Any], started: float) -> Any:
    """Opens the run in a project, or goes on with it: a resumed run is the same one there.

    Steps that a crash lost and that are repeated are not logged again: there, numbers of a step are final.

    Args:
        project: Its name.
        folder: The run's, in which the package keeps its own files.
        config: What it shows as the config.
        started: When the run was first started; tells runs apart that had the same folder.

    Raises:
        UserError: It cannot be opened.
    """
    import wandb

    name = f"{folder.absolute()} {started}"
    try:
        return wandb.init(
            project=project,
            id=hashlib.sha256(name.encode()).hexdigest()[:12],
            resume="allow",
            name=folder.name,
            dir=str(folder),
            config=dict(config),
        )
    except Exception as error:  # Of the package's own kinds: no login, no network.
        raise UserError(
            f"report.wandb: {project!r} cannot be opened ({error}); log in with `wandb login`, set WANDB_MODE=offline, "
            "or leave it out"
        ) from error
