"""A checkpoint as a judge, read as it was trained."""

from nrt_jax import checkpoints
from nrt_jax.data import formats
from nrt_jax.data.encode import Encoder
from nrt_jax.data.formats import TraceFormatConfig
from nrt_jax.data.template import TextConfig
from nrt_jax.rewards import Judge, JudgeConfig
from nrt_jax.training import workdir
from nrt_jax.training.config_io import from_dict


def load_judge(config: JudgeConfig, *, dtype: str = "float32") -> Judge:
    """Loads `config.model`; template and trace format are those of its run, if it is a run's folder.

    Args:
        config: The judge.
        dtype: Compute dtype; its parameters have it, too.

    Raises:
        UserError: There is no such checkpoint, or it cannot be read.
    """
    text, trace = config.text, config.trace
    run = checkpoints.locate(config.model).run
    if run is not None:
        trained, path = workdir.read_config(run), run / workdir.CONFIG_FILE
        text = from_dict(TextConfig, trained.get("text", {}), where=f"{path}: text")
        trace = from_dict(TraceFormatConfig, trained.get("trace", {}), where=f"{path}: trace")
    model, params, tokenizer = checkpoints.load(config.model, dtype=dtype)
    trace_format, model, params, tokenizer = formats.resolve(trace, model, params, tokenizer)
    return Judge(model, params, Encoder(tokenizer, trace_format, text), config)
