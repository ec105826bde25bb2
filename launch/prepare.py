"""Make the data of the paper's release from the published files of tulu-3-sft-mixture.

python -m launch.prepare --parquet DIR                            then train with --data tfds:tulu3_sft_mixture
"""

import dataclasses

from launch import cli
from nrt_jax.data import tulu3


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """What to make, and from what.

    Attributes:
        parquet: Folder with the published .parquet files.
        data_dir: Folder of TFDS data sets; empty for `~/tensorflow_datasets`.
    """

    parquet: str
    data_dir: str = ""


def main(config: PrepareConfig) -> None:
    """Writes the TFDS data set."""
    print(f"written to {tulu3.build(config.parquet, config.data_dir)}")


if __name__ == "__main__":
    cli.run(main, PrepareConfig, "python -m launch.prepare", __doc__)
