"""Which heads there are: a new head is one file in this package, and one name and one ``case`` here.

Import statements, not names for importlib: the fingerprint of a stage's code follows statements.
"""

from typing import TYPE_CHECKING

from lowrank_speech.errors import UserError

if TYPE_CHECKING:
    from lowrank_speech.models.heads.base import Head

KINDS = ("ctc", "pooled")
DEFAULT = {"ctc": "ctc", "classify": "pooled"}
"""Task -> the kind of head that it gets where nothing else is asked for."""


def head_class(kind: str) -> "type[Head]":
    """The class of a kind of head; UserError that lists the known kinds."""
    match kind:
        case "ctc":
            from lowrank_speech.models.heads.ctc import CtcHead

            return CtcHead
        case "pooled":
            from lowrank_speech.models.heads.pooled import PooledHead

            return PooledHead
    raise UserError(f"head: {kind!r} is not a known kind; expected one of: {', '.join(KINDS)}")
