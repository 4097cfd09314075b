"""Logs contain no progress bars and no repeated library warnings."""

import os
import subprocess
import sys

PROGRAM = """
import sys
from lowrank_speech.quiet import quiet
quiet()
import logging, warnings
from tqdm import tqdm
for _ in tqdm(range(3)):
    logging.getLogger("lowrank_speech.x").warning("ours")
    logging.getLogger("library.part").warning("theirs %d", 1)
    logging.getLogger("library.part").info("information")
    for text in ("old", "older"):
        warnings.warn(f"{text} name;\\n use the new one", FutureWarning)
library = logging.getLogger("library")  # with a handler of its own, as transformers has
library.propagate = False
library.addHandler(logging.StreamHandler())
for text in ("theirs 1", "theirs 2", "theirs 2"):
    logging.getLogger("library.part").warning(text)
"""


def test_no_bars_and_each_warning_of_a_library_once():
    clean = {name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=clean, capture_output=True, text=True, check=True)
    lines = done.stderr.splitlines()
    assert lines == [
        "ours",
        "theirs 1",
        "FutureWarning: old name; use the new one",
        "FutureWarning: older name; use the new one",
        "ours",
        "ours",
        "theirs 2",
    ]
