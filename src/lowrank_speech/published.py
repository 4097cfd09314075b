"""Where the models that an experiment names lie: a folder, or a name below $SPEECH_MODELS.

    bases: {whisper: {source: whisper-base}}        with SPEECH_MODELS=/data/models: /data/models/whisper-base

So a config is the same on every machine, as with $SPEECH_DATA for corpora. A folder of that name in the working
directory comes first; hub names (owner/name) are never looked up.

Imports only the standard library.
"""

import os
import re
from pathlib import Path

VARIABLE = "SPEECH_MODELS"
_NAME = re.compile(r"\w[\w.-]*")


def local(source: str | Path) -> Path:
    """The folder of ``source``, below $SPEECH_MODELS if it is a name of a folder there; it need not exist."""
    folder, root = Path(source).expanduser(), os.environ.get(VARIABLE)
    if root and is_name(source) and not folder.is_dir() and (found := Path(root).expanduser() / source).is_dir():
        return found
    return folder


def is_name(source: str | Path) -> bool:
    """Whether ``source`` is a name that may lie below $SPEECH_MODELS, so neither a path nor a hub name."""
    return isinstance(source, str) and _NAME.fullmatch(source) is not None


def is_set() -> bool:
    """Whether $SPEECH_MODELS is set."""
    return bool(os.environ.get(VARIABLE))


def missing(source: str) -> str:
    """Why the name ``source`` was not found, and what to do, for messages."""
    looked = f"nor below {VARIABLE}={os.environ[VARIABLE]}" if is_set() else f"and {VARIABLE} is not set"
    return (
        f"there is no model folder {source} here, {looked}; set it to the folder that contains the model, or give a "
        f"path or a hub name (owner/name)"
    )
