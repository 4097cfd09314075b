"""Read any audio in blocks: what libsndfile reads, and through FFmpeg (PyAV) the rest, containers of videos included.

    sound = open_sound("talk.mp4")            # UserError: it is missing, empty, or not audio
    for block in sound.blocks(): ...          # (T,) float32 at 16 kHz; several channels are averaged

A recording is never held as a whole, so its length does not matter for memory. A file that is damaged, but partly
readable, is read as far as possible; ``sound.notes`` says what is wrong.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowrank_speech.corpora.audio import AudioError, check_file
from lowrank_speech.corpora.containers.chunks import LAYOUTS
from lowrank_speech.corpora.containers.extent import MORE, TRUNCATED
from lowrank_speech.errors import UserError
from lowrank_speech.inference.resampling import resampled

RATE = 16_000
BLOCK = 1 << 16
"""Samples of each channel to read at a time."""
CHECKED = 32 << 20
"""Up to this many bytes, the check for truncation covers all formats. It maps Ogg, FLAC and MP3 files into memory, so
larger ones are only compared with the length in their header."""
SILENT = "silent: all samples are zero"
FAINT = 1e-3
"""Peak, of full scale, below which there is hardly any speech: -60 dB."""


@dataclass
class Sound:
    """A recording that can be read, as often as needed.

    name     as the user named it
    rate     of the file
    seconds  duration; known after the first reading at the latest
    notes    what is wrong with it, for people; complete after the first reading
    """

    name: str
    path: Path
    rate: int
    with_ffmpeg: bool
    seconds: float | None = None
    notes: list[str] = field(default_factory=list)

    def blocks(self) -> Iterator[Tensor]:
        """Its samples (T,) at 16 kHz, float32. UserError: it cannot be decoded, or its samples are not finite."""
        read, peak = 0, 0.0

        def counted() -> Iterator[Tensor]:
            nonlocal read, peak
            for block in (_ffmpeg if self.with_ffmpeg else _libsndfile)(self):
                if not np.isfinite(block).all():
                    raise UserError(f"{self.name} has samples that are NaN or infinite; encode it again")
                read += len(block)
                peak = max(peak, float(np.abs(block).max(initial=0.0)))
                yield torch.from_numpy(block)

        yield from resampled(counted(), self.rate, RATE)
        if not read:
            raise UserError(f"{self.name} has no samples; check the recording")
        self.seconds = read / self.rate
        if peak < FAINT:
            self.note(SILENT if peak == 0 else "almost silent: no sample exceeds a thousandth of full scale")

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def open_sound(path: str | Path, name: str | None = None) -> Sound:
    """The recording in the file ``path``; ``name`` replaces the path in messages.

    UserError: the file does not exist, is empty, or has no audio that libsndfile or FFmpeg can read.
    """
    path, name = Path(path), str(path) if name is None else name
    if not path.exists():
        raise UserError(f"{name} does not exist; check the path")
    if path.is_dir():
        raise UserError(f"{name} is a folder; give an audio file")
    try:
        with path.open("rb") as file:
            head = file.read(4)
            size = path.stat().st_size
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror}; check its permissions") from error
    if not head:
        raise UserError(f"{name} is empty: it has 0 bytes; record or copy it again")
    if size > CHECKED and head not in LAYOUTS:
        found = _opened(path, name)
        return found or _with_ffmpeg(path, name, "libsndfile cannot read it")
    try:
        header = check_file(path)
    except AudioError as fault:
        if fault.reason == "zero length":
            raise UserError(f"{name} has no samples; check the recording") from fault
        sound = _with_ffmpeg(path, name, fault.detail)
        if fault.reason in (TRUNCATED, MORE):
            sound.note(f"{fault.reason}: {fault.detail.replace(str(path), name)}; read as far as possible")
        return sound
    return Sound(name, path, header.rate, False, header.seconds)


def samples_of(sound: Sound) -> Tensor:
    """All samples (T,) at 16 kHz, float32; only for short recordings."""
    return torch.cat(list(sound.blocks()))


# -- libsndfile


def _opened(path: Path, name: str) -> Sound | None:
    """A sound from its header alone, if libsndfile reads it."""
    import soundfile

    try:
        info = soundfile.info(str(path))
    except (soundfile.SoundFileError, TypeError):
        return None
    return Sound(name, path, info.samplerate, False)


def _libsndfile(sound: Sound) -> Iterator[np.ndarray]:
    import soundfile

    try:
        with soundfile.SoundFile(sound.path) as file:
            declared, read = file.frames, 0
            while len(block := file.read(BLOCK, dtype="float32", always_2d=True)):
                read += len(block)
                yield np.ascontiguousarray(block.mean(axis=1))
    except (soundfile.SoundFileError, OSError) as error:
        said = " ".join(str(error).split())
        raise UserError(f"{sound.name} cannot be read to its end ({said}); encode it again") from error
    if read < declared < 1 << 60:  # libsndfile's sign for an unknown length
        sound.note(f"{TRUNCATED}: the header declares {declared} samples, the file has {read}; read as far as possible")


# -- FFmpeg


def _with_ffmpeg(path: Path, name: str, other: str) -> Sound:
    """The sound of a file that libsndfile does not read, for the reason ``other``."""
    import av

    av.logging.set_level(av.logging.PANIC)
    try:
        with _container(path) as container:
            streams = container.streams.audio
            if not streams and container.streams.video:
                raise UserError(f"{name} has no sound: it is a video or picture without an audio track")
            if not streams:
                raise UserError(f"{name} is not audio; give a recording")
            rate = streams[0].codec_context.sample_rate
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise UserError(
            f"{name} is not audio: neither libsndfile nor FFmpeg can read it{_why(other)}; give a recording, or "
            f"convert it to WAV or FLAC"
        ) from error
    if not rate:
        raise UserError(f"{name} has an audio track without a sampling rate; convert it to WAV or FLAC")
    return Sound(name, path, rate, True)


def _why(said: str) -> str:
    """What libsndfile says about a file, if it is more than that it does not know the format."""
    reason = re.sub(r"^.*Error opening '.*?': |^\S+: |\.? \(after 0 samples\)$", "", said)
    return "" if "not recognised" in reason or "cannot read it" in reason else f" ({reason})"


def _container(path: Path) -> Any:
    import av

    # Playlists must not lead to other files or hosts.
    return av.open(str(path), options={"protocol_whitelist": "file"}, metadata_errors="replace")


def _ffmpeg(sound: Sound) -> Iterator[np.ndarray]:
    import av

    damaged = 0
    try:
        with _container(sound.path) as container:
            stream = container.streams.audio[0]
            stream.thread_type = "NONE"
            resampler = av.AudioResampler(format="fltp", rate=sound.rate)
            packets = container.demux(stream)
            while True:
                try:
                    packet = next(packets)
                    frames = packet.decode()
                except (StopIteration, av.error.EOFError):
                    break
                except av.error.InvalidDataError:
                    damaged += 1
                    continue
                for frame in frames:
                    yield from (_mono(part) for part in resampler.resample(frame))
            yield from (_mono(part) for part in resampler.resample(None))
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise UserError(f"{sound.name} cannot be read to its end ({_line(error)}); convert it to WAV") from error
    if damaged:
        sound.note(f"FFmpeg could not decode {damaged} of its packets, which are left out")


def _mono(frame: Any) -> np.ndarray:
    return np.ascontiguousarray(frame.to_ndarray().mean(axis=0, dtype=np.float32))


def _line(error: Exception) -> str:
    said = getattr(error, "strerror", None) or str(error)
    return " ".join(str(said).split())
