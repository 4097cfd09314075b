"""Inputs of w2v-BERT: Kaldi's log-mel filterbanks, normalised per utterance, with two frames stacked into one.

16 kHz, 25 ms Povey window, 10 ms hop, no dither, samples in the 16-bit range, snipped edges; zero mean and unit
variance per mel bin. Equal to ``SeamlessM4TFeatureExtractor`` without its padding. An odd last frame is dropped,
because the published extractor masks it out.
"""

import torch
from torch import Tensor
from torchaudio.compliance import kaldi

STACKED = 2
SHIFT = STACKED * 0.010  # seconds from one stacked frame to the next
LEAST = 400 + 160  # samples for one stacked frame


def stacked_fbank(waveform: Tensor, n_mels: int = 80) -> Tensor:
    """Waveform (T,) at 16 kHz, float in [-1, 1] -> (F, 2 * n_mels) float32.

    Raises ValueError if the waveform is too short for one stacked frame (35 ms).
    """
    if len(waveform) < LEAST:
        raise ValueError(f"{len(waveform) / 16_000:.3f} s is too short for one frame of two filterbanks (0.035 s)")
    bands = kaldi.fbank(waveform[None] * 2**15, num_mel_bins=n_mels, window_type="povey", dither=0.0)
    bands = (bands - bands.mean(0)) / torch.sqrt(bands.var(0) + 1e-7)
    frames = len(bands) // STACKED
    return bands[: STACKED * frames].reshape(frames, STACKED * n_mels)
