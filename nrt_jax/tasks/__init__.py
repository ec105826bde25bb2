"""Built-in tasks: seeded sources of questions with answers, traces to pretrain on, and a verifier."""

from nrt_jax.errors import unknown_name
from nrt_jax.tasks.clock import ClockTask

TASKS = {task.name: task for task in (ClockTask(),)}


def get(name: str) -> ClockTask:
    """The task of that name.

    Raises:
        UserError: no task has that name.
    """
    if name not in TASKS:
        raise unknown_name("task", name, TASKS)
    return TASKS[name]
