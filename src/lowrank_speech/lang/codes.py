"""Codes of languages: which of the languages that a model knows is meant by an utterance's code.

The one place for it: training, decoding and calibration ask here. Standard library only.
"""

import re
from collections.abc import Iterable


def nearest_language(code: str | None, known: Iterable[str]) -> str | None:
    """The one of ``known`` that ``code`` means: itself, else its parent; None where there is none.

    Case does not matter, and ``_`` is the same as ``-``.

    >>> nearest_language("zh-CN", ["de", "zh"]), nearest_language("pt_br", ["pt", "pt-BR"])
    ('zh', 'pt-BR')
    """
    if code is None:
        return None
    known = list(known)
    if code in known:
        return code
    by_form = {_parts(other): other for other in reversed(known)}
    parts = _parts(code)
    while parts:
        if parts in by_form:
            return by_form[parts]
        parts = parts[:-1]
    return None


def _parts(code: str) -> tuple[str, ...]:
    return tuple(re.split("[-_]", code.lower()))
