"""Look at a corpus and a base, to write a first config for them: kind, splits, languages, transcripts, family.

Opens tables, no audio.
"""

import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowrank_speech import published
from lowrank_speech.corpora import kaldi, registry, tsv
from lowrank_speech.corpora.common import SetAside, Utterance, read_lines
from lowrank_speech.corpora.detect import candidates
from lowrank_speech.errors import UserError
from lowrank_speech.factorising.speech import SUFFIXES
from lowrank_speech.models.registry import FAMILIES, family_of

ROLES = {
    "train": re.compile(r"(?i)(.*[^a-z])?train(ing)?([^a-z].*)?"),
    "dev": re.compile(r"(?i)(.*[^a-z])?(dev(el(opment)?)?|valid(ation)?|cv)([^a-z].*)?"),
    "test": re.compile(r"(?i)(.*[^a-z])?(test|eval(uation)?)([^a-z].*)?"),
}
FEW = 10
"""With fewer speakers in a language, a split by speaker may leave a part without any."""


@dataclass(frozen=True)
class Corpus:
    """What was found. ``sources``: role (train, dev, test) -> data directory or table, at least ``train``."""

    kind: str
    path: Path
    sources: Mapping[str, str]
    languages: tuple[str, ...]
    given_language: str | None
    speakers: int
    """The smallest number of speakers of a language in the training source."""
    utterances: int
    transcribed: int
    one_case: bool
    """Whether the transcripts are in one case, without punctuation."""
    section: Mapping[str, Any] | None = None
    """The whole section of the config, for kinds other than Kaldi directories and tables."""

    @property
    def by(self) -> str:
        """How to divide a source: by speaker if there are enough of them."""
        return "speaker" if self.speakers >= FEW else "utterance"


def corpus(path: Path, language: str | None, kind: str | None = None) -> Corpus:
    """The corpus at ``path``: Kaldi data directories, tables, or a published layout (``corpora.detect``).

    ``language``: of utterances of which none is known; ``kind``: if several fit. UserError: no kind fits, or there is
    no utterance.
    """
    if not path.exists():
        raise UserError(f"--corpus: {path} does not exist; {_TAKES}")
    if path.is_file():
        if path.suffix.lower() != ".tsv":
            raise UserError(f"--corpus: {path} is not a tab-separated table (.tsv); {_TAKES}")
        return _read("tsv", path.parent, [path.name], language)
    if (path / "wav.scp").is_file():
        return _read("kaldi", path.parent, [path.name], language)
    if kind not in (None, "kaldi", "tsv"):
        return _layout(path, language, kind)
    if directories := sorted(file.parent.name for file in path.glob("*/wav.scp")):
        return _read("kaldi", path, directories, language)
    tables = sorted(file.name for file in path.glob("*.tsv") if _has_header(file))
    if tables:
        return _read("tsv", path, tables, language)
    if found := candidates(path):
        if len(found) > 1:
            kinds = ", ".join(one.kind for one in found)
            raise UserError(f"--corpus: several kinds fit {path}: {kinds}; add --kind with one of them")
        return _layout(path, language, found[0].kind)
    if any(file.suffix.lower() in SUFFIXES for file in path.rglob("*")):
        raise UserError(
            f"--corpus: {path} has audio, but no table; write one (tab-separated: id, audio, language, speaker, text; "
            f"see docs/your-data.md)"
        )
    raise UserError(f"--corpus: {path} has neither data directories (wav.scp) nor tables; {_TAKES}")


_TAKES = "give a folder with Kaldi data directories, tables or a published corpus, or one table (docs/your-data.md)"


def _has_header(file: Path) -> bool:
    _, first = next(read_lines(file), (0, ""))
    return {"id", "audio"} <= set(first.split("\t"))


def _read(kind: str, root: Path, names: list[str], language: str | None) -> Corpus:
    sources = _roles(names, root)
    first = sources["train"]
    items: Iterable[Utterance | SetAside]
    if kind == "kaldi":
        if language is None and not (root / first / "utt2lang").is_file():
            raise UserError(f"{root / first} has no utt2lang; name its language, for example --language en")
        items = kaldi.read_directory(root, first, language)
    else:
        items = tsv.read_table(root, first, _columns(root / first), set())
    found = [item for item in items if isinstance(item, Utterance)]
    if not found:
        raise UserError(f"{root / first} has no utterance that can be used; see docs/your-data.md")
    speakers: dict[str, set[str]] = {}
    for utterance in found:
        speakers.setdefault(utterance.language or "", set()).add(utterance.speaker or "")
    texts = [utterance.text for utterance in found if utterance.text]
    return Corpus(
        kind,
        root,
        sources,
        tuple(sorted(speakers)),
        language if kind == "kaldi" else None,
        min(map(len, speakers.values())),
        len(found),
        len(texts),
        _one_case(texts),
    )


def _layout(path: Path, language: str | None, kind: str) -> Corpus:
    """A corpus of a kind that ``corpora.detect`` knows. Reads its training split, but opens no audio."""
    known = {one.kind: one for one in candidates(path)}
    if kind not in known:
        fit = f"those that fit: {', '.join(known)}" if known else "none fits"
        raise UserError(f"--kind: {path} is not of the kind {kind}; {fit} (docs/your-data.md)")
    section, missing = dict(known[kind].keys), known[kind].missing
    if "language" in missing and language is not None:
        section["language"] = language
        missing = tuple(name for name in missing if name != "language")
    if missing:
        what = "name it, for example --language en" if missing == ("language",) else "write the config by hand"
        raise UserError(f"--corpus: {path} ({kind}) does not tell its {', '.join(missing)}; {what} (docs/your-data.md)")
    if "train" not in section.get("splits", {}):
        raise UserError(
            f"--corpus: {path} ({kind}) has no part for training; write the config by hand (docs/your-data.md)"
        )
    module, config = registry.module(kind), registry.read(section, "--corpus")
    with tempfile.TemporaryDirectory() as folder:
        items = module.read(config, "train", module.locate(config, None), Path(folder), 1)
        facts = [_facts(item) for item in items if not isinstance(item, SetAside)]
    if not facts:
        raise UserError(f"{path} has no utterance that can be used; see docs/your-data.md")
    languages = {one or "" for one, _, _ in facts}
    texts = [text for _, _, text in facts if text]
    speakers = min(len({speaker for one, speaker, _ in facts if (one or "") == name}) for name in languages)
    sources = {split: str(keys.get("source", split)) for split, keys in section["splits"].items()}
    return Corpus(
        *(kind, path, sources, tuple(sorted(languages)), None, speakers, len(facts), len(texts), _one_case(texts)),
        section=section,
    )


def _facts(item: Any) -> tuple[str | None, str | None, str | None]:
    """Language, speaker and transcript of an utterance, or of a cut that a reader made."""
    if isinstance(item, Utterance):
        return item.language, item.speaker, item.text
    supervision = item.supervisions[0] if item.supervisions else None
    return (supervision.language, supervision.speaker, supervision.text) if supervision else (None, None, None)


def _columns(table: Path) -> tsv.Columns:
    """The table's columns; a table without transcripts has none for them."""
    _, first = next(read_lines(table), (0, ""))
    return tsv.Columns() if "text" in first.split("\t") else tsv.Columns(text=None)


def _roles(names: list[str], root: Path) -> dict[str, str]:
    """Which of the directories or tables are for training, development and test, by their names."""
    if len(names) == 1:
        return {"train": names[0]}
    found: dict[str, str] = {}
    for role, pattern in ROLES.items():
        matching = [name for name in names if pattern.fullmatch(Path(name).stem)]
        if matching:
            found[role] = min(matching, key=lambda name: (len(name), name))
    if "train" not in found:
        raise UserError(f"{root} has {', '.join(names)}: none is called train; give the one for training as --corpus")
    return found


def _one_case(texts: list[str]) -> bool:
    """Whether nearly all texts are in one case and without punctuation, unlike what Whisper writes."""
    if not texts:
        return False
    plain = Counter(text.upper() == text or text.lower() == text for text in texts[:1000])
    return plain[True] > 0.9 * sum(plain.values())


def family(base: str, named: str | None) -> str:
    """The family of a base: from its config.json if it is a folder, else from its name. UserError: it is not known."""
    if named is not None:
        return named
    folder = published.local(base)
    file = folder / "config.json"
    if folder.is_dir():
        if not file.is_file():
            raise UserError(f"--base: {folder} has no config.json; give the folder of a model, or a hub name")
        try:
            return family_of(json.loads(file.read_text(encoding="utf-8")).get("model_type"), str(file))
        except (ValueError, AttributeError) as error:
            raise UserError(f"--base: {file} is not the config of a model: {error}") from error
    if published.is_name(base):
        raise UserError(f"--base: {published.missing(base)}")
    if base.count("/") != 1 or base.startswith(("/", ".", "~")):
        raise UserError(f"--base: {base} does not exist; give a model folder, or a hub name (owner/name)")
    for name, words in _WORDS.items():
        if any(word in base.lower() for word in words):
            return name
    raise UserError(f"--base: the name {base} does not tell the family; add --family {'|'.join(FAMILIES)}")


_WORDS = {
    "whisper": ("whisper",),
    "w2v-bert": ("w2v-bert", "w2vbert", "wav2vec2-bert"),
    "wav2vec2": ("wav2vec2", "xls-r", "xlsr", "mms", "hubert", "wavlm", "data2vec"),
}
"""Family -> words in the hub names of its models; the first match counts."""
