"""Stage A of meta-ability alignment (arXiv 2505.10554): abduction, from observations and a rule to hypotheses.

python -m launch.train --config meta/abduction --model DIR --workdir runs/abduction-1
python -m launch.train --config meta/abduction --model runs/abduction-1/hf --dataset.level 2 --workdir runs/abduction-2
"""

from configs.meta import domain
from nrt_jax.training.config import TrainConfig


def get_config() -> TrainConfig:
    """The specialist's recipe; give it `--model DIR`."""
    return domain.specialist("abduction")
