"""The library that computes CTC and LF-MMI: k2 or torch, by ``training.ctc.backend``."""

import logging
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from lowrank_speech.errors import UserError
from lowrank_speech.training.config import CtcConfig
from lowrank_speech.training.losses.ctc_losses import import_k2, k2_version

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backend:
    """A back end (k2 or torch), its version, and for k2 the module and the beam."""

    backend: str
    version: str
    k2: ModuleType | None = None
    output_beam: float = 20.0


def choose_backend(config: CtcConfig, device: Any, loss: str = "CTC", obstacle: str | None = None) -> Backend:
    """The back end for ``config`` on ``device``; ``auto`` uses k2 if it works. Raises UserError if ``k2`` does not.

    ``loss``: what it computes, for messages; ``obstacle``: why k2 cannot compute it, even if it works (not for
    ``auto``).
    """
    torch_one = Backend("torch", str(torch.__version__))
    if config.backend == "torch":
        return torch_one
    if obstacle is not None:
        raise UserError(f"training.ctc.backend: {obstacle}; set backend: torch")
    try:
        k2 = import_k2(device.type)
    except ImportError as error:
        if config.backend == "k2":
            raise UserError(
                f"training.ctc.backend: {error}; install the k2 for this torch (docs/k2.md), or set backend: torch"
            ) from error
        log.info("%s runs with torch: %s", loss, error)
        return torch_one
    chosen = Backend("k2", k2_version(), k2, config.output_beam)
    log.info("%s runs with k2 %s, output_beam %g", loss, chosen.version, chosen.output_beam)
    return chosen
