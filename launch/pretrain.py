"""Make the embedded base model from scratch: tokenizer, skill, habit.

python -m launch.pretrain --output nrt_jax/assets/tiny
"""

from pathlib import Path

from launch import cli
from nrt_jax import hf
from nrt_jax.errors import UserError
from nrt_jax.training.pretrain import PretrainConfig, pretrain


def main(config: PretrainConfig) -> None:
    """Pretrains and writes a Hugging Face folder."""
    if not config.output:
        raise UserError("output: is empty; expected the folder to make, e.g. --output my_base")
    if Path(config.output).exists():
        raise UserError(f"output: {config.output!r} exists; choose another folder")
    model, params, tokenizer = pretrain(config)
    hf.save(config.output, model, params, tokenizer)
    print(f"written to {config.output}")


if __name__ == "__main__":
    cli.run(main, PretrainConfig, "python -m launch.pretrain", __doc__)
