"""Groups of layers by name, from the patterns of their feed-forward and attention layers."""

from collections.abc import Mapping


def groups(ffn: Mapping[str, str], attention: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Groups ``ffn``, ``attention`` and ``all`` from ``{"": pattern, ":part": pattern}``; ``ffn:part`` and so on."""
    found = {f"ffn{part}": (pattern,) for part, pattern in ffn.items()}
    found |= {f"attention{part}": (pattern,) for part, pattern in attention.items()}
    return found | {f"all{part}": (ffn[part], attention[part]) for part in ffn}
