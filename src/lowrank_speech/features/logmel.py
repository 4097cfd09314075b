"""Whisper's log-mel spectrogram, equal to ``WhisperFeatureExtractor``'s, without its padding to 30 s.

One case apart: where an utterance ends within 12.5 ms of the model's window or beyond it, the published extractor
reflects the samples at the window's end and drops two frames; here zeros follow. The last frame then differs, and all
of them where their maximum lies there.

16 kHz, 25 ms Hann window, 10 ms hop, Slaney mel filters, log10, clipped at 8 below the utterance's maximum, then
(x + 4) / 4. The published extractor appends zeros up to 30 s before the transform; here only as many as the last window
with speech reaches into. ``SpeechModel.pad_mel`` gives the frames that hold nothing but padding their value.
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


def mel_frames(samples: int) -> int:
    """Number of frames that see any of ``samples`` samples."""
    return -(-(samples + N_FFT // 2) // HOP)


def log_mel(waveform: Tensor, n_mels: int = 80) -> Tensor:
    """Waveform (T,) at 16 kHz, float in [-1, 1] -> (ceil((T + 200) / 160), n_mels) float32.

    Frames are centred at multiples of the hop: the last one or two lie beyond the end and see its last samples.
    """
    frames = mel_frames(len(waveform))
    padded = torch.nn.functional.pad(waveform, (0, frames * HOP + N_FFT - len(waveform)))
    spectrum = torch.stft(padded, N_FFT, HOP, window=torch.hann_window(N_FFT), return_complex=True)
    power = spectrum[:, :frames].abs().square()
    log = torch.clamp(power.T @ _filters(n_mels), min=1e-10).log10()
    return (torch.maximum(log, log.max() - 8.0) + 4.0) / 4.0
