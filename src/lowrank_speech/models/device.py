"""Where a model runs."""

import torch

from lowrank_speech.errors import UserError


def pick_device(name: str) -> torch.device:
    """``auto`` takes CUDA where there is one; UserError where CUDA is asked for and absent."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device: cuda, but torch sees no CUDA device; use `device: auto` or `cpu`")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
