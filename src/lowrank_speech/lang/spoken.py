"""Whisper's codes for the languages of a task. Imports nothing heavy, because the config check uses it."""

from collections.abc import Mapping, Sequence

from lowrank_speech.errors import UserError
from lowrank_speech.lang.codes import nearest_language

SHOWN = 12  # languages that a message names


def whisper_codes(labels: Sequence[str], given: Mapping[str, str], known: Sequence[str], where: str) -> dict[str, str]:
    """Label -> Whisper's code for it, one of ``known``; ``given``: ``head.codes``; ``where``: the Whisper's name.

    Raises UserError if a label has no code, or shares it with another, or if ``given`` names another label.
    """
    found: dict[str, str] = {}
    for label in labels:
        code = given.get(label, label)
        nearest = nearest_language(code, known)
        if nearest is None:
            shown = ", ".join(sorted(known)[:SHOWN]) + (f" and {len(known) - SHOWN} more" if len(known) > SHOWN else "")
            whose = "a language of the task" if code == label else f"the code of {label}"
            raise UserError(
                f"head: language-tokens: {where} has no token for {code!r}, {whose}; it has {shown}: remove the "
                f"language, or set head.codes: {{{label}: CODE}}"
            )
        if nearest in found.values():
            other = next(one for one, value in found.items() if value == nearest)
            raise UserError(
                f"head: language-tokens: {other} and {label} both have Whisper's token {nearest!r}, so they cannot be "
                f"told apart; remove one of them from `languages`, or set head.codes"
            )
        found[label] = nearest
    unused = sorted(set(given) - set(labels))
    if unused:
        raise UserError(f"head.codes: {unused[0]!r} is not a language of the task ({', '.join(labels)}); remove it")
    return found
