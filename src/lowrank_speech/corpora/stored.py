"""Audio that is stored inside tables or archives, written to files: cuts name files, and later stages read them.

    >>> with stored_audio(audio_dir) as store:
    ...     path = store.put(b"fLaC...", 0)
    >>> path
    '.../audio/train/000000000.flac'

The bytes are written as they are, without decoding. The folder appears when it is complete.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lowrank_speech.artefact import atomic

MAGIC = (
    (b"fLaC", ".flac"),
    (b"RIFF", ".wav"),
    (b"OggS", ".ogg"),
    (b"ID3", ".mp3"),
    (b"NIST", ".sph"),
    (b"FORM", ".aiff"),
)


class Store:
    """Writes audio files into ``written``, which becomes ``final``."""

    def __init__(self, written: Path, final: Path):
        # Absolute, because the record of the audio is relative to the corpus's folder.
        self.written, self.final = written, final.absolute()

    def put(self, content: bytes, number: int) -> str:
        """Write ``content`` as file ``number``; return its final path."""
        head = bytes(content[:4])
        mpeg = len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0
        suffix = next((suffix for magic, suffix in MAGIC if head.startswith(magic)), ".mp3" if mpeg else ".audio")
        # Numbers, because ids may contain characters that file names may not.
        name = f"{number:09d}{suffix}"
        (self.written / name).write_bytes(content)
        return str(self.final / name)


@contextmanager
def stored_audio(folder: Path) -> Iterator[Store]:
    """A ``Store`` for the folder; it replaces the folder of an earlier run, and is dropped if an error occurs."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic(folder) as temporary:
        temporary.mkdir()
        yield Store(temporary, folder)
