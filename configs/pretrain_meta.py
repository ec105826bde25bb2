"""The base of the meta-ability demo: three kinds of puzzles and the clock, at their smallest."""

from configs.meta import embedded
from nrt_jax.training.pretrain import PretrainConfig


def get_config() -> PretrainConfig:
    """A batch of one task after the other; half an hour on one core, which is why `tiny_meta` is shipped."""
    return embedded.get_config().pretraining
