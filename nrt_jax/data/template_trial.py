"""A trial of a chat template, which is a program that somebody else wrote, before the run renders it.

transformers renders it in Jinja's sandbox, which keeps it away from Python's attributes, but not from looping or from
filling the memory. So it is rendered once in a process of its own, whose time and memory are limited.
"""

import functools
import json
import signal
import subprocess
import sys

CPU_SECONDS = 5
MEMORY_BYTES = 2**30

_OUT_OF_MEMORY = 3
# Errors of the template are not this trial's business: the run's own rendering will tell them.
_TRIAL = """
import json, resource, sys, time
from transformers.utils.chat_template_utils import render_jinja_template
template, messages, tokens, cpu, memory, out_of_memory = json.load(sys.stdin)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
cpu += int(time.process_time())
resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))  # at the harder limit the signal would be another
try:
    render_jinja_template([messages], chat_template=template, add_generation_prompt=True, **tokens)
except MemoryError:
    sys.exit(out_of_memory)
except Exception:
    pass
"""


@functools.lru_cache
def problem(template: str, question: str, special_tokens: tuple[tuple[str, str], ...]) -> str:
    """Why the template must not be rendered here; empty if it may be.

    Args:
        template: Jinja source.
        question: Of the one turn that it is given.
        special_tokens: Names and texts, as `PreTrainedTokenizerBase.special_tokens_map` has them.
    """
    messages = [{"role": "user", "content": question}]
    trial = subprocess.run(
        [sys.executable, "-P", "-c", _TRIAL],  # -P: modules come from no current folder
        input=json.dumps([template, messages, dict(special_tokens), CPU_SECONDS, MEMORY_BYTES, _OUT_OF_MEMORY]),
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    if trial.returncode in (_OUT_OF_MEMORY, -signal.SIGKILL):
        return f"takes more than {MEMORY_BYTES:,} bytes of memory for one question"
    if trial.returncode == -signal.SIGXCPU:
        return f"computes longer than {CPU_SECONDS} s for one question"
    return "" if trial.returncode == 0 else f"ends its process ({trial.returncode}) for one question"
