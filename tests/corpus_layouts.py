"""A small corpus in every layout, with rows that cannot be used: each function writes one, and tells what is in it."""

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile

RATE = 16_000
TEXTS = ("ab", "cd", "abc", "dab")
LANGUAGES = ("de", "en")


class Corpus(NamedTuple):
    """A corpus that was written, and what a reader must find in it."""

    config: dict[str, Any]
    texts: dict[str, dict[str, str | None]]
    """Split -> id -> text."""
    aside: dict[str, dict[str, str]]
    """Split -> id -> reason."""
    languages: frozenset[str] = frozenset({"en"})
    sources: frozenset[str] = frozenset()
    """Values of ``custom.source``."""


def wave(number: int, seconds: float = 0.4, rate: int = RATE) -> np.ndarray:
    """A tone with noise; another one for each number."""
    time = np.arange(round(seconds * rate)) / rate
    noise = 0.01 * np.random.default_rng(number).standard_normal(len(time))
    return 0.3 * np.sin(2 * np.pi * (300 + 50 * number) * time) + noise


def put(path: Path, number: int, **keys) -> Path:
    """Write an audio file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave(number, **keys), keys.get("rate", RATE))
    return path


def write(path: Path, *lines: str, end: str = "\n", encoding: str = "utf-8") -> Path:
    """Write lines of text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(line + end for line in lines).encode(encoding))
    return path


SPLITS = {"train": {"source": "train"}, "dev": {"source": "dev"}}


def _splits(pattern: str) -> dict[str, dict[str, str]]:
    return {split: {"source": pattern.format(split)} for split in SPLITS}


def table(root: Path) -> Corpus:
    """CSV, quoted, with CRLF and a byte order mark; a record over two lines, and one row that is not valid CSV."""
    for i in range(6):
        put(root / f"wav/a {i},x.wav", i)
    rows = ["Path,Sentence,client_id", '"wav/a 0,x.wav",ab,anna', '"wav/a 1,x.wav","cd\r\nab",bob']
    rows += ['"wav/a 2,x.wav","ab ""cd""",anna', '"wav/a 3,x.wav",dab,', '"wav/lost.wav",ab,bob', "wav/x.wav,ab"]
    rows += ['wav/nothing.wav,"ja" sagte er,bob', ",ab,bob"]
    write(root / "train.csv", *rows, end="\r\n", encoding="utf-8-sig")
    write(root / "dev.csv", "file;transcript;speaker", "wav/a 4,x.wav;cd;carl", "wav/a 5,x.wav;;carl")
    name = "wav/a%20{},x"
    texts = {
        "train": {name.format(0): "ab", name.format(1): "cd ab", name.format(2): 'ab "cd"'},
        "dev": {name.format(4): "cd", name.format(5): None},
    }
    aside = {name.format(3): "no speaker", "wav/lost": "missing file", "train.csv:8": "malformed row"}
    aside |= {"wav/nothing": "missing file", "train.csv:10": "no recording"}
    config = {"kind": "table", "path": str(root), "language": "en", "splits": _splits("{}.csv")}
    return Corpus(config, texts, {"train": aside, "dev": {}})


def commonvoice(root: Path) -> Corpus:
    """A release with two languages."""
    header = "client_id\tpath\tsentence\tup_votes\tgender\tlocale"
    for place, language in enumerate(LANGUAGES):
        for i in range(4):
            put(root / language / "clips" / f"cv_{language}_{i}.mp3", 10 * place + i)
        rows = [
            f"{language}{i}\tcv_{language}_{i}.mp3\t{'' if i else chr(34)}{TEXTS[i]}\t2\tfemale\t{language}"
            for i in range(4)
        ]
        broken = [
            f"x\tcv_{language}_lost.mp3\tab\t2\t\t{language}",
            f"x\tcv_{language}_x.mp3\tab",
            f"\tc{language}.mp3\tab\t1\t\tde",
        ]
        write(root / language / "train.tsv", header, *rows[:2], *broken)
        write(root / language / "dev.tsv", header, *rows[2:])
    texts = {
        split: {f"cv_{language}_{i}": f'"{TEXTS[i]}' if i == 0 else TEXTS[i] for language in LANGUAGES for i in numbers}
        for split, numbers in (("train", (0, 1)), ("dev", (2, 3)))
    }
    aside = {f"cv_{language}_lost": "missing file" for language in LANGUAGES}
    aside |= {f"{language}/train.tsv:5": "malformed row" for language in LANGUAGES}
    aside |= {f"c{language}": "no speaker" for language in LANGUAGES}
    config = {"kind": "commonvoice", "path": str(root), "splits": SPLITS}
    return Corpus(config, texts, {"train": aside, "dev": {}}, frozenset(LANGUAGES))


def fleurs(root: Path) -> Corpus:
    """Two languages in folders of FLEURS."""
    for place, language in enumerate(("de_de", "en_us")):
        for split, numbers in (("train", (0, 1)), ("dev", (2,))):
            rows = []
            for i in numbers:
                name = f"{place}{i}77"
                put(root / language / "audio" / split / f"{name}.wav", 10 * place + i)
                text = TEXTS[i]
                rows.append(f"{i}\t{name}.wav\t{text.title()}.\t{text}\t{' '.join(text)} |\t6400\tFEMALE")
            if split == "train":
                rows += [
                    f"7\t{place}8.wav\tA\ta\ta |\tmany\tMALE",
                    "8\tx.wav\tA",
                    f"9\t{place}9.wav\tA\ta\ta |\t16000\tMALE",
                ]
                put(root / language / "audio" / split / f"{place}9.wav", 9)
            write(root / language / f"{split}.tsv", *rows)
    texts = {
        "train": {f"{place}{i}77": TEXTS[i] for place in (0, 1) for i in (0, 1)},
        "dev": {f"{place}277": TEXTS[2] for place in (0, 1)},
    }
    aside = {f"{place}9": "wrong duration" for place in (0, 1)}
    aside |= {f"{language}/train.tsv:{line}": "malformed row" for language in ("de_de", "en_us") for line in (3, 4)}
    config = {"kind": "fleurs", "path": str(root), "splits": SPLITS}
    return Corpus(config, texts, {"train": aside, "dev": {}}, frozenset(LANGUAGES))


def librispeech(root: Path) -> Corpus:
    """Two training subsets, with a recording without transcript and a transcript without recording."""
    texts: dict[str, dict[str, str | None]] = {"train": {}, "dev": {}}
    for place, (subset, split) in enumerate(
        (("train-clean-5", "train"), ("train-other", "train"), ("dev-clean", "dev"))
    ):
        folder = root / subset / f"1{place}" / "7"
        lines = []
        for i in (0, 1):
            name = f"1{place}-7-000{i}"
            put(folder / f"{name}.flac", 10 * place + i)
            lines.append(f"{name} {TEXTS[i].upper()}")
            texts[split][name] = TEXTS[i].upper()
        write(folder / f"1{place}-7.trans.txt", *lines, *([f"1{place}-7-0009 LOST"] if split == "train" else []))
    put(root / "train-other/11/7/11-7-0005.flac", 77)
    texts["train"]["11-7-0005"] = None
    write(root / "SPEAKERS.TXT", ";ID  |SEX| SUBSET |MINUTES| NAME", "10 | F | train-clean-5 | 25.1 | A | B")
    config = {"kind": "librispeech", "path": str(root)}
    config["splits"] = {"train": {"source": "train-*"}, "dev": {"source": "dev-clean"}}
    aside = {f"1{place}-7-0009": "missing file" for place in (0, 1)}
    return Corpus(config, texts, {"train": aside, "dev": {}})


def mls(root: Path) -> Corpus:
    """One language, Opus."""
    root = root / "mls_german_opus"
    for split, numbers in (("train", (0, 1)), ("dev", (2,))):
        lines = []
        for i in numbers:
            path = root / split / "audio" / "4" / "5" / f"4_5_00{i}.opus"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, wave(i), RATE, format="OGG", subtype="OPUS")
            lines.append(f"4_5_00{i}\t{TEXTS[i]}")
        write(root / split / "transcripts.txt", *lines, *(["4_5_099\tab", "no tab here"] if split == "train" else []))
    texts = {"train": {"4_5_000": "ab", "4_5_001": "cd"}, "dev": {"4_5_002": "abc"}}
    aside = {"4_5_099": "missing file", "no%20tab%20here": "malformed row"}
    config = {"kind": "mls", "path": str(root), "splits": SPLITS}
    return Corpus(config, texts, {"train": aside, "dev": {}}, frozenset({"de"}))


def voxlingua107(root: Path) -> Corpus:
    """Two languages; no texts, and the video as the source."""
    texts: dict[str, dict[str, str | None]] = {"train": {}, "dev": {}}
    for place, language in enumerate(LANGUAGES):
        for split, base, numbers in (("train", root, (0, 1)), ("dev", root / "dev", (2,))):
            for i in numbers:
                name = f"-V{place}{i}video___U__S{i}---0001.000-0001.400"
                put(base / language / f"{name}.wav", 10 * place + i)
                texts[split][f"{language}/{name}"] = None
    (root / "German").mkdir()
    write(root / "de" / "broken.wav", "not audio")
    config = {"kind": "voxlingua107", "path": str(root), "splits": SPLITS}
    aside = {"German": "unknown language", "de/broken": "unreadable audio"}
    videos = frozenset(f"-V{place}{i}video_" for place in (0, 1) for i in range(3))
    return Corpus(config, texts, {"train": aside, "dev": {}}, frozenset(LANGUAGES), videos)


def lre(root: Path) -> Corpus:
    """A key with sources, as LRE22 has it."""
    rows = {"train": [], "dev": []}
    texts: dict[str, dict[str, str | None]] = {"train": {}, "dev": {}}
    for i in range(4):
        split, language = ("train", LANGUAGES[i % 2]) if i < 3 else ("dev", "de")
        put(root / "data" / split / f"lre_{i}.flac", i)
        rows[split].append(f"lre_{i}{'.flac' if i else ''}\t{language}\t{'mls' if i % 2 else 'vast'}")
        texts[split][f"lre_{i}{'.flac' if i else ''}"] = None
    rows["train"] += ["lre_8\ten\tmls", "lre_9\ten\tmls"]
    put(root / "data/x/lre_9.wav", 9)
    put(root / "data/y/lre_9.wav", 9)
    for split, lines in rows.items():
        write(root / "docs" / f"{split}.key", "segmentid\tlanguage_code\tdata_source", *lines)
    config = {"kind": "lre", "path": str(root), "audio": "data", "splits": _splits("docs/{}.key")}
    aside = {"lre_8": "missing file", "lre_9": "several files"}
    return Corpus(config, texts, {"train": aside, "dev": {}}, frozenset(LANGUAGES), frozenset({"mls", "vast"}))


def atco2(root: Path) -> Corpus:
    """Recordings with segments in XML."""

    def segment(start: float | str, end: float, text: str, correct: int = 1, foreign: int = 0) -> str:
        tags = f"<tags><correct>{correct}</correct><non_english>{foreign}</non_english></tags>"
        times = f"<start>{start}</start><end>{end}</end><speaker>A</speaker><speaker_label></speaker_label>"
        return f"<segment>{times}<text>{text}</text>{tags}</segment>"

    texts: dict[str, dict[str, str | None]] = {"train": {}, "dev": {}}
    for split in texts:
        name = f"LKPR_{split}"
        put(root / split / f"{name}.wav", 3, seconds=2.0)
        said = [segment(0, 0.5, "[#callsign]Abc(ab)[/#callsign] [hes]cd"), segment(0.6, 1.2, "[NE Czech]d[/NE] ab")]
        texts[split] = {f"{name}-A-00000000-00000500": "ab [hes] cd", f"{name}-A-00000600-00001200": "d ab"}
        if split == "train":
            said += [segment(1.2, 1.5, "ab", correct=0), segment(1.2, 1.6, "dobry den", foreign=1)]
            said += [segment("soon", 1.6, "ab"), segment(1.5, 9, "ab")]
        write(root / split / f"{name}.xml", '<?xml version="1.0" encoding="UTF-8"?>', "<data>", *said, "</data>")
    put(root / "train/LKPR_none.wav", 4)
    put(root / "train/LKPR_bad.wav", 4)
    write(root / "train/LKPR_bad.xml", "<data><segment>")
    aside = {
        "LKPR_train-A-00001200-00001500": "marked as incorrect",
        "LKPR_train-A-00001200-00001600": "not English",
        "LKPR_train-5": "malformed row",
        "LKPR_train-A-00001500-00009000": "segment outside recording",
        "LKPR_none": "no transcript",
        "LKPR_bad": "unreadable transcript",
    }
    return Corpus({"kind": "atco2", "path": str(root), "splits": SPLITS}, texts, {"train": aside, "dev": {}})


def folder(root: Path) -> Corpus:
    """Audio with text files; odd names."""
    names = {"train": ("-anna/a b", "-anna/it's 100%", "Zoë/日本\u00a0x", "top"), "dev": ("bob/1", "bob/2")}
    texts: dict[str, dict[str, str | None]] = {"train": {}, "dev": {}}
    ids = {"-anna/a b": "-anna/a%20b", "-anna/it's 100%": "-anna/it's%20100%25", "Zoë/日本\u00a0x": "Zoë/日本%C2%A0x"}
    for split, listed in names.items():
        for i, name in enumerate(listed):
            put(root / split / f"{name}.wav", i)
            lab = split == "dev"
            write(
                root / split / f"{name}{'.lab' if lab else '.txt'}", f"0 1000000 {TEXTS[i]}" if lab else TEXTS[i] + "\n"
            )
            texts[split][ids.get(name, name)] = TEXTS[i]
    put(root / "train/x/silent.wav", 0)
    soundfile.write(root / "train/x/silent.wav", np.zeros(8000), RATE)
    put(root / "train/x/latin.wav", 1)
    write(root / "train/x/latin.txt", "caf\xe9", encoding="latin-1")
    put(root / "train/x/both.wav", 1)
    write(root / "train/x/both.txt", "ab")
    write(root / "train/x/both.lab", "cd")
    write(root / "train/x/text.txt", "ab")
    put(root / "train/x/untold.wav", 8)
    texts["train"]["x/untold"] = None
    put(root / "train/top.flac", 9)
    aside = {"x/silent": "silent", "x/latin": "unreadable transcript", "x/both": "two transcripts"}
    aside |= {"x/text": "no recording", "top": "duplicate id"}
    config = {"kind": "folder", "path": str(root), "language": "en", "splits": SPLITS}
    return Corpus(config, texts, {"train": aside, "dev": {}})


def nemo(root: Path) -> Corpus:
    """JSON lines, with offsets."""
    put(root / "wav/long.wav", 0, seconds=2.0)
    put(root / "wav/b.wav", 1)
    rows = [
        {"audio_filepath": "wav/long.wav", "duration": 0.5, "offset": 0.0, "text": "ab", "lang": "en"},
        {"audio_filepath": "wav/long.wav", "duration": 0.5, "offset": 1.0, "text": "c\nd", "lang": "en"},
        {"audio_filepath": str(root / "wav/b.wav"), "duration": 0.4, "text": "ab", "lang": "de"},
        {"audio_filepath": "wav/long.wav", "duration": 0.5, "offset": 1.9, "text": "ab", "lang": "en"},
        {"audio_filepath": "wav/long.wav", "duration": "x", "offset": 1.5, "text": "ab", "lang": "en"},
        {"audio_filepath": "wav/b.wav", "duration": 3.0, "text": "ab", "lang": "de"},
        {"audio_filepath": "wav/none.wav", "duration": 3.0, "text": "ab", "lang": "de"},
    ]
    lines = [json.dumps(row) for row in rows]
    write(root / "train.json", *lines, "{broken", "[]")
    write(root / "dev.json", json.dumps(rows[2]))
    texts = {"train": {"wav/long-00000000-00000500": "ab", "wav/long-00001000-00001500": "c d", "b": "ab"}}
    texts["dev"] = {"b": "ab"}
    aside = {
        "wav/long-00001900-00002400": "segment outside recording",
        "wav/long": "malformed row",
        "wav/b": "wrong duration",
        "wav/none": "missing file",
        "train.json:8": "malformed row",
        "train.json:9": "malformed row",
    }
    config = {"kind": "nemo", "path": str(root), "splits": _splits("{}.json")}
    return Corpus(config, texts, {"train": aside, "dev": {}}, frozenset(LANGUAGES))


def long_stm(root: Path) -> Corpus:
    """STM: two channels, in which other things are said."""
    root.mkdir(parents=True, exist_ok=True)
    soundfile.write(root / "talk.wav", np.stack([wave(1, 2.0), wave(7, 2.0)], 1), RATE)
    put(root / "mono.sph.wav", 2, seconds=1.0)
    rows = [";; comment", "talk A anna 0.0 0.5 <o,f0,female> ab", "talk B bob 0.0 0.5 cd", "talk 1 anna 0.5 1.0 abc"]
    rows += ["talk C carl 0.0 0.5 ab", "talk A anna 1.5 9.0 ab", "talk A anna late 9 ab", "other 1 x 0 1 ab", "talk A"]
    rows += ["talk A x 1.0 1.4 ignore_time_segment_in_scoring", "talk A x 1.4 1.2 ab"]
    write(root / "train.stm", *rows)
    write(root / "dev.stm", "mono.sph 1 7 0.1 0.9 dab")
    texts = {
        "train": {
            "talk-A-anna-00000000-00000500": "ab",
            "talk-B-bob-00000000-00000500": "cd",
            "talk-1-anna-00000500-00001000": "abc",
        },
        "dev": {"mono.sph-1-7-00000100-00000900": "dab"},
    }
    aside = {
        "talk-C-carl-00000000-00000500": "no such channel",
        "talk-A-anna-00001500-00009000": "segment outside recording",
        "train.stm:7": "malformed row",
        "other-1-x-00000000-00001000": "missing file",
        "train.stm:9": "malformed row",
        "talk-10": "ignored segment",
        "talk-A-x-00001400-00001200": "malformed row",
    }
    config = {"kind": "long", "path": str(root), "language": "en", "splits": _splits("{}.stm")}
    return Corpus(config, texts, {"train": aside, "dev": {}})


def long_ctm(root: Path) -> Corpus:
    """CTM: words with times."""
    put(root / "a.wav", 1, seconds=3.0)
    write(root / "train.ctm", "a 1 0.0 0.2 ab 0.9", "a 1 0.3 0.2 cd", "a 1 1.5 0.3 ab", "a 1 2.9 x ab", "a 1")
    write(root / "dev.ctm", "a 1 1.0 0.4 dab")
    texts = {
        "train": {"a-1-00000000-00000500": "ab cd", "a-1-00001500-00001800": "ab"},
        "dev": {"a-1-00001000-00001400": "dab"},
    }
    config = {"kind": "long", "path": str(root), "language": "en", "splits": _splits("{}.ctm")}
    return Corpus(config, texts, {"train": {"train.ctm:4": "malformed row", "train.ctm:5": "malformed row"}, "dev": {}})


def long_textgrid(root: Path) -> Corpus:
    """TextGrid: the long form, and the short one in UTF-16."""
    long = [
        'File type = "ooTextFile"',
        'Object class = "TextGrid"',
        "",
        "xmin = 0",
        "xmax = 1",
        "tiers? <exists>",
        "size = 2",
    ]
    long += ["item []:", "  item [1]:", '    class = "TextTier"', '    name = "marks"', "    xmin = 0", "    xmax = 1"]
    long += ["    points: size = 1", "    points [1]:", "      number = 0.5", '      mark = "x"']
    long += ["  item [2]:", '    class = "IntervalTier"', '    name = "words 1"', "    xmin = 0", "    xmax = 1"]
    long += [
        "    intervals: size = 2",
        "    intervals [1]:",
        "      xmin = 0",
        "      xmax = 0.4",
        '      text = "a ""b"""',
    ]
    long += ["    intervals [2]:", "      xmin = 0.4", "      xmax = 1", '      text = ""']
    write(root / "train" / "one.TextGrid", *long)
    short = [
        'File type = "ooTextFile"',
        'Object class = "TextGrid"',
        "",
        "0",
        "1",
        "<exists>",
        "1",
        '"IntervalTier"',
        '"t"',
    ]
    write(root / "dev" / "two.TextGrid", *short, "0", "1", "1", "0.1", "0.9", '"cä"', encoding="utf-16")
    write(root / "train" / "three.TextGrid", *short, "0", "1", "3", "0.1")
    for i, name in enumerate(("one", "two", "three")):
        put(root / "wav" / f"{name}.wav", i, seconds=1.0)
    texts = {"train": {"one-00000000-00000400": 'a "b"'}, "dev": {"two-00000100-00000900": "cä"}}
    config = {"kind": "long", "path": str(root), "language": "en", "audio": "wav", "splits": SPLITS}
    return Corpus(config, texts, {"train": {"three": "unreadable transcript"}, "dev": {}})


def _cuts(root: Path) -> dict[str, list]:
    from lhotse import MonoCut, Recording, SupervisionSegment

    found = {}
    for place, split in enumerate(SPLITS):
        path = put(root / "wav" / f"{split}.wav", place, seconds=2.0)
        recording = Recording.from_file(path)
        said = [
            SupervisionSegment(f"{split}-{i}", recording.id, 0.8 * i, 0.6, text=TEXTS[i], speaker=f"s{i}")
            for i in (0, 1)
        ]
        found[split] = [MonoCut(f"{split}-cut", 0.1, 1.8, 0, said, recording=recording)]
    return found


def _lhotse(root: Path, aside: dict[str, str], splits: dict[str, Any]) -> Corpus:
    texts = {split: {f"{split}-{i}": TEXTS[i] for i in (0, 1)} for split in SPLITS}
    config = {"kind": "lhotse", "path": str(root), "language": "en", "splits": splits}
    return Corpus(config, texts, {"train": aside, "dev": {}})


def lhotse_cuts(root: Path) -> Corpus:
    """Cuts with two supervisions each, relative paths, and cuts that cannot be used."""
    for split, cuts in _cuts(root).items():
        rows = [cut.to_dict() for cut in cuts]
        for row in rows:
            row["recording"]["sources"][0]["source"] = f"wav/{split}.wav"
        if split == "train":
            alone = {"start": 0, "duration": 1.0, "channel": 0, "supervisions": [], "type": "MonoCut"}
            features = {
                "type": "fbank",
                "num_frames": 100,
                "num_features": 80,
                "frame_shift": 0.01,
                "sampling_rate": 16000,
            }
            features |= {
                "start": 0,
                "duration": 1.0,
                "storage_type": "lilcom_chunky",
                "storage_path": "x",
                "storage_key": "0",
            }
            features |= {"recording_id": "r", "channels": 0}
            rows += [{**alone, "id": "features", "features": features}, {**rows[0], "id": "mute", "supervisions": []}]
            late = {**rows[0]["supervisions"][0], "id": "late", "start": 1.7, "duration": 3.0}
            url = {**rows[0]["recording"], "sources": [{"type": "url", "channels": [0], "source": "https://x/y.wav"}]}
            rows += [
                {**rows[0], "id": "c2", "supervisions": [late]},
                {**rows[0], "id": "far", "recording": url},
                {"id": "odd"},
            ]
        lines = [json.dumps(row) for row in rows] + (["{"] if split == "train" else [])
        (root / f"cuts_{split}.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    aside = {"features": "no recording", "mute": "no supervision", "late": "segment outside recording"}
    aside |= {"far": "not a file", "odd": "malformed row", "cuts_train.jsonl.gz:7": "malformed row"}
    return _lhotse(root, aside, SPLITS)


def lhotse_pair(root: Path) -> Corpus:
    """Recordings and supervisions, as `lhotse prepare` writes them."""
    from lhotse import RecordingSet, SupervisionSegment, SupervisionSet

    for split, [cut] in _cuts(root).items():
        said = [s.with_offset(cut.start) for s in cut.supervisions]
        recordings = [cut.recording]
        if split == "train":
            said.append(SupervisionSegment("lost", "nowhere", 0, 1, text="ab"))
            other = put(root / "wav" / "other.wav", 5)
            from lhotse import Recording

            recordings.append(Recording.from_file(other))
        RecordingSet.from_recordings(recordings).to_file(root / f"mine_recordings_{split}.jsonl.gz")
        SupervisionSet.from_segments(said).to_file(root / f"mine_supervisions_{split}.jsonl.gz")
    return _lhotse(root, {"lost": "no recording", "other": "no supervision"}, SPLITS)


def lhotse_shar(root: Path) -> Corpus:
    """Shar folders, whose audio is in archives."""
    from lhotse import CutSet

    for split, cuts in _cuts(root).items():
        (root / split).mkdir()
        CutSet.from_cuts(cuts).to_shar(root / split, fields={"recording": "flac"}, shard_size=1)
    return _lhotse(root, {}, SPLITS)


def datasets_parquet(root: Path) -> Corpus:
    """Parquet with bytes: two shards, classes for languages, and rows without audio."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    audio = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    info = {"features": {"lang": {"names": ["de", "en"], "_type": "ClassLabel"}}}
    schema = pa.schema([("audio", audio), ("sentence", pa.string()), ("lang", pa.int64()), ("speaker_id", pa.int32())])
    schema = schema.with_metadata({"huggingface": json.dumps({"info": info})})
    rows = [
        {"audio": {"bytes": _flac(i), "path": "audio.flac"}, "sentence": TEXTS[i], "lang": i % 2, "speaker_id": i}
        for i in range(4)
    ]
    bad = {"audio": {"bytes": b"nonsense", "path": None}, "sentence": "ab", "lang": 1, "speaker_id": 3}
    lost = {"audio": {"bytes": None, "path": "gone.wav"}, "sentence": "ab", "lang": 1, "speaker_id": 3}
    none = {"audio": None, "sentence": "ab", "lang": None, "speaker_id": 3}
    files = {
        "train-00000-of-00002": rows[:1],
        "train-00001-of-00002": [*rows[1:3], bad, lost, none],
        "dev-00000-of-00001": rows[3:],
    }
    (root / "data").mkdir(parents=True)
    for name, held in files.items():
        parquet.write_table(pa.Table.from_pylist(held, schema=schema), root / "data" / f"{name}.parquet")
    texts = {"train": {f"train-{i:09d}": TEXTS[i] for i in range(3)}, "dev": {"audio": "dab"}}
    aside = {"train-000000003": "unreadable audio", "gone": "missing file", "train-000000005": "no language"}
    config = {"kind": "datasets", "path": str(root), "splits": SPLITS}
    return Corpus(config, texts, {"train": aside, "dev": {}}, frozenset(LANGUAGES))


def datasets_saved(root: Path) -> Corpus:
    """Arrow files of ``save_to_disk``, with paths of audio."""
    import pyarrow as pa

    for split, numbers in (("train", (0, 1)), ("dev", (2,))):
        rows = [{"path": f"wav/{i}.wav", "text": TEXTS[i]} for i in numbers]
        for i in numbers:
            put(root / "wav" / f"{i}.wav", i)
        if split == "train":
            rows += [{"path": "wav/none.wav", "text": "ab"}, {"path": None, "text": "ab"}]
        made = pa.Table.from_pylist(rows)
        (root / split).mkdir()
        with (
            pa.OSFile(str(root / split / "data-00000-of-00001.arrow"), "wb") as file,
            pa.ipc.new_stream(file, made.schema) as out,
        ):
            out.write_table(made)
        state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": split}
        write(root / split / "state.json", json.dumps(state))
    write(root / "dataset_dict.json", json.dumps({"splits": list(SPLITS)}))
    texts = {"train": {"wav/0": "ab", "wav/1": "cd"}, "dev": {"wav/2": "abc"}}
    config = {"kind": "datasets", "path": str(root), "language": "en", "splits": SPLITS}
    row = "data-00000-of-00001.arrow:3"
    return Corpus(config, texts, {"train": {"wav/none": "missing file", row: "no recording"}, "dev": {}})


def _flac(number: int) -> bytes:
    held = io.BytesIO()
    soundfile.write(held, wave(number), RATE, format="FLAC")
    return held.getvalue()


LAYOUTS: dict[str, Callable[[Path], Corpus]] = {
    made.__name__: made
    for made in (
        *(table, commonvoice, fleurs, librispeech, mls, voxlingua107, lre, atco2, folder, nemo),
        *(long_stm, long_ctm, long_textgrid, lhotse_cuts, lhotse_pair, lhotse_shar, datasets_parquet, datasets_saved),
    )
}
PYARROW = ("datasets_parquet", "datasets_saved")
