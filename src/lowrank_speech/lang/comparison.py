"""Normalisers of scoring: what is done to references and hypotheses alike before their words are compared.

    house            the defaults of ``lang.normalise``: lower case, no punctuation, apostrophes inside words stay
    whisper-basic    Whisper's normaliser for any language: lower case, symbols become blanks, brackets are removed
    whisper-english  Whisper's normaliser for English: also contractions, spellings, fillers (um, uh), and numbers as
                     digits ("twenty five" -> 25); whisper-basic for utterances in other languages

``numbers="words"`` first spells out digits (``lang.numerals``), except in English under whisper-english, which does the
opposite.

Source: Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision", appendix C; the code is that of
transformers (models/whisper/english_normalizer.py), which imports no torch.
"""

from collections.abc import Callable

from lowrank_speech.errors import UserError
from lowrank_speech.lang.normalise import Normaliser
from lowrank_speech.lang.numerals import has_numbers, spelt


class Comparison:
    """``comparison(text, language)`` is the text whose words are compared; "" if nothing is left.

    ``kind``: house, whisper-basic or whisper-english. ``numbers``: as-written or words. ``unspelt``: languages in which
    numbers should have become words, but num2words has none for them.
    """

    def __init__(self, kind: str, numbers: str = "as-written"):
        self.kind, self.numbers = kind, numbers
        self.unspelt: set[str] = set()
        self._any: Callable[[str], str] | None = None
        self._english: Callable[[str], str] | None = None
        self._house = Normaliser()
        if kind != "house":
            from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

            from lowrank_speech.lang.english_spelling import american

            self._any = BasicTextNormalizer()
            self._english = EnglishTextNormalizer(american()) if kind == "whisper-english" else None

    def __call__(self, text: str, language: str | None = None) -> str:
        english = self._english is not None and is_english(language)
        if self.numbers == "words" and not english:
            text = self._spelt(text, language)
        if english:
            result = self._english(text)
        elif self._any is not None:
            result = self._any(text)
        else:
            result = self._house(text, language)
        return " ".join(result.split())

    def _spelt(self, text: str, language: str | None) -> str:
        if language is None:
            raise UserError(
                "numbers: words needs the language of each utterance, because every language has its own words; give "
                "it (`lowrank-speech score asr`: --language or --utt2lang)"
            )
        words = spelt(text, language)
        if has_numbers(words, language):
            self.unspelt.add(language)
        return words


def is_english(language: str | None) -> bool:
    """Whether an utterance gets the English rules; one without a language does."""
    return language is None or language.replace("_", "-").partition("-")[0].lower() == "en"
