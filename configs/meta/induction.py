"""Stage A of meta-ability alignment (arXiv 2505.10554): induction, from observations to the rule.

python -m launch.train --config meta/induction --model DIR --workdir runs/induction-1
python -m launch.train --config meta/induction --model runs/induction-1/hf --dataset.level 2 --workdir runs/induction-2
"""

from configs.meta import domain
from nrt_jax.training.config import TrainConfig


def get_config() -> TrainConfig:
    """The specialist's recipe; give it `--model DIR`."""
    return domain.specialist("induction")
