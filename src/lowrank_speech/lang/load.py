"""Load the folder of the stage lang for training and decoding: ``Lang.load(folder)``.

lang.json is the stage's manifest. Its ``metrics`` have the settings of the normaliser and the languages; its
``outputs`` have the sha256 of the token file. Loading compares the hash, because a table that was edited does not fit
the models that were trained with it.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowrank_speech.artefact import canonical_json, read_manifest, sha256
from lowrank_speech.errors import UserError
from lowrank_speech.lang.normalise import NormaliseConfig, Normaliser
from lowrank_speech.lang.tokens import CharTokens, PieceTokens, Tokens

MANIFEST = "lang.json"
TOKEN_FILES = {"char": "tokens.txt", "sentencepiece": "pieces.model", "whisper": None}
"""Kind -> file with its tokens."""

NO_TEXT, ONLY_TAGS, NOTHING_LEFT = "no text", "only tags", "normalises to nothing"
"""Reasons why an utterance cannot be used for recognition."""


@dataclass(frozen=True)
class Lang:
    """A normaliser and a token set.

    kind       char, sentencepiece or whisper
    tokens     None for whisper: the tokenizer comes with the model (``models.text.WhisperTokens``)
    languages  sorted codes of the languages in the training transcripts
    sha256     identifies the meaning of a model's outputs: token file and symbols, including special ones; None for
               whisper
    leading_space   whisper: whether each text begins with a blank
    """

    kind: str
    tokens: Tokens | None
    languages: tuple[str, ...]
    normaliser: Normaliser
    sha256: str | None
    leading_space: bool = False

    @classmethod
    def load(cls, folder: str | Path) -> "Lang":
        """Read the folder. UserError: the stage lang did not make it, or its token file has changed since then."""
        folder = Path(folder)
        path = folder / MANIFEST
        if not path.is_file():
            raise UserError(f"{folder} has no {MANIFEST}; give a folder that the stage lang made")
        try:
            record = read_manifest(path, "lang")
            metrics = record["metrics"]
            kind, languages = metrics["kind"], tuple(metrics["languages"])
            name, seq2seq = TOKEN_FILES[kind], metrics["for"] == "seq2seq"
            normaliser = Normaliser(NormaliseConfig.from_dict(metrics["normalise"]))
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path} is not a manifest of the stage lang ({error}); run the stage again") from error
        if name is None:
            return cls(kind, None, languages, normaliser, None, metrics.get("leading_space", False))
        found = _verified(folder / name, record)
        if kind == "char":
            tokens = CharTokens.load(folder / name)
        else:
            tokens = PieceTokens.load(folder / name, languages if seq2seq else None)
        digest = hashlib.sha256(canonical_json([found, tokens.symbols]).encode()).hexdigest()
        return cls(kind, tokens, languages, normaliser, digest)

    def normalise(self, text: str, language: str | None = None) -> str:
        """Normalise ``text`` for the token set; "" if nothing is left."""
        return self.normaliser(text, language)

    def written(self, text: str, language: str | None = None) -> str:
        """``text`` in its own case and punctuation, with its tags replaced."""
        return self.normaliser.with_tags(text, language)

    def usable(self, text: str | None, language: str | None = None) -> str | None:
        """Why an utterance with this raw transcript cannot be used for recognition; None if it can."""
        return unusable(self.normaliser, text, language)


def unusable(normaliser: Normaliser, text: str | None, language: str | None) -> str | None:
    """NO_TEXT, ONLY_TAGS or NOTHING_LEFT; None if the transcript can be used."""
    if text is None or not text.strip():
        return NO_TEXT
    if normaliser(text, language):
        return None
    return ONLY_TAGS if normaliser.holds_tags(text, language) else NOTHING_LEFT


def _verified(path: Path, record: dict[str, Any]) -> str:
    """The sha256 of ``path``. UserError: it differs from the one in the manifest."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; run the stage lang again")
    found, expected = sha256(path), record["outputs"].get(path.name, {}).get("sha256")
    if found != expected:
        raise UserError(
            f"{path} has changed since the stage lang wrote it (sha256 {found[:12]}..., {MANIFEST} has "
            f"{str(expected)[:12]}...); restore it, or run the stage and all trainings that use it again"
        )
    return found
