"""Registry of corpus kinds: ``kind`` in the config -> module. A new kind is one file, and one name and one case here.

    >>> config = read({"kind": "digits", "splits": {"train": {"speakers": ["theo"], "strings": 3}}}, "corpora.digits")
    >>> items = module(config.kind).read(config, "train", root, audio_dir, seed=1, jobs=1)

The cases are import statements instead of importlib calls because the code hash follows import statements.
"""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from lowrank_speech import settings
from lowrank_speech.errors import UserError

KINDS = (
    "atco2",
    "commonvoice",
    "datasets",
    "digits",
    "espeak",
    "fleurs",
    "folder",
    "kaldi",
    "lhotse",
    "librispeech",
    "long",
    "lre",
    "mls",
    "nemo",
    "table",
    "tsv",
    "voxlingua107",
)


def module(kind: str) -> ModuleType:
    """Import and return the module of a kind. UserError: unknown kind."""
    match kind:
        case "atco2":
            from lowrank_speech.corpora import atco2 as found
        case "commonvoice":
            from lowrank_speech.corpora import commonvoice as found
        case "datasets":
            from lowrank_speech.corpora import datasets as found
        case "digits":
            from lowrank_speech.corpora import digits as found
        case "espeak":
            from lowrank_speech.corpora import espeak as found
        case "fleurs":
            from lowrank_speech.corpora import fleurs as found
        case "folder":
            from lowrank_speech.corpora import folder as found
        case "kaldi":
            from lowrank_speech.corpora import kaldi as found
        case "lhotse":
            from lowrank_speech.corpora import lhotse as found
        case "librispeech":
            from lowrank_speech.corpora import librispeech as found
        case "long":
            from lowrank_speech.corpora import long as found
        case "lre":
            from lowrank_speech.corpora import lre as found
        case "mls":
            from lowrank_speech.corpora import mls as found
        case "nemo":
            from lowrank_speech.corpora import nemo as found
        case "table":
            from lowrank_speech.corpora import table as found
        case "tsv":
            from lowrank_speech.corpora import tsv as found
        case "voxlingua107":
            from lowrank_speech.corpora import voxlingua107 as found
        case _:
            raise UserError(f"corpus: unknown kind {kind!r}; expected one of: {', '.join(KINDS)}")
    return found


def read(section: Any, where: str) -> Any:
    """Read and check the settings of one corpus: a section of ``corpora``, called ``where`` in messages.

    If the section holds all splits, this also checks them against each other (overlapping parts, shared voices or
    speakers). It does not open any data. UserError: a setting is not valid.
    """
    if not isinstance(section, Mapping):
        raise UserError(f"{where}: expected a mapping with keys, got {section!r}")
    return settings.read(module(section.get("kind", "")).Config, section, where)
