"""Count parameters: total, trainable, and by group. Tied parameters count once."""

from typing import Any

from torch import nn


def count_parameters(model: nn.Module, depth: int = 1) -> dict[str, Any]:
    """``{"total": n, "trainable": n, "groups": {name: {"total": n, "trainable": n}}}``.

    A group is the first ``depth`` parts of a parameter's name (of its first name if it is tied). Works on the meta
    device.
    """
    groups: dict[str, dict[str, int]] = {}
    for name, parameter in model.named_parameters():  # yields a tied parameter once
        *path, leaf = name.split(".")
        group = groups.setdefault(".".join(path[:depth]) or leaf, {"total": 0, "trainable": 0})
        group["total"] += parameter.numel()
        group["trainable"] += parameter.numel() if parameter.requires_grad else 0
    total, trainable = (sum(group[key] for group in groups.values()) for key in ("total", "trainable"))
    return {"total": total, "trainable": trainable, "groups": groups}
