"""A checkpoint that is read as it was trained, as a judge or as one whose answers are judged."""

import dataclasses
from typing import TypeVar

from jax.sharding import Mesh

from nrt_jax import checkpoints
from nrt_jax.data import formats
from nrt_jax.data.encode import Encoder
from nrt_jax.data.formats import TraceFormatConfig
from nrt_jax.data.template import TextConfig
from nrt_jax.rewards import Judge, JudgeConfig
from nrt_jax.training import workdir
from nrt_jax.training.config_io import from_dict

SectionT = TypeVar("SectionT", TextConfig, TraceFormatConfig)


def as_trained(checkpoint: str, section: str, given: SectionT, default: SectionT) -> SectionT:
    """What a checkpoint is read with: of a run's folder, the fields of `given` that are as in `default` are the run's.

    Args:
        checkpoint: Any.
        section: Of the run's config, `text` or `trace`.
        given: What the user asked for.
        default: What stands in it where nobody asked.
    """
    run = checkpoints.locate(checkpoint).run
    if run is None:
        return given
    where = f"{run / workdir.CONFIG_FILE}: {section}"
    trained = from_dict(type(given), workdir.read_config(run).get(section, {}), where=where)
    asked = {name: value for name, value in vars(given).items() if value != getattr(default, name)}
    return dataclasses.replace(trained, **asked)


def load_judge(config: JudgeConfig, *, dtype: str = "float32", mesh: Mesh | None = None) -> Judge:
    """Loads `config.model`; what `text` and `trace` leave at its default is that of its run, if it is a run's folder.

    Args:
        config: The judge.
        dtype: Compute dtype; its parameters have it, too.
        mesh: Over which its parameters are laid out.

    Raises:
        UserError: There is no such checkpoint, or it cannot be read.
    """
    default = JudgeConfig()
    text = as_trained(config.model, "text", config.text, default.text)
    trace = as_trained(config.model, "trace", config.trace, default.trace)
    location = checkpoints.locate(config.model)
    model, tokenizer = checkpoints.load_description(location, dtype=dtype)
    params = checkpoints.load_params(location, model, param_dtype=dtype, mesh=mesh)
    trace_format, model, params, tokenizer = formats.resolve(trace, model, params, tokenizer)
    return Judge(model, params, Encoder(tokenizer, trace_format, text), config)
