"""Whisper's log-mel spectrogram, equal to that of ``WhisperFeatureExtractor`` without its padding to 30 s.

There is one exception. If an utterance ends within 12.5 ms of the model's window or beyond it, the published extractor
reflects the samples at the window's end and drops two frames, but this one appends zeros. Then the last frame differs,
or all frames if their maximum is in the last one.

16 kHz, 25 ms Hann window, 10 ms hop, Slaney mel filters, log10, clipped at 8 below the utterance's maximum, then
(x + 4) / 4. The published extractor appends zeros up to 30 s before the transform; this one appends only as many as the
last window with speech needs. ``SpeechModel.pad_mel`` sets the frames that contain only padding.
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
    """Number of frames whose window includes any of ``samples`` samples."""
    return -(-(samples + N_FFT // 2) // HOP)


def log_mel(waveform: Tensor, n_mels: int = 80) -> Tensor:
    """Waveform (T,) at 16 kHz, float in [-1, 1] -> (ceil((T + 200) / 160), n_mels) float32.

    Frames are centred at multiples of the hop. The last one or two are centred beyond the end of the waveform.
    """
    frames = mel_frames(len(waveform))
    padded = torch.nn.functional.pad(waveform, (0, frames * HOP + N_FFT - len(waveform)))
    spectrum = torch.stft(padded, N_FFT, HOP, window=torch.hann_window(N_FFT), return_complex=True)
    power = spectrum[:, :frames].abs().square()
    log = torch.clamp(power.T @ _filters(n_mels), min=1e-10).log10()
    return (torch.maximum(log, log.max() - 8.0) + 4.0) / 4.0
