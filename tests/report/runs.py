"""Folders of runs, made up."""

import json
import math
import pathlib

HOSTILE = "</script><img src=x onerror=\"document.title='broken'\"><!-- <b>&amp;\u2028${{x}}"
TOKENS = ["It", " is", " 4", ".", "<eos>"]


def group(step: int, text: str | None = None, traces: int = 3) -> dict:
    """A group whose traces make ` 4` likelier, the first one most."""
    base = [math.log(p) for p in (0.9, 0.8, 0.1, 0.7, 1.0)]
    rows = [
        {
            "text": text or ("" if k == 2 else f"1 + 3 = 4, {k}"),
            "tokens": 4,
            "reward": 0.9 - 0.2 * k,
            "advantage": 1.0 - k,
            "finished": k != 1,
            "log_probs": [math.log(p) for p in (0.9, 0.5, max(0.95 - 0.3 * k, 0.01), 0.7, 1.0)],
        }
        for k in range(traces)
    ]
    question = text or f"What is {step} plus 3?"
    shared = {"reference": "It is 4.", "reference_tokens": TOKENS, "reward_empty_trace": 0.1, "base_log_probs": base}
    return {"step": step, "question": question, **shared, "traces": rows}


def write_run(folder: pathlib.Path, *, steps: int, text: str | None = None, traces: int = 3) -> pathlib.Path:
    """A run's folder with a group a step."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model": "tiny", "data": ["clock"], "steps": 9, "objective": "nrt", "reward": {"mode": folder.name}}
    (folder / "config.json").write_text(json.dumps(config))
    records = [{"step": i, "time": 1e9, "entropy": 0.5 / i, "reward_gain": i / 10} for i in range(1, steps + 1)]
    records[-1]["accuracy"] = 0.25
    answers = [{"token_log_probs": [-0.1, -0.2], "base_token_log_probs": [-0.3, -2.5]}] * 4
    groups = [group(i, text, traces) for i in range(1, steps + 1)]
    environment = [{"step": 0, "time": 1e9, "command": "python -m launch.train", "jax": "0", "devices": "1 x cpu"}]
    contents = {"metrics": records, "traces": groups, "answers_before": answers, "environment": environment}
    for name, rows in contents.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
