"""Whisper's log-mel spectrogram, equal to ``WhisperFeatureExtractor``'s, without its padding to 30 s.

16 kHz, 25 ms Hann window, 10 ms hop, Slaney mel filters, log10, clipped at 8 below the utterance's maximum, then
(x + 4) / 4. The published extractor appends zeros up to 30 s before the transform; so do we, but only as many as the last
window reaches into, and the frames that hold nothing but padding are left to ``SpeechModel.pad_mel``.
Source: openai/whisper, whisper/audio.py.
"""

import functools

import torch
from torch import Tensor
from torchaudio.functional import melscale_fbanks

N_FFT = 400
HOP = 160
SAMPLE_RATE = 16_000


@functools.cache
def _filters(n_mels: int) -> Tensor:
    return melscale_fbanks(N_FFT // 2 + 1, 0.0, 8000.0, n_mels, SAMPLE_RATE, norm="slaney", mel_scale="slaney")


def log_mel(waveform: Tensor, n_mels: int = 80) -> Tensor:
    """Waveform (T,) at 16 kHz, float in [-1, 1] -> (ceil(T / 160), n_mels) float32."""
    frames = -(-len(waveform) // HOP)
    padded = torch.nn.functional.pad(waveform, (0, frames * HOP + N_FFT - len(waveform)))
    spectrum = torch.stft(padded, N_FFT, HOP, window=torch.hann_window(N_FFT), return_complex=True)
    power = spectrum[:, :frames].abs().square()
    log = torch.clamp(power.T @ _filters(n_mels), min=1e-10).log10()
    return (torch.maximum(log, log.max() - 8.0) + 4.0) / 4.0
