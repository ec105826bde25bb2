"""Measure a judge: Libra Bench or any file of labelled responses, or pairs as in RewardBench.

python -m launch.judge --checkpoint DIR --input bench.parquet --samples 4 --output judged.jsonl --plot calibration.png
python -m launch.judge --input judged.jsonl --report report.json       a file in which a judge has spoken already
"""

import dataclasses
import functools
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from launch import cli
from nrt_jax import jsonl
from nrt_jax.data.encode import TextConfig
from nrt_jax.data.formats import TraceFormatConfig
from nrt_jax.errors import UserError
from nrt_jax.evaluation import judging, judging_files
from nrt_jax.rewards import JudgeConfig, Judgement
from nrt_jax.tasks.judging import Judged
from nrt_jax.training import workdir
from nrt_jax.training.judged import load_judge

ADDS = ("verdict", "p_correct", "verdicts", "thoughts")
ADDS_TO_PAIRS = ("score_chosen", "score_rejected")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeasureConfig:
    """Measures of a judge.

    Attributes:
        input: JSONL, JSON or Parquet file. Responses: `question`, `response`, `label`, and perhaps `subset` and
            `model`. Or pairs: `prompt`, `chosen`, `rejected`, and perhaps `subset`. Responses none of which has a label
            are judged and not measured.
        checkpoint: The judge, in any form that `launch.train` takes as a model; empty where the file holds judgements
            (`verdict`, `p_correct` or `judgement`; of pairs `score_chosen` and `score_rejected`).
        output: JSONL file to write with a checkpoint: the input's rows and what the judge said; empty for none.
        report: JSON file to write, all that was measured; empty for none.
        plot: PNG file to write, the reliability of P(correct); empty for none.
        response_column: What is judged of a response, such as Libra Bench's `response_with_cot`.
        samples: Thoughts a response, whose verdicts vote.
        max_thought_length: Most tokens of a thought.
        temperature: Of the thoughts; 0 is greedy.
        batch_size: Responses judged at once.
        seed: Of the thoughts.
        bins: Of the calibration.
        dtype: Compute dtype of the model.
        text: Template and length limits; of a run's checkpoint those of the run.
        trace: Trace format; of a run's checkpoint that of the run.
    """

    input: str
    checkpoint: str = ""
    output: str = ""
    report: str = ""
    plot: str = ""
    response_column: str = "response"
    samples: int = 1
    max_thought_length: int = 1024
    temperature: float = 1.0
    batch_size: int = 64
    seed: int = 0
    bins: int = 10
    dtype: Literal["float32", "bfloat16"] = "float32"
    text: TextConfig = TextConfig()
    trace: TraceFormatConfig = TraceFormatConfig("<think>", "</think>")

    def validate(self) -> None:
        """Raises UserError for values that cannot work."""
        for name in ("samples", "max_thought_length", "batch_size", "bins"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: {getattr(self, name)} cannot work; expected a number above 0")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UserError(f"temperature: {self.temperature} cannot work; expected 0 (greedy) or a number above it")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed: {self.seed} cannot work; expected a number from 0 to below 2**32")
        if self.output and not self.checkpoint:
            raise UserError(f"output: {self.output!r} cannot work without --checkpoint, which judges; expected none")


def main(config: MeasureConfig) -> None:
    """Reads, judges, measures, writes."""
    config.validate()
    rows = judging_files.read(config.input, response_column=config.response_column)
    pairwise = judging_files.is_pairwise(rows, config.response_column)
    if pairwise and config.plot:
        raise UserError(f"plot: {config.plot!r} cannot work with pairs, which have no labels; expected none")
    for name in ("output", "report", "plot"):
        if getattr(config, name):
            jsonl.check_writable(getattr(config, name), field=name)
    if config.plot:
        _import_pyplot()
    if not pairwise and not any("label" in row.values for row in rows):
        return _only_judge(config, rows)
    report = _measure_pairs(config, rows) if pairwise else _measure_responses(config, rows)
    print("\n".join(_lines_of_pairs(report) if pairwise else _lines(report)))
    if config.report:
        workdir.write_json(config.report, _without_nan(report))
    if config.plot:
        _plot(config.plot, report)
    written = [name for name in (config.output, config.report, config.plot) if name]
    if written:
        print(f"written to {', '.join(written)}")


def _only_judge(config: MeasureConfig, rows: Sequence[jsonl.Row]) -> None:
    """Judges responses that have no labels, for `launch.pairs`."""
    if not (config.checkpoint and config.output) or config.report or config.plot:
        raise UserError(
            f"input: no row of {config.input!r} has a 'label', without which nothing can be measured; expected them, "
            "or --checkpoint and --output alone, to judge"
        )
    unlabelled = [dataclasses.replace(row, values=row.values | {"label": 0}) for row in rows]
    said = _judge_responses(config, rows, [judging_files.response(row, config.response_column) for row in unlabelled])
    missing = sum(one.vote is None for one in said)
    print(f"judged {len(rows)} responses, {missing} of them without a verdict; written to {config.output}")


def _measure_responses(config: MeasureConfig, rows: Sequence[jsonl.Row]) -> dict[str, Any]:
    responses = [judging_files.response(row, config.response_column) for row in rows]
    if not config.checkpoint:
        verdicts = list(map(judging_files.given_verdict, rows, responses))
    else:
        said = _judge_responses(config, rows, responses)
        verdicts = [judging_files.as_verdict(j, s.vote, s.soft) for j, s in zip(responses, said, strict=True)]
    report = judging.report(verdicts, config.bins)
    if config.plot and report["calibration"] is None:
        raise UserError(f"plot: {config.plot!r} cannot work: no row has 'p_correct'; expected it, or no plot")
    return report


def _judge_responses(config: MeasureConfig, rows: Sequence[jsonl.Row], responses: Sequence[Judged]) -> list[Judgement]:
    """Asks the checkpoint, and writes what it says."""
    _check_free(rows, ADDS)
    said = _judge(config, [(judged.question, judged.response) for judged in responses])
    added = [
        {"verdict": one.vote, "p_correct": one.soft, "verdicts": list(one.verdicts), "thoughts": list(one.thoughts)}
        for one in said
    ]
    _write(config.output, rows, added)
    return said


def _measure_pairs(config: MeasureConfig, rows: Sequence[jsonl.Row]) -> dict[str, Any]:
    examples = [judging_files.pair(row) for row in rows]
    if not config.checkpoint:
        return judging.pair_report(list(map(judging_files.given_preference, rows, examples)))
    _check_free(rows, ADDS_TO_PAIRS)
    said = iter(_judge(config, [(example.question, text) for example in examples for text in example.pair]))
    scores = [(chosen.soft, rejected.soft) for chosen, rejected in zip(said, said, strict=True)]
    _write(config.output, rows, [dict(zip(ADDS_TO_PAIRS, both, strict=True)) for both in scores])
    return judging.pair_report(list(map(judging_files.as_preference, rows, examples, scores)))


def _judge(config: MeasureConfig, responses: Sequence[tuple[str, str]]) -> list[Judgement]:
    """Asks the checkpoint."""
    how = JudgeConfig(
        model=config.checkpoint,
        thoughts=config.samples,
        max_thought_length=config.max_thought_length,
        temperature=config.temperature,
        batch_size=config.batch_size,
        seed=config.seed,
        text=config.text,
        trace=config.trace,
    )
    return load_judge(how, dtype=config.dtype).judge(responses, log=functools.partial(print, file=sys.stderr))


def _check_free(rows: Sequence[jsonl.Row], adds: Sequence[str]) -> None:
    """Raises UserError if a row holds a judgement already: one of the two would be lost."""
    for row in rows:
        for column in adds:
            if column in row.values:
                raise UserError(f"{row.where}: has {column!r}, which --checkpoint adds; leave out one of the two")


def _write(path: str, rows: Sequence[jsonl.Row], added: Sequence[Mapping[str, Any]]) -> None:
    if path:
        both = zip(rows, added, strict=True)
        jsonl.write(path, [dataclasses.replace(row, values=row.values | more) for row, more in both], field="output")


def _lines(report: Mapping[str, Any]) -> list[str]:
    """What is printed of a judge of responses."""
    whole, length, calibration = report["all"], report["length_bias"], report["calibration"]
    header = f"{'':24} {'count':>7} {'accuracy':>9} {'macro-F1':>9} {'unparsed':>9} {'says right':>11} {'is right':>9}"
    lines = [f"score {report['score']:.1f} (mean accuracy of subsets), macro-F1 {report['macro_f1']:.1f}", "", header]
    for title, part in (("subset", "subsets"), ("model", "models")):
        lines += [_row(f"{title} {name or '(none)'}", group) for name, group in report[part].items()]
    lines += [_row("all", whole), ""]
    lines.append(
        f"length: rank correlation with the verdict {length['verdict_correlation']:.2f}, with the label "
        f"{length['label_correlation']:.2f}, bias {length['bias']:.2f}; from short to long, accuracy "
        + ", ".join(f"{part['accuracy']:.1f}" for part in length["parts"])
    )
    if calibration:
        lines.append(f"calibration: ECE {calibration['ece']:.1f}, Brier score {calibration['brier']:.3f}")
    return lines


def _row(title: str, group: Mapping[str, float]) -> str:
    return (
        f"{title:24} {group['count']:>7} {group['accuracy']:>9.1f} {group['macro_f1']:>9.1f} "
        f"{group['unparseable']:>9.1f} {group['says_correct']:>11.1f} {group['label_correct']:>9.1f}"
    )


def _lines_of_pairs(report: Mapping[str, Any]) -> list[str]:
    """What is printed of a judge of pairs."""
    lines = [f"score {report['score']:.1f} (mean accuracy of subsets)", "", f"{'':24} {'count':>7} {'accuracy':>9}"]
    for name, group in report["subsets"].items():
        lines.append(f"subset {name or '(none)':17} {group['count']:>7} {group['accuracy']:>9.1f}")
    lines += [
        "",
        f"ties {report['ties']:.1f}; the longer response is better in {report['longer_chosen']:.1f} and preferred in "
        f"{report['longer_preferred']:.1f}",
    ]
    if "position_bias" in report:
        lines.append(
            f"position: bias to the first {report['position_bias']:.1f}, consistent {report['consistent']:.1f}, "
            f"unparseable {report['unparseable']:.1f}"
        )
    return lines


def _without_nan(value: Any) -> Any:
    """JSON has no word for nan."""
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _import_pyplot():
    try:
        import matplotlib
    except ImportError as error:
        raise UserError("plot: needs matplotlib; pip install 'nrt_jax[docs]', or leave --plot out") from error
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    return plt


def _plot(path: str, report: Mapping[str, Any]) -> None:
    """P(correct) against the share that is right, and how many responses have it."""
    plt, calibration = _import_pyplot(), report["calibration"]
    bins = calibration["bins"]
    said, right, count = ([one[name] for one in bins] for name in ("p_correct", "share_correct", "count"))
    figure, (axis, below) = plt.subplots(2, 1, figsize=(4.5, 5.5), height_ratios=(3, 1), sharex=True)
    axis.plot([0, 1], [0, 1], color="0.7")
    axis.plot(said, right, marker="o")
    axis.set(ylabel="share that is right", ylim=(-0.02, 1.02), title=f"ECE {calibration['ece']:.1f} %")
    below.bar(said, count, width=0.05)
    below.set(xlabel="P(correct) of the judge", ylabel="responses", xlim=(-0.02, 1.02))
    figure.tight_layout()
    figure.savefig(Path(path), dpi=110, format="png")
    plt.close(figure)


if __name__ == "__main__":
    cli.run(main, MeasureConfig, "python -m launch.judge", __doc__)
