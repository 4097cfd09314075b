"""Select ``nn.Linear`` modules by patterns on their qualified names.

Patterns are case-sensitive ``fnmatch`` patterns; ``*`` also matches dots: ``*encoder.layers.*.fc[12]``.
"""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from torch import nn

from lowrank_speech.lowrank.embedding import LowRankEmbedding
from lowrank_speech.lowrank.linear import LowRankLinear
from lowrank_speech.lowrank.structure import Dense, Shape, shape_of

EXAMPLES = 6


def shapes_of(layers: Mapping[str, Dense], exact: int = 0) -> dict[str, Shape]:
    """Qualified name -> shape, as ``plan_ranks`` takes it. ``exact``: number of exact rows of an embedding."""
    return {name: shape_of(layer, exact) for name, layer in layers.items()}


def linears(model: nn.Module, low_rank: bool = False) -> dict[str, nn.Module]:
    """Qualified name -> module of every ``nn.Linear``, in the model's order.

    With ``low_rank``, a ``LowRankLinear`` is listed as one layer under its own name; otherwise it is left out. The
    inner layers of a factorised layer are never listed.
    """
    found: dict[str, nn.Module] = {}
    inner: set[int] = set()
    for name, module in model.named_modules():
        if isinstance(module, LowRankLinear | LowRankEmbedding):
            inner |= {id(part) for part in module.modules() if part is not module}
            if low_rank and isinstance(module, LowRankLinear):
                found[name] = module
        elif isinstance(module, nn.Linear) and id(module) not in inner:
            found[name] = module
    return found


def select(
    model: nn.Module, patterns: Iterable[str], exclude: Iterable[str] = (), low_rank: bool = False
) -> dict[str, nn.Module]:
    """Layers whose names match one of ``patterns`` and none of ``exclude``, in the model's order.

    Raises ValueError if a pattern matches nothing, or if a matched layer shares its weight with another module
    (Whisper's ``proj_out`` with the embeddings), because replacing the layer would untie the weights.
    """
    patterns, exclude = tuple(patterns), tuple(exclude)
    if not patterns:
        raise ValueError("the list of layer patterns is empty; give at least one pattern")
    candidates = {
        name: module
        for name, module in linears(model, low_rank).items()
        if not any(fnmatchcase(name, pattern) for pattern in exclude)
    }
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in candidates):
            raise ValueError(f"the pattern {pattern!r} matches no linear layer; {_examples(candidates)}")
    chosen = {n: m for n, m in candidates.items() if any(fnmatchcase(n, pattern) for pattern in patterns)}
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    for name, module in chosen.items():
        if isinstance(module, nn.Linear) and len(owners[id(module.weight)]) > 1:
            other = next(n for n in owners[id(module.weight)] if n != f"{name}.weight")
            raise ValueError(f"the layer {name!r} shares its weight with {other!r}; exclude it from the patterns")
    return chosen


def _examples(candidates: dict[str, nn.Module]) -> str:
    names = list(candidates)
    if not names:
        return "the model has no linear layers"
    # Show names from the whole model, because the first ones are often all from the same block.
    step = max(1, len(names) // EXAMPLES)
    return f"names of linear layers here: {', '.join(names[::step][:EXAMPLES])}"
