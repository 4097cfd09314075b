"""The shell commands before the command of every job.

Standard library only.
"""

import os
import shlex
import sys
from pathlib import Path

BIN = "LOWRANK_SPEECH_BIN"
"""Environment variable: folder of the `python` for the jobs, if it is not the one that runs Snakemake."""


def prefix(source: str, deployed: bool) -> str:
    """Shell commands, with braces doubled for Snakemake's ``shell.prefix``.

    ``source``: the folder of the package beside the Snakefile. Jobs run this package, because ``code`` in the rules is
    its hash. ``deployed``: conda provides Python; otherwise jobs use the Python that runs Snakemake, regardless of
    PATH. A stage watches LOWRANK_SPEECH_PARENT and ends with the Snakemake that started it.
    """
    found = f"export LOWRANK_SPEECH_PARENT=$PPID PYTHONPATH={shlex.quote(source)}${{PYTHONPATH:+:$PYTHONPATH}}"
    if not deployed:
        found += f" PATH={shlex.quote(os.environ.get(BIN, str(Path(sys.executable).parent)))}:$PATH"
    return f"{found}; ".replace("{", "{{").replace("}", "}}")
