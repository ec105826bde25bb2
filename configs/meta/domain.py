"""Stage C of meta-ability alignment (arXiv 2505.10554): RL on a domain, mathematics, from the merged specialists.

python -m launch.merge --models DEDUCTION INDUCTION ABDUCTION --weights 1.0 0.2 0.1 --output runs/merged
python -m launch.train --config meta/domain --model runs/merged --data SOURCE --workdir runs/domain

Answers are compared by math-verify (`pip install -e '.[math]'`); for a domain of other answers, `--verifier.name`.
"""

from configs.meta import _common
from nrt_jax.training.config import TrainConfig


def get_config() -> TrainConfig:
    """Reward and optimisation of stage A; give it `--model DIR --data SOURCE`."""
    return _common.recipe("math")
