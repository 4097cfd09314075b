"""The device on which a model runs."""

import torch

from lowrank_speech.errors import UserError


def pick_device(name: str) -> torch.device:
    """``auto``: CUDA if torch sees a device, otherwise the CPU. Raises UserError for ``cuda`` without a device."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device is cuda, but torch sees no CUDA device; use device: auto or cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
