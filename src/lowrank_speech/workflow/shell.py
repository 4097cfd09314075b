"""What is put before the command of every job.

Standard library only.
"""

import os
import shlex
import sys
from pathlib import Path

BIN = "LOWRANK_SPEECH_BIN"
"""Environment variable: the folder of another `python` for the jobs than the one that runs Snakemake."""


def prefix(source: str, deployed: bool) -> str:
    """Shell commands, with braces doubled for Snakemake's ``shell.prefix``.

    ``source``: the folder of the package beside the Snakefile; it runs, because ``code`` in the rules is its hash.
    ``deployed``: conda provides Python; else the Python that runs Snakemake does, whatever PATH says. A stage watches
    LOWRANK_SPEECH_PARENT, and ends when the Snakemake that started it does.
    """
    found = f"export LOWRANK_SPEECH_PARENT=$PPID PYTHONPATH={shlex.quote(source)}${{PYTHONPATH:+:$PYTHONPATH}}"
    if not deployed:
        found += f" PATH={shlex.quote(os.environ.get(BIN, str(Path(sys.executable).parent)))}:$PATH"
    return f"{found}; ".replace("{", "{{").replace("}", "}}")
