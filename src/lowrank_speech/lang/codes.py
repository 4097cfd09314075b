"""Language codes: which of the languages that a model knows a code in the data stands for.

Corpora write the same language as ``zh``, ``zh-CN``, ``zh_cn`` or ``zh-Hans-CN``; a model knows it under one of these.
"""

from collections.abc import Iterable


def parent_language(code: str | None, known: Iterable[str]) -> str | None:
    """The language among ``known`` that ``code`` stands for; None where there is none.

    ``code`` itself where it is known, in whatever case; otherwise the longest known code that it begins with, subtag by
    subtag: ``zh-Hans-CN`` -> ``zh-Hans`` -> ``zh``, ``pt_BR`` -> ``pt``. No subtag is added: ``pt`` is not ``pt-BR``.
    Source: the lookup of RFC 4647, section 3.4.
    """
    if not code:
        return None
    names = {_plain(name): name for name in known}
    parts = _plain(code).split("-")
    for end in range(len(parts), 0, -1):
        found = names.get("-".join(parts[:end]))
        if found is not None:
            return found
    return None


def _plain(code: str) -> str:
    return code.replace("_", "-").lower()
