"""Which kinds of corpus there are: ``kind`` in the config -> module. A new corpus is one file and one case here.

    >>> config = read({"kind": "digits", "splits": {"train": {"speakers": ["theo"], "strings": 3}}}, "corpora.digits")
    >>> items = module(config.kind).read(config, "train", root, audio_dir, seed=1, jobs=1)

Import statements, not names for importlib: the fingerprint of the stage's code follows statements.
"""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from lowrank_speech import settings
from lowrank_speech.errors import UserError

KINDS = ("digits", "espeak", "kaldi", "tsv")


def module(kind: str) -> ModuleType:
    """The module of a kind, imported now; UserError for an unknown kind."""
    match kind:
        case "digits":
            from lowrank_speech.corpora import digits as found
        case "espeak":
            from lowrank_speech.corpora import espeak as found
        case "kaldi":
            from lowrank_speech.corpora import kaldi as found
        case "tsv":
            from lowrank_speech.corpora import tsv as found
        case _:
            raise UserError(f"corpus: the kind {kind!r} does not exist; expected one of: {', '.join(KINDS)}")
    return found


def read(section: Any, where: str) -> Any:
    """The settings of a corpus, checked: a section of ``corpora`` in the config, which ``where`` names in messages.

    With all splits in it, the checks that concern several of them together (parts that overlap, voices or speakers that
    two splits share) run too. Looks at no data; UserError.
    """
    if not isinstance(section, Mapping):
        raise UserError(f"{where}: expected a mapping with keys, got {section!r}")
    return settings.read(module(section.get("kind", "")).Config, section, where)
