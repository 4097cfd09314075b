"""A control instead of a model: a linear classifier on the mean log-mel of an utterance, with nothing pretrained.

It knows the channel, the voice and the average spectrum, but no order of sounds. Its folder has ``config.json`` (key
``control``: labels, number of mel bands) and ``model.safetensors`` (mean and scale of the inputs, weight, bias). It has
the part of ``SpeechModel``'s interface that decoders of language systems use.

B batch, F frames, C mel bands, N languages.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lowrank_speech.artefact import atomic
from lowrank_speech.errors import UserError
from lowrank_speech.models.heads.base import within
from lowrank_speech.models.speech import Meta

KEY, NAME, BANDS = "control", "mean-logmel", 80


class MeanLogMel(nn.Module):
    """log-mel (B, F, C) -> logits (B, N): W (mean - m) / s + b."""

    task, family, feature_size, window_seconds, head = "classify", NAME, BANDS, None, None

    def __init__(self, labels: Sequence[str]):
        super().__init__()
        self.meta = Meta(NAME, "classify", labels=list(labels))
        self.register_buffer("mean", torch.zeros(BANDS))
        self.register_buffer("scale", torch.ones(BANDS))
        self.linear = nn.Linear(BANDS, len(labels))

    def means(self, features: Tensor, lengths: Tensor) -> Tensor:
        """The mean of the valid frames (B, C)."""
        valid = within(lengths, features.shape[1])[..., None]
        return (features * valid).sum(1) / lengths.clamp(min=1)[:, None]

    def class_logits(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Logits (B, N) of the languages for log-mel (B, F, C) with ``lengths`` (B,) valid frames."""
        return self.linear((self.means(features, lengths) - self.mean) / self.scale)

    def parameters_total(self) -> int:
        """Number of parameters."""
        return sum(p.numel() for p in self.parameters())


def usable(cuts: Iterable[Any], path: Any) -> Iterator[Any]:
    """Yield ``cuts`` (from the file ``path``). UserError: they have the features of a base instead of samples."""
    for cut in cuts:
        if getattr(cut, "has_features", False):
            raise UserError(
                f"{path}: utterance {cut.id} has stored features ({cut.features.type}), but the control {NAME} reads "
                f"samples; give the cuts of the stage corpus"
            )
        yield cut


def save(model: MeanLogMel, folder: str | Path) -> None:
    """Write the folder of a control, atomically."""
    with atomic(folder) as temporary:
        temporary.mkdir()
        said = {KEY: {"kind": NAME, "labels": model.meta.labels, "bands": BANDS}}
        (temporary / "config.json").write_text(json.dumps(said, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        state = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
        save_file(state, temporary / "model.safetensors", metadata={"format": "pt"})


def load(folder: str | Path) -> MeanLogMel | None:
    """The control in ``folder``; None: the folder has another model."""
    config = Path(folder) / "config.json"
    said = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    if KEY not in said:
        return None
    model = MeanLogMel(said[KEY]["labels"])
    model.load_state_dict(load_file(Path(folder) / "model.safetensors"))
    return model.eval()
