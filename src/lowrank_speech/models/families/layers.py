"""Make a family's layer groups from the patterns of its feed-forward and attention layers."""

from collections.abc import Mapping


def groups(ffn: Mapping[str, str], attention: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Groups ``ffn``, ``attention``, ``all``, ``ffn:part`` and so on, from ``{"": pattern, ":part": pattern}``."""
    found = {f"ffn{part}": (pattern,) for part, pattern in ffn.items()}
    found |= {f"attention{part}": (pattern,) for part, pattern in attention.items()}
    return found | {f"all{part}": (ffn[part], attention[part]) for part in ffn}
