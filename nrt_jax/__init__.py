"""Native Reasoning Training in JAX: teach Llama and Mistral models to reason from plain question-answer pairs."""

__version__ = "0.1.0"
