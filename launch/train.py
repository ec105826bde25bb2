"""Train a policy: Native Reasoning Training, supervised fine-tuning, or direct preference optimisation.

python -m launch.train                                            the embedded model on its built-in task
python -m launch.train --model DIR --data FILE [FILE ...]         your model, your question-answer rows
python -m launch.train --config dpo --model DIR --data FILE       pairs of a chosen and a rejected completion
python -m launch.train --config configs/NAME.py --workdir DIR     a recipe; run it again to resume
"""

import datetime
from pathlib import Path

import jax

from configs import default
from launch import cli
from nrt_jax import checkpoints, parallel
from nrt_jax.errors import Stopped
from nrt_jax.training import loop, setup
from nrt_jax.training.config import TrainConfig


def main(config: TrainConfig) -> None:
    """Loads, trains, and says what came out and where it is."""
    prepared = setup.prepare(config)
    log = print if jax.process_index() == 0 else _be_silent
    for line in prepared.train.report(with_trace=config.objective == "sft_with_trace"):
        log(line)
    if prepared.model_folder.parent != checkpoints.ASSETS and config.optimizer == default.get_config().optimizer:
        log(
            f"note: learning rate {config.optimizer.learning_rate:g} is sized for the embedded model; "
            "for a pretrained one start from --config nrt or --optimizer.learning-rate 2e-6 (with adapters 1e-4)"
        )
    folder = Path(config.workdir or parallel.share(f"runs/{datetime.datetime.now():%Y%m%d-%H%M%S}")[0])
    log(
        f"{config.model}: {prepared.model.config.num_parameters:,} parameters; {', '.join(config.data)}: "
        f"{len(prepared.train)} training and {len(prepared.held_out)} held-out questions; run folder {folder}"
    )
    try:
        summary = loop.train(config, prepared, folder, log)
    except Stopped as stopped:
        raise Stopped(
            f"{stopped}: the same command goes on{'' if config.workdir else f' with --workdir {folder}'}"
        ) from None
    log(
        f"accuracy {summary['accuracy_before']:.3f} -> {summary['accuracy_after']:.3f} "
        f"(with an empty trace {summary['accuracy_empty_trace_before']:.3f} -> "
        f"{summary['accuracy_empty_trace_after']:.3f}) in {summary['seconds']:.0f} s, "
        f"{summary['peak_memory_bytes'] / 2**30:.1f} GiB\n"
        f"written to {folder}: hf/ (load it with transformers){', adapter/ (with peft)' if config.lora.rank else ''}, "
        "report.html (open it in a browser), model/, checkpoints/, metrics.jsonl, summary.json, "
        "answers_before.jsonl, answers_after.jsonl, tensorboard/"
    )


def _be_silent(line: str) -> None:
    """Of several processes the first one speaks."""


if __name__ == "__main__":
    cli.run(main, TrainConfig, "python -m launch.train", __doc__, default_config="default")
