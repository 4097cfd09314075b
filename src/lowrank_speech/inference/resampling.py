"""Resample a stream of blocks: the same samples as torchaudio's ``resample`` of the whole recording, as in training.

The filter of torchaudio reaches a few samples to both sides, so a block is resampled together with what its neighbours
have within this reach.
"""

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

REACH = 6
"""torchaudio's default ``lowpass_filter_width``, in periods of the lower rate."""
ROLLOFF = 0.99
LARGEST = 2000
"""Rates that have, without their common divisor, more than this are left to FFmpeg: torchaudio's filter has the product
of both rates in it."""


def resampled(blocks: Iterable[Tensor], rate: int, wanted: int) -> Iterator[Tensor]:
    """``blocks`` (T,) at ``rate`` -> blocks at the rate ``wanted``; none is empty."""
    if rate == wanted:
        yield from (block for block in blocks if len(block))
        return
    from torchaudio.functional import resample

    divisor = math.gcd(rate, wanted)
    old, new = rate // divisor, wanted // divisor
    if max(old, new) > LARGEST:
        yield from _by_ffmpeg(blocks, rate, wanted)
        return
    width = math.ceil(REACH * old / (min(old, new) * ROLLOFF))
    before = -(-width // old) * old  # a multiple of the period, so that the phase of the filter stays
    kept, done = torch.zeros(0), 0  # samples not yet used; the first ``done`` of them are only context
    for block in blocks:
        kept = torch.cat([kept, block])
        ready = (len(kept) - done - before) // old * old
        if ready <= 0:
            continue
        yield resample(kept[: done + ready + before], rate, wanted)[done // old * new : (done + ready) // old * new]
        drop = max(done + ready - before, 0)
        kept, done = kept[drop:].clone(), done + ready - drop
    if len(kept) > done:
        yield resample(kept, rate, wanted)[done // old * new :]


def _by_ffmpeg(blocks: Iterable[Tensor], rate: int, wanted: int) -> Iterator[Tensor]:
    import av

    resampler = av.AudioResampler(format="fltp", layout="mono", rate=wanted)
    for block in blocks:
        frame = av.AudioFrame.from_ndarray(block[None].numpy(), format="fltp", layout="mono")
        frame.sample_rate = rate
        yield from (torch.from_numpy(part.to_ndarray()[0].copy()) for part in resampler.resample(frame))
    yield from (torch.from_numpy(part.to_ndarray()[0].copy()) for part in resampler.resample(None))
