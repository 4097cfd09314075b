"""Where a model runs."""

import torch

from lowrank_speech.errors import UserError


def pick_device(name: str) -> torch.device:
    """``auto``: CUDA where torch sees a device, else the CPU. UserError for ``cuda`` without one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device is cuda, and torch sees no CUDA device; use device: auto or cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
