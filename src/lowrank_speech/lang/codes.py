"""Map an utterance's language code to a language that a model knows.

Training, decoding and calibration all use this function. Standard library only.
"""

import re
from collections.abc import Iterable


def nearest_language(code: str | None, known: Iterable[str]) -> str | None:
    """The language of ``known`` that ``code`` stands for: the code itself, or else its parent; None: neither is known.

    Case is ignored, and ``_`` is the same as ``-``.

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
