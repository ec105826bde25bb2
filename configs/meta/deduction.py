"""Stage A of meta-ability alignment (arXiv 2505.10554): deduction, from hypotheses and a rule to what follows.

python -m launch.train --config meta/deduction --model DIR --workdir runs/deduction-1
python -m launch.train --config meta/deduction --model runs/deduction-1/hf --dataset.level 2 --workdir runs/deduction-2
"""

from configs.meta import domain
from nrt_jax.training.config import TrainConfig


def get_config() -> TrainConfig:
    """The specialist's recipe; give it `--model DIR`."""
    return domain.specialist("deduction")
