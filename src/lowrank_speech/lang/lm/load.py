"""Load the folder of the stage lm for decoding: ``LanguageModel.load(folder)``.

    lm = LanguageModel.load("exp/lm/words3")
    lm.unit, lm.order, len(lm.vocabulary)
    scorer = lm.scorer()        # see lang.lm.query

lm.json is the stage's manifest. Loading compares the hash of the model with the one in the manifest.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

from lowrank_speech.artefact import read_manifest, sha256
from lowrank_speech.errors import UserError
from lowrank_speech.lang.lm import arpa
from lowrank_speech.lang.lm.ngrams import UNK
from lowrank_speech.lang.lm.query import KENLM_ORDERS, NEEDS_KENLM, KenlmScorer, OwnScorer, Scorer, has_kenlm
from lowrank_speech.lang.load import Lang

MANIFEST = "lm.json"
ARPA, BINARY, WORDS = "lm.arpa", "lm.bin", "words.txt"


@dataclass(frozen=True)
class LanguageModel:
    """An n-gram model.

    unit         word, token or character: what its words are; see ``lang.lm.units``
    order        length of the longest n-grams
    path         the file that kenlm reads: ``binary`` if there is one, else ``arpa``
    arpa         the ARPA file, which kaldilm reads, too; None if the model came as a KenLM binary
    binary       the KenLM binary; None if the model is an ARPA file
    vocabulary   its words, without <s>, </s> and <unk>
    sha256       hash of the file ``path``
    lang_sha256  for tokens: hash of the token set (``Lang.sha256``); else None
    """

    folder: Path
    unit: str
    order: int
    arpa: Path | None
    binary: Path | None
    vocabulary: tuple[str, ...]
    sha256: str
    lang_sha256: str | None

    @property
    def path(self) -> Path:
        """The file that kenlm reads."""
        return self.binary or self.arpa

    @classmethod
    def load(cls, folder: str | Path) -> "LanguageModel":
        """Read the folder. UserError: the stage lm did not make it, or its model has changed since then."""
        folder = Path(folder)
        manifest = folder / MANIFEST
        if not manifest.is_file():
            raise UserError(f"{folder} has no {MANIFEST}; give a folder that the stage lm made")
        try:
            record = read_manifest(manifest, "lm")
            metrics, outputs = record["metrics"], record["outputs"]
            name = BINARY if BINARY in outputs else ARPA
            unit, order, expected = metrics["unit"], metrics["order"], outputs[name]["sha256"]
            of_lang = metrics["lang_sha256"]
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{manifest} is not a manifest of the stage lm ({error}); run the stage again") from error
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path} does not exist; run the stage lm again")
        if sha256(path) != expected:
            raise UserError(f"{path} has changed since the stage lm wrote it; restore it, or run the stage again")
        paths = (path, None) if name == ARPA else (None, path)
        return cls(folder, unit, order, *paths, read_words(folder / WORDS), expected, of_lang)

    def scorer(self, kenlm: bool | None = None) -> Scorer:
        """An object that scores words (``lang.lm.query``).

        ``kenlm``: True or False chooses the package kenlm or our own query; None takes kenlm where it is installed and
        reads models of this order. A KenLM binary needs it. UserError: it is needed, but not installed.
        """
        if kenlm is None:
            kenlm = self.arpa is None or (has_kenlm() and self.order in KENLM_ORDERS)
        if not kenlm:
            if self.arpa is None:
                raise UserError(f"{self.path} is a KenLM binary, which only kenlm reads; use the ARPA file instead")
            return _own(self.arpa)
        if not has_kenlm():
            raise UserError(NEEDS_KENLM.format(path=self.path))
        return KenlmScorer(self.path)

    def check_lang(self, lang: Lang, where: str) -> None:
        """UserError: the model's words are tokens of another token set than ``lang``; ``where`` names the user."""
        if self.lang_sha256 is not None and lang.sha256 != self.lang_sha256:
            raise UserError(
                f"{where}: {self.folder} is a model of the tokens of another token set; make it with the token set of "
                f"the system (`lang` of the section in `lms`)"
            )


@functools.lru_cache(maxsize=4)
def _own(path: Path) -> OwnScorer:
    return OwnScorer(arpa.read(path))


def read_words(path: Path) -> tuple[str, ...]:
    """The words of words.txt, lines ``word count`` or ``word``, without <unk>."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; run the stage lm again")
    lines = path.read_text(encoding="utf-8").split("\n")
    return tuple(word for line in lines if (word := line.partition(" ")[0]) and word != UNK)
