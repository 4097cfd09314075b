"""Which kinds of corpus there are: ``kind`` in the config -> module. A new corpus is one file and one case here.

    >>> corpus = module("digits")
    >>> corpus.read(corpus.Config(...), root, audio_dir, seed=1, jobs=1)

Import statements, not names for importlib: the fingerprint of the stage's code follows statements.
"""

from types import ModuleType

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
            raise UserError(f"corpus: the kind {kind!r} is none of {', '.join(KINDS)}")
    return found
