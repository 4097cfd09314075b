"""The heads by kind. To add one, add a file to this package, and a name and a ``case`` here.

Imports are statements instead of names for importlib, because the fingerprint of a stage's code follows statements.
"""

from typing import TYPE_CHECKING

from lowrank_speech.errors import UserError

if TYPE_CHECKING:
    from lowrank_speech.models.heads.base import Head

KINDS = ("ctc", "pooled", "statistics", "attentive", "tdnn", "ecapa", "language-tokens")
DEFAULT = {"ctc": "ctc", "classify": "pooled"}
"""Task -> its default kind of head."""


def head_class(kind: str) -> "type[Head]":
    """The class of a kind of head. Raises UserError with the known kinds if it does not exist."""
    match kind:
        case "ctc":
            from lowrank_speech.models.heads.ctc import CtcHead

            return CtcHead
        case "pooled":
            from lowrank_speech.models.heads.pooled import PooledHead

            return PooledHead
        case "statistics":
            from lowrank_speech.models.heads.statistics import StatisticsHead

            return StatisticsHead
        case "attentive":
            from lowrank_speech.models.heads.attentive import AttentiveHead

            return AttentiveHead
        case "tdnn":
            from lowrank_speech.models.heads.tdnn import TdnnHead

            return TdnnHead
        case "ecapa":
            from lowrank_speech.models.heads.ecapa import EcapaHead

            return EcapaHead
        case "language-tokens":
            from lowrank_speech.models.heads.language_tokens import LanguageTokensHead

            return LanguageTokensHead
    raise UserError(f"head: {kind!r} is not a known kind; expected one of: {', '.join(KINDS)}")
