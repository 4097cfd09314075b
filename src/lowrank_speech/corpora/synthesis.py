"""Deterministic speech synthesis with eSpeak NG, through ctypes.

In: text, a voice (``es``, ``es-419+f3``), a rate and a pitch. Out: 16-bit samples at 22,050 Hz. The library and its
data come with the PyPI package espeakng-loader, so no system package and no network is needed.

eSpeak NG carries state from one utterance to the next, and no seed resets it, so repeated synthesis in one process is
not deterministic. Therefore this process only initialises the library. A forked child starts from that state, speaks
one utterance, and sends it back through a pipe (about 11 ms). The child also seeds the random numbers that some voices
use (f3 and f5, for example), which eSpeak seeds from the time of day. It calls little but eSpeak and ``os.write`` and
leaves with ``os._exit``, so forking is safe even if the parent has threads.

    python -c "from lowrank_speech.corpora import synthesis; print(len(synthesis.say('de+m3', 'Guten Tag.', 170, 50)))"

Source: espeak-ng ``speak_lib.h`` (names and values of the calls below).
"""

import ctypes
import functools
import os
import select
import signal
import time
from pathlib import Path

import numpy as np

from lowrank_speech.errors import UserError

RATE = 22050  # Hz, of every voice of the package
SILENT = 200  # a voice is silent if its loudest sample is below this (full scale: 32,768)
LONGEST = 60.0  # seconds after which the process of an utterance is killed
SYNCHRONOUS, DONT_EXIT = 2, 0x8000  # espeak_AUDIO_OUTPUT, espeakINITIALIZE_DONT_EXIT
SPEED, PITCH = 1, 3  # espeak_PARAMETER
UTF8 = 1  # espeakCHARS_UTF8
SEED = 1
NO_VOICE, FAILED = 3, 4  # exit codes of the child
LIBC = ctypes.CDLL(None)
SAMPLES = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


def say(voice: str, text: str, rate: int, pitch: int) -> np.ndarray:
    """Speak ``text`` with ``voice`` at ``rate`` words per minute (80..450) and ``pitch`` (0..100).

    Returns int16 (samples,) at 22,050 Hz, possibly empty, without trimming silence. UserError: eSpeak does not have the
    voice, or failed.
    """
    library = _library()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = FAILED
        try:
            os.close(reading)
            code = _speak(library, writing, voice.encode(), text.encode(), rate, pitch)
        finally:
            os._exit(code)  # in any case: a forked child must never continue with the parent's work
    os.close(writing)
    try:
        data = _receive(reading, child)
    finally:
        os.close(reading)
        status = os.waitpid(child, 0)[1]
    code = os.waitstatus_to_exitcode(status)
    if code == NO_VOICE:
        raise UserError(f"eSpeak NG has no working voice {voice!r}; choose another one in the corpus's languages")
    if code != 0:
        raise UserError(f"eSpeak NG failed on the voice {voice!r} and the text {text!r} (exit code {code})")
    return np.frombuffer(data, dtype=np.int16)


def check(voice: str, text: str) -> None:
    """UserError if ``voice`` or its variant does not exist, or is silent on ``text``.

    eSpeak itself falls back to the plain voice if it does not know the variant, and some of its voices are silent.
    """
    variant = voice.partition("+")[2]
    folder = data_folder() / "voices" / "!v"
    if variant and not (folder / variant).is_file():
        known = ", ".join(sorted(path.name for path in folder.iterdir() if " " not in path.name))
        raise UserError(f"eSpeak NG has no voice variant {variant!r} (in {voice!r}); expected one of: {known}")
    samples = say(voice, text, 170, 50)
    if len(samples) == 0 or np.abs(samples.astype(np.int32)).max() < SILENT:
        raise UserError(f"the eSpeak NG voice {voice!r} is silent; choose another voice or variant in the corpus")


def data_folder() -> Path:
    """eSpeak NG's folder of voices and dictionaries."""
    import espeakng_loader

    return Path(espeakng_loader.get_data_path())


@functools.cache
def _library() -> ctypes.CDLL:
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    library.espeak_Synth.argtypes = [ctypes.c_char_p, ctypes.c_size_t, *[ctypes.c_int] * 2, *[ctypes.c_uint] * 2]
    library.espeak_Synth.argtypes += [ctypes.c_void_p] * 2
    library.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
    rate = library.espeak_Initialize(SYNCHRONOUS, 0, os.fsencode(data_folder()), DONT_EXIT)
    if rate != RATE:
        raise UserError(
            f"eSpeak NG could not start with the data in {data_folder()} (it returned {rate} instead of {RATE} Hz); "
            "the path must be shorter than 160 characters; if it is, reinstall the package espeakng-loader"
        )
    return library


def _speak(library: ctypes.CDLL, pipe: int, voice: bytes, text: bytes, rate: int, pitch: int) -> int:
    """What the child does: write the speech to ``pipe``, and return the exit code."""

    def write(samples: ctypes.Array, count: int, _events: int) -> int:
        if samples and count > 0:
            data = memoryview(ctypes.string_at(samples, 2 * count))
            while data:
                data = data[os.write(pipe, data) :]
        return 0

    callback = SAMPLES(write)  # a local variable, so that it lives as long as eSpeak may call it
    library.espeak_SetSynthCallback(callback)
    if library.espeak_SetVoiceByName(voice) != 0:
        return NO_VOICE
    library.espeak_ng_SetRandSeed(SEED)
    LIBC.srand(SEED)  # eSpeak also draws from the C library
    failed = library.espeak_SetParameter(SPEED, rate, 0) or library.espeak_SetParameter(PITCH, pitch, 0)
    failed = failed or library.espeak_Synth(text, len(text) + 1, 0, 1, 0, UTF8, None, None)
    return FAILED if failed or library.espeak_Synchronize() else 0


def _receive(pipe: int, child: int) -> bytes:
    """Everything that the child writes until it closes the pipe. Kills a child that hangs."""
    parts: list[bytes] = []
    end = time.monotonic() + LONGEST
    while True:
        ready, _, _ = select.select([pipe], [], [], max(0.0, end - time.monotonic()))
        if not ready:
            os.kill(child, signal.SIGKILL)
            return b""
        part = os.read(pipe, 1 << 16)
        if not part:
            return b"".join(parts)
        parts.append(part)
