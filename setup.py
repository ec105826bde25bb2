"""Package metadata of nrt_jax. The plain install needs neither TensorFlow nor torch."""

from setuptools import find_namespace_packages, setup

REQUIREMENTS = [
    "absl-py>=2.5.1",
    "chex>=0.1.92",
    "datasets>=5.2.0",
    "flax>=0.12.8",
    "grain>=0.2.18",
    "importlib_resources>=7.1.0",  # used, but not declared, by tensorflow-datasets
    "jax>=0.10.2",
    "numpy>=2.4.6",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8",
    "pyarrow>=26.0.1",
    "rich>=15.0.0",
    "safetensors>=0.8.0",
    "scipy>=1.17.1",
    "tensorboardX>=2.6.5",
    "tensorflow-datasets>=4.9.10",
    "tokenizers>=0.23.3",
    "transformers>=5.23.0",
    "tyro>=1.0.17",
]

EXTRAS = {
    # torch and peft are what logits are compared with; nothing outside tests/ imports them.
    "test": [
        "hypothesis>=6.170.15",
        "math-verify>=0.9.0",
        "peft>=0.21.2",
        "pytest>=9.2.0",
        "pytest-xdist>=3.8.0",
        "ruff>=0.17.6",
        "torch==2.13.0",
    ],
    "gym": ["reasoning-gym>=0.1.25"],  # data sources gym:NAME
    "tpu": ["jax[tpu]>=0.10.2"],
    "cuda12": ["jax[cuda12]>=0.10.2"],
    "cuda13": ["jax[cuda13]>=0.10.2"],
    "math": ["math-verify>=0.9.0"],
    # The report's page is tested in headless Chromium, which is installed apart; else it is skipped.
    "browser": ["playwright>=1.65.2"],
    # Plots of the pages, and the site that they are (mkdocs.yml).
    "docs": ["latex2mathml>=3.81.1", "matplotlib>=3.11.2", "mkdocs-material>=9.8.1", "mkdocstrings[python]>=1.0.8"],
    "eval": ["lm-eval>=0.4.13"],  # launch.eval --lm-eval
}

setup(
    name="nrt_jax",
    version="0.1.0",
    description="Native Reasoning Training in JAX: reinforce the reasoning that makes known answers likelier",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_namespace_packages(
        include=["nrt_jax*", "launch*", "configs*"], exclude=["nrt_jax.assets*", "configs.models"]
    ),
    package_data={
        "nrt_jax": ["assets/**", "report/*.html", "report/*.css", "report/*.js"],
        "configs": ["models/*.json"],
    },
    install_requires=REQUIREMENTS,
    extras_require=EXTRAS,
)
