"""Stage lang: training transcripts -> the normaliser and the token set of recognition.

inputs   --cuts      cuts of the training splits, .jsonl.gz or .jsonl (stage corpus). The stage reads nothing else, so
                     transcripts of dev or test have no influence. Kind whisper needs no cuts
outputs  --out       folder with
           tokens.txt      kind char: `symbol id` lines, <blk> is 0
           pieces.model    kind sentencepiece; pieces.vocab lists the pieces for people to read
           words.txt       `word count` lines, sorted: the words of the normalised transcripts
           set_aside.tsv   utterances without text, with only tags, or whose text normalises to nothing
         --manifest  lang.json in that folder; `Lang.load` reads it

kind     char            characters, for CTC unless `for: seq2seq` is set
         sentencepiece   pieces, for the decoder of a Whisper from scratch unless `for: ctc` is set. CTC can also use a
                         set for seq2seq, but not its special symbols
         whisper         the tokenizer that comes with a published Whisper; only the text can be set: the normaliser,
                         and whether it begins with a blank (``leading_space``)

Equal transcripts and settings give equal files, byte for byte.

python -m lowrank_speech.stages.lang --cfg '{"seed":1,"lang":{"kind":"char"}}' --cuts exp/corpus/babel/train.jsonl.gz
    --out exp/lang/chars --manifest exp/lang/chars/lang.json
"""

import argparse
import gzip
import json
import logging
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lowrank_speech import settings
from lowrank_speech.artefact import atomic, write_table, write_text
from lowrank_speech.errors import UserError
from lowrank_speech.lang import config as kinds
from lowrank_speech.lang.load import MANIFEST, TOKEN_FILES, unusable
from lowrank_speech.lang.normalise import UNKNOWN, Normaliser
from lowrank_speech.lang.tags import shown
from lowrank_speech.lang.tokens import CharTokens, PieceTokens, special_symbols
from lowrank_speech.settings import REQUIRED, Seed, key
from lowrank_speech.stages import common

log = logging.getLogger("lowrank_speech")

SHOWN = 50
"""Number of tags in the manifest, the most frequent first."""


@settings.settings
class Config:
    """The stage's slice."""

    seed: Seed = key(REQUIRED, "seed for training pieces")
    lang: dict[str, Any] = key(REQUIRED, "a section of `langs` without its corpora and splits (use --cuts)")


def add(parser: argparse.ArgumentParser) -> None:
    """Inputs and outputs."""
    parser.add_argument("--cuts", nargs="*", default=[], type=Path, metavar="FILE", help="input: cuts of the training")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="output: the folder")


def body(run: common.Run) -> None:
    """Read, normalise, count, write."""
    arguments, config = run.arguments, run.config
    lang = kinds.read(config.lang, "cfg.lang")
    if arguments.manifest.resolve() != (arguments.out / MANIFEST).resolve():
        raise UserError(f"--manifest: it must be {arguments.out / MANIFEST}, got {arguments.manifest}")
    if not arguments.cuts and lang.kind != "whisper":
        raise UserError(f"lang: kind {lang.kind} needs --cuts, the transcripts to make tokens from")
    transcripts = Transcripts(Normaliser(lang.normalise))
    # A file that is named twice counts once.
    for path in dict.fromkeys(arguments.cuts):
        transcripts.read(path)
    outputs = _reports(arguments.out, transcripts) if arguments.cuts else []
    numbers = {"kind": lang.kind, "for": getattr(lang, "for_", "seq2seq"), "normalise": lang.normalise.to_dict()}
    numbers |= {"leading_space": lang.leading_space} if lang.kind == "whisper" else {}
    numbers |= transcripts.numbers()
    if lang.kind != "whisper":
        transcripts.require(arguments.cuts)
        made, facts = _tokens(arguments.out, lang, transcripts, config.seed)
        outputs, numbers = [*made, *outputs], numbers | facts
    log.info("lang: %s", json.dumps({k: v for k, v in numbers.items() if k != "normalise"}, ensure_ascii=False))
    _remove_others(arguments.out, outputs)
    run.finish(outputs, numbers)


def _remove_others(out: Path, outputs: Iterable[Path]) -> None:
    """Remove the token file of another kind that an earlier run made here."""
    for name in filter(None, TOKEN_FILES.values()):
        if out / name not in set(outputs):
            (out / name).unlink(missing_ok=True)


class Transcripts:
    """Counts over the normalised transcripts of cuts."""

    def __init__(self, normaliser: Normaliser):
        self._normaliser = normaliser
        self.sentences: Counter[str] = Counter()
        self.languages: Counter[str] = Counter()
        self.unknown_tags: Counter[str] = Counter()
        self.set_aside: list[tuple[str, str, str]] = []

    def read(self, path: Path) -> None:
        """Add the utterances of a file of cuts."""
        for where, cut in read_cuts(path):
            supervisions = _supervisions(cut)
            if len(supervisions) != 1:
                raise UserError(
                    f"{where}: the cut {cut.get('id')} has {len(supervisions)} supervisions; expected one: make the "
                    f"cuts with the stage corpus, or with lhotse's trim_to_supervisions"
                )
            text, language = supervisions[0].get("text"), supervisions[0].get("language")
            if language is not None:
                self._language(language, f"{where}: the cut {cut.get('id')}")
            self.unknown_tags.update(self._normaliser.unknown_tags(text or "", language))
            reason = unusable(self._normaliser, text, language)
            if reason is None:
                self.sentences[self._normaliser(text, language)] += 1
            else:
                self.set_aside.append((str(cut.get("id")), reason, repr(text)))

    def _language(self, language: str, where: str) -> None:
        if language not in self.languages:
            try:
                special_symbols([language])
            except ValueError as error:
                raise UserError(f"{where}: {error}") from error
        self.languages[language] += 1

    def require(self, paths: Iterable[Path]) -> None:
        """Raise UserError if no transcript is left."""
        if not self.sentences:
            reasons = ", ".join(f"{n} x {reason}" for reason, n in self._reasons().items()) or "there was no cut"
            raise UserError(f"lang: no transcript is left in {', '.join(map(str, paths))}: {reasons}")

    def words(self) -> Counter[str]:
        """How often each word was said."""
        return _counted((word, n) for sentence, n in self.sentences.items() for word in sentence.split())

    def characters(self) -> Counter[str]:
        """How often each character was written, without blanks."""
        return _counted((c, n) for word, n in self.words().items() for c in word)

    def _reasons(self) -> dict[str, int]:
        return dict(sorted(Counter(reason for _, reason, _ in self.set_aside).items()))

    def numbers(self) -> dict[str, Any]:
        """The metrics for the manifest: languages, used utterances, words, and what was set aside."""
        words = self.words()
        return {
            "languages": sorted(self.languages),
            "utterances": self.sentences.total(),
            "sentences": len(self.sentences),
            "words": words.total(),
            "different_words": len(words),
            "unknown_tags": dict(sorted(self.unknown_tags.items(), key=lambda pair: (-pair[1], pair[0]))[:SHOWN]),
            "set_aside": self._reasons(),
        }


def _supervisions(cut: dict[str, Any]) -> list[dict[str, Any]]:
    """The supervisions of a cut as Lhotse writes it; a mixed cut has them in its tracks."""
    tracks = [track["cut"] for track in cut.get("tracks", [])]
    return [supervision for part in (cut, *tracks) for supervision in part.get("supervisions") or []]


def _counted(pairs: Iterable[tuple[str, int]]) -> Counter[str]:
    result: Counter[str] = Counter()
    for counted, n in pairs:
        result[counted] += n
    return result


def read_cuts(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield place (for messages) and cut (a dictionary) of a file of cuts; several times as fast as Lhotse."""
    common.existing(path, "--cuts")
    opener, number = (gzip.open if path.suffix == ".gz" else open), 0
    with opener(path, "rt", encoding="utf-8") as file:
        try:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    cut = json.loads(line)
                    if not isinstance(cut, dict):
                        raise ValueError(f"expected a cut, got {cut!r:.40}")
                    yield f"{path}, line {number}", cut
        except (ValueError, EOFError, OSError, zlib.error) as error:
            raise UserError(f"{path}, line {number}: cannot be read: {error}; make the cuts again") from error


def _reports(out: Path, transcripts: Transcripts) -> list[Path]:
    """Write words.txt and set_aside.tsv."""
    words, listed = out / "words.txt", out / "set_aside.tsv"
    write_text(words, "".join(f"{word} {n}\n" for word, n in sorted(transcripts.words().items())))
    write_table(listed, ("id", "reason", "detail"), sorted(transcripts.set_aside))
    if transcripts.unknown_tags:
        log.warning(
            "lang: the transcripts contain tags: %s; they count as words. Map or remove them with `normalise.tags`, "
            "such as tags: {'<*>': null, '[*]': null}",
            shown(transcripts.unknown_tags),
        )
    if transcripts.set_aside:
        log.warning("lang: %d utterances have no usable text; see %s", len(transcripts.set_aside), listed)
    return [words, listed]


def _tokens(
    out: Path, lang: kinds.Char | kinds.Pieces, transcripts: Transcripts, seed: int
) -> tuple[list[Path], dict[str, Any]]:
    """Write the token set; return the files and the metrics."""
    characters = transcripts.characters()
    rare = {c: n for c, n in sorted(characters.items()) if n < lang.min_count}
    if rare:
        log.warning(
            "lang: %d characters occur fewer than %d times and become <unk>: %s", len(rare), lang.min_count, rare
        )
    if UNKNOWN in characters:
        log.warning("lang: the transcripts contain U+FFFD %d times: their encoding is broken", characters[UNKNOWN])
    if len(rare) == len(characters):
        raise UserError(
            f"lang.min_count: {lang.min_count} leaves no character; none occurs more than {max(rare.values())} times"
        )
    languages = sorted(transcripts.languages) if lang.for_ == "seq2seq" else None
    if languages == []:
        raise UserError("lang: `for: seq2seq` needs languages, but no utterance has one; add them to the corpus")
    path = out / TOKEN_FILES[lang.kind]
    if lang.kind == "char":
        tokens = CharTokens.build(characters.keys() - rare.keys(), languages)
        write_text(path, tokens.table())
        made = [path]
    else:
        from lowrank_speech.lang.pieces import train_pieces

        # A blank replaces a rare character, which then has no piece, while the rest of its sentence still counts.
        blanks = str.maketrans(dict.fromkeys(rare, " "))
        sentences = (" ".join(sentence.translate(blanks).split()) for sentence in transcripts.sentences)
        model = train_pieces(filter(None, sentences), lang.vocab_size, lang.model_type, lang.byte_fallback, seed)
        tokens = PieceTokens(model, languages)
        with atomic(path) as temporary:
            temporary.write_bytes(model)
        made = [path, path.with_suffix(".vocab")]
        write_text(made[1], tokens.table())
    facts = {
        "unit": {"char": "character", "sentencepiece": "piece"}[lang.kind],
        "size": tokens.size,
        "special": tokens.special,
        "characters": dict(sorted(characters.items())),
        "rare": rare,
    }
    return made, facts


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage; returns the exit code."""
    return common.main("lang", __doc__, Config, add, body, argv)


if __name__ == "__main__":
    raise SystemExit(main())
