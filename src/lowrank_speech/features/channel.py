"""The same bandwidth and codec for all languages, so that a recogniser cannot tell languages by their recordings.

    narrow   resampled to 8 kHz and back: nothing above 4 kHz
    mulaw    the same with G.711 mu-law, as on the telephone
    gsm      the same with GSM 06.10 full rate
    mp3      MP3 at 16 kHz

The samples of every utterance of training, dev and test go through it when they are read, by Lhotse's transforms of
recordings. So the model's input must come from samples: bases need ``features: waveform``.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from lowrank_speech.errors import UserError

RATE, NARROW = 16_000, 8_000
LEVEL = 0.9
"""Compression of MP3; libsndfile's scale from 0 to 1."""


def through(cuts: Iterable[Any], channel: str, path: Any) -> Iterator[Any]:
    """Yield ``cuts`` (from the file ``path``) with recordings that go through ``channel`` as they are read.

    UserError: they have stored features instead of samples.
    """
    for cut in cuts:
        if getattr(cut, "has_features", False):
            raise UserError(
                f"{path} has stored features, which channel: {channel} cannot change; set features: waveform for the "
                f"base, or remove the channel"
            )
        yield _changed(cut, channel)


def _changed(cut: Any, channel: str) -> Any:
    match channel:
        case "narrow":
            return cut.resample(NARROW).resample(RATE)
        case "mulaw":
            return cut.narrowband("mulaw", affix_id=False)
        case "gsm":
            return cut.compress("gsm")
        case "mp3":
            return cut.compress("mp3", LEVEL)
    raise UserError(f"channel: {channel!r} does not exist; expected one of: narrow, mulaw, gsm, mp3")
