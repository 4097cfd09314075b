"""Which CTC a training uses: k2's or torch's, as the config and what is installed say."""

import logging
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from lowrank_speech.errors import UserError
from lowrank_speech.training.config import CtcConfig
from lowrank_speech.training.losses.ctc_losses import ctc_losses, import_k2, k2_version

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ctc:
    """A back end (k2 or torch), its version, and for k2 the module and the beam."""

    backend: str
    version: str
    k2: ModuleType | None = None
    output_beam: float = 20.0

    def __call__(self, logits: Tensor, frames: Tensor, labels: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Losses (B,) and possible (B,); see ``ctc_losses``."""
        return ctc_losses(logits, frames, labels, sizes, self.k2, self.output_beam)


def choose_ctc(config: CtcConfig, device: torch.device) -> Ctc:
    """The back end of ``config`` on ``device``; ``auto`` takes k2 where it works. UserError where ``k2`` does not."""
    torch_ctc = Ctc("torch", str(torch.__version__))
    if config.backend == "torch":
        return torch_ctc
    try:
        k2 = import_k2(device.type)
    except ImportError as error:
        if config.backend == "k2":
            raise UserError(
                f"training.ctc.backend: {error}; install the k2 built for this torch (docs/k2.md), or set `torch`"
            ) from error
        log.info("CTC is torch's: %s", error)
        return torch_ctc
    chosen = Ctc("k2", k2_version(), k2, config.output_beam)
    log.info("CTC is k2's, version %s, output_beam %g", chosen.version, chosen.output_beam)
    return chosen
