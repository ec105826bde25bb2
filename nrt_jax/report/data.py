"""What the page shows of a run: read from its folder, thinned to what a browser takes, as JSON values."""

import itertools
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nrt_jax import json_file
from nrt_jax.errors import UserError
from nrt_jax.training.alarms import find_alarms
from nrt_jax.training.metrics import METRICS_FILE, read_metrics
from nrt_jax.training.workdir import read_config

MAX_POINTS = 1000  # Of a curve.
#: Bounds of -log c_i,base, in nats; answer tokens between two of them are equally hard.
DIFFICULTY = (0.0, 0.1, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, math.inf)


def read_run(folder: pathlib.Path, max_traces: int) -> dict[str, Any]:
    """Reads a run's folder, finished or not; what is not there yet is left out.

    Args:
        folder: Of the run.
        max_traces: Most traces; above it, groups are left out evenly over the run.

    Returns:
        config, environment (of each start), summary, last_step (0 before the first), curves, alarms, difficulty,
        groups and num_groups (before any were left out).

    Raises:
        UserError: It is no run's folder, or one of its files is broken.
    """
    config = read_config(folder)
    records = _records(folder / METRICS_FILE)
    groups = _records(folder / "traces.jsonl")
    before, after = (_rows(folder / f"answers_{when}.jsonl") for when in ("before", "after"))
    return {
        "config": config,
        "environment": _rows(folder / "environment.jsonl"),
        "summary": _summary(folder / "summary.json"),
        "last_step": records[-1]["step"] if records else 0,
        "curves": curves(records),
        "alarms": [vars(alarm) for alarm in find_alarms(records)],
        "difficulty": difficulty(before, after),
        "groups": [_short_group(groups[i]) for i in _spread_traces(groups, max_traces)],
        "num_groups": len(groups),
    }


def curves(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The metrics, each thinned over the records that have it: those of an evaluation stand in few.

    Args:
        records: Of `metrics.jsonl`.

    Returns:
        For metrics that stand in the same records: steps, at most MAX_POINTS, the first and the last among them; and
        metrics, by name a value a step.
    """
    where: dict[str, list[int]] = {}
    for i, record in enumerate(records):
        for name, value in record.items():
            if name not in ("step", "time") and _short(value) is not None:
                where.setdefault(name, []).append(i)
    alike: dict[tuple[int, ...], list[str]] = {}
    for name, rows in where.items():
        alike.setdefault(tuple(rows), []).append(name)
    found = []
    for rows, names in alike.items():
        kept = [records[rows[i]] for i in _spread(len(rows), MAX_POINTS)]
        metrics = {name: [_short(record[name]) for record in kept] for name in names}
        found.append({"steps": [record["step"] for record in kept], "metrics": metrics})
    return found


def difficulty(before: Sequence[Mapping], after: Sequence[Mapping]) -> list[dict[str, Any]] | None:
    """How hard the tokens of held-out answers are, and what traces do for them.

    Args:
        before: Answered questions of the policy before training (`answers_before.jsonl`).
        after: Those of the trained policy, or none.

    Returns:
        For each range of -log c_i,base of the policy before training: low and high (null for no bound), the count of
        tokens, and the mean c_i - c_i,base of both policies, `gain_before` and `gain_after`, or null. None without
        answers.
    """
    if not before:
        return None
    base, gain_before = _base_and_gain(before)
    gain_after = _base_and_gain(after)[1] if after else None
    if gain_after is not None and len(gain_after) != len(gain_before):
        gain_after = None  # Of other questions.
    bins = np.digitize(-base, DIFFICULTY[1:-1])
    found = []
    for i, (low, high) in enumerate(itertools.pairwise(DIFFICULTY)):
        chosen = bins == i
        gains = [
            None if gain is None or not chosen.any() else gain[chosen].mean() for gain in (gain_before, gain_after)
        ]
        found.append(
            {
                "low": low,
                "high": None if math.isinf(high) else high,
                "count": int(chosen.sum()),
                "gain_before": _short(gains[0]),
                "gain_after": _short(gains[1]),
            }
        )
    return found


def _base_and_gain(answered: Sequence[Mapping]) -> tuple[np.ndarray, np.ndarray]:
    """log c_i,base and c_i - c_i,base of all tokens."""
    base, log_probs = (
        np.array([x for row in answered for x in row[name]], np.float64)
        for name in ("base_token_log_probs", "token_log_probs")
    )
    return base, np.exp(log_probs) - np.exp(base)


def _spread(num: int, most: int) -> list[int]:
    """At most so many indices of `num`, evenly spread, the first and the last among them."""
    return list(range(num)) if num <= most else np.unique(np.linspace(0, num - 1, most).round()).astype(int).tolist()


def _spread_traces(groups: Sequence[Mapping], max_traces: int) -> list[int]:
    size = max((len(group["traces"]) for group in groups), default=1)
    return _spread(len(groups), max(max_traces // max(size, 1), 1))


def _records(path: pathlib.Path) -> list[dict[str, Any]]:
    return read_metrics(path) if path.exists() else []


def _rows(path: pathlib.Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]  # The last one may be half written.
    try:
        return [json.loads(line) for line in lines if line.strip()]
    except ValueError as error:
        raise UserError(f"{path}: is not JSON Lines ({error}); remove the broken line") from error


def _summary(path: pathlib.Path) -> dict[str, Any]:
    try:
        return {name: _short(value) for name, value in json_file.read(path).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); expected a run's summary") from error


def _short(value: Any) -> Any:
    """Five digits are more than a screen shows."""
    if not isinstance(value, float | np.floating):
        return value
    return float(f"{value:.5g}") if math.isfinite(value) else None


def _short_group(group: Mapping[str, Any]) -> dict[str, Any]:
    def shorten(fields):
        return {n: [_short(x) for x in v] if n.endswith("log_probs") else _short(v) for n, v in fields.items()}

    return shorten(group) | {"traces": [shorten(trace) for trace in group["traces"]]}
