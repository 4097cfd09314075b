"""SpecAugment: masks on the model's input features, drawn for each utterance. Source: Park et al. 2019."""

import torch
from torch import Tensor

from lowrank_speech.training.config import SpecAugment


def spec_augment(
    features: Tensor, lengths: Tensor, stacked: int = 1, *, config: SpecAugment, generator: torch.Generator
) -> Tensor:
    """Replace masked values of features (B, F, C) with (B,) valid frames by the utterance's mean. Returns a new tensor.

    ``stacked``: each row holds this many frames of C / stacked bands; a band is masked in all of them.
    """
    batch, frames, channels = features.shape
    lengths = lengths.cpu()  # the generator is on the CPU
    time = torch.arange(frames)[None, :].expand(batch, frames)
    valid = time < lengths[:, None]
    sums = (features.detach().float() * valid[..., None].to(features.device)).sum((1, 2))
    mean = (sums / (valid.sum(1).clamp(min=1) * channels).to(features.device)).to(features.dtype)
    widest = torch.minimum(torch.full_like(lengths, config.time_width), (lengths * config.time_share).long())
    masked = torch.zeros(batch, frames, dtype=torch.bool)
    for _ in range(config.time_masks):
        width = (torch.rand(batch, generator=generator) * (widest + 1)).long()
        start = (torch.rand(batch, generator=generator) * (lengths - width + 1)).long()
        masked |= (time >= start[:, None]) & (time < (start + width)[:, None])
    bands = channels // stacked
    band = torch.arange(bands)[None, :].expand(batch, bands)
    silent = torch.zeros(batch, bands, dtype=torch.bool)
    for _ in range(config.feature_masks):
        width = (torch.rand(batch, generator=generator) * (min(config.feature_width, bands - 1) + 1)).long()
        start = (torch.rand(batch, generator=generator) * (bands - width + 1)).long()
        silent |= (band >= start[:, None]) & (band < (start + width)[:, None])
    silent = silent.repeat(1, stacked)
    hidden = (masked[:, :, None] | silent[:, None, :]) & valid[..., None]
    return torch.where(hidden.to(features.device), mean[:, None, None], features)
