"""Gabor initialisation of a wav2vec 2.0 from scratch: its first convolution starts as a mel-spaced filterbank.

With random filters, a small wav2vec 2.0 spends most of a short training on learning a spectrum. Cosine and sine pairs
under a Gaussian window, at mel-spaced centres, provide one at step 0. The filters stay trainable, and the model stays a
plain Wav2Vec2Model. Source: LEAF (Zeghidour et al. 2021) and SincNet (Ravanelli and Bengio 2018) use fixed filters of
this kind.
"""

import math

import torch
from torch import nn

LOWEST, HIGHEST = 60.0, 7600.0  # Hz
RATE = 16_000


def _mel(hertz: float) -> float:
    return 2595.0 * math.log10(1.0 + hertz / 700.0)


def _hertz(mel: float) -> float:
    return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)


def gabor_filters(pairs: int, width: int) -> torch.Tensor:
    """Unit-norm filters (2 * pairs, width) at 16 kHz: cosine and sine at each centre frequency, in ascending order.

    The Gaussian's bandwidth follows the distance between the neighbouring centres, at least 60 Hz.
    """
    low, high = _mel(LOWEST), _mel(HIGHEST)
    edges = [_hertz(low + (high - low) * i / (pairs + 1)) for i in range(pairs + 2)]
    time = (torch.arange(width, dtype=torch.float64) - width / 2) / RATE
    taper = torch.hann_window(width, periodic=False, dtype=torch.float64)
    rows = []
    for below, centre, above in zip(edges, edges[1:], edges[2:], strict=False):
        envelope = taper * torch.exp(-0.5 * (1.5 * max(above - below, 60.0) * time) ** 2)
        for wave in (torch.cos, torch.sin):
            row = envelope * wave(2 * math.pi * centre * time)
            rows.append(row / row.norm())
    return torch.stack(rows).float()


def gabor_start(feature_extractor: nn.Module) -> None:
    """Set the first convolution of a Wav2Vec2FeatureEncoder, which needs an even channel count, to Gabor filters."""
    conv = feature_extractor.conv_layers[0].conv
    channels, _, width = conv.weight.shape
    if channels % 2:
        raise ValueError(f"the first convolution has {channels} channels; Gabor filters need an even number")
    with torch.no_grad():
        conv.weight.copy_(gabor_filters(channels // 2, width)[:, None, :])
        if conv.bias is not None:
            conv.bias.zero_()
