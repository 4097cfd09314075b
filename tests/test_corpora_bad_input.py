"""Odd and broken input of the layouts: links, names, encodings, permissions. One line for people, and nothing lost."""

import contextlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from corpus_layouts import LAYOUTS, SPLITS, Corpus, put, write
from lowrank_speech.corpora import registry
from lowrank_speech.corpora.common import Checks, SetAside
from lowrank_speech.corpora.delimited import read_rows
from lowrank_speech.corpora.layouts import name_id, segment_id
from lowrank_speech.corpora.validate import mark_duplicates, validate
from lowrank_speech.corpora.walking import audio_files
from lowrank_speech.errors import UserError
from test_corpora_layouts import make, run

TABLES = {".tsv", ".csv", ".txt", ".lab", ".json", ".stm", ".ctm", ".key", ".xml", ".TXT", ".TextGrid"}
NAMES = [name for name in LAYOUTS if not name.startswith("lhotse")]


def found(config: dict, split: str, out: Path) -> tuple[dict[str, str | None], dict[str, str]]:
    """(id -> text, id -> reason) of a split."""
    made = registry.read(config, "corpus")
    corpus = registry.module(made.kind)
    root = corpus.locate(made, None)
    items = mark_duplicates(corpus.read(made, split, root, out, 1, 2))
    results = list(validate(items, getattr(made, "checks", Checks()), 2))
    cuts = [result.cut for result in results if not isinstance(result, SetAside)]
    aside = {result.id: result.reason for result in results if isinstance(result, SetAside)}
    return {cut.id: cut.supervisions[0].text for cut in cuts}, aside


def tables(root: Path) -> list[Path]:
    """The text files of a corpus, without those in UTF-16."""
    listed = [path for path in root.rglob("*") if path.is_file() and path.suffix in TABLES]
    return [path for path in listed if not path.read_bytes().startswith((b"\xff\xfe", b"\xfe\xff"))]


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """Name -> the corpus, written once; tests that change it copy it."""
    root, known = tmp_path_factory.mktemp("corpora"), {}

    def get(name: str) -> Corpus:
        if name not in known:
            known[name] = make(name, root / name)
        return known[name]

    return get


def copied(corpus: Corpus, to: Path) -> Corpus:
    path = Path(corpus.config["path"])
    shutil.copytree(path, to)
    return corpus._replace(config={**corpus.config, "path": str(to)})


@pytest.mark.parametrize("name", LAYOUTS)
def test_links_and_relative_paths(name, corpora, tmp_path, monkeypatch):
    """A corpus folder that is a link, at a path relative to the working directory, with files that are links."""
    corpus = copied(corpora(name), tmp_path / "the real one")
    for path in sorted((tmp_path / "the real one").rglob("*.wav")):
        path.rename(path.with_suffix(".moved"))
        path.symlink_to(path.with_suffix(".moved").name)
    link = corpora(name).config["path"].rpartition("/")[2]  # the names of folders may tell the language
    (tmp_path / link).symlink_to(tmp_path / "the real one")
    monkeypatch.chdir(tmp_path)
    for split, texts in corpus.texts.items():
        said, aside = found({**corpus.config, "path": link}, split, tmp_path / "out" / split)
        assert said == texts
        # An absolute path within a copied table leads to the first copy.
        assert aside == corpus.aside[split]


@pytest.mark.parametrize("name", NAMES)
def test_windows_lines_and_byte_order_marks(name, corpora, tmp_path):
    corpus = copied(corpora(name), tmp_path / Path(corpora(name).config["path"]).name)
    for path in tables(Path(corpus.config["path"])):
        with contextlib.suppress(UnicodeDecodeError):  # the planted one
            text = path.read_bytes().decode("utf-8-sig")
            path.write_bytes(b"\xef\xbb\xbf" + text.replace("\r\n", "\n").replace("\n", "\r\n").encode())
    for split, texts in corpus.texts.items():
        assert found(corpus.config, split, tmp_path / split) == (texts, corpus.aside[split])


def listed(folder: Path) -> str:
    """The list of what a run set aside; empty if it stopped before."""
    path = folder / "out/train.set_aside.tsv"
    return path.read_text() if path.is_file() else ""


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("voxlingua107", "datasets_parquet")])
def test_latin_1(name, corpora, tmp_path, capfd):
    """The run stops with a line that names file and byte, or the utterances of the file are set aside."""
    corpus = copied(corpora(name), tmp_path / Path(corpora(name).config["path"]).name)
    [path, *_] = [p for p in tables(Path(corpus.config["path"])) if "train" in str(p) and p.suffix not in (".TXT",)]
    path.write_bytes(path.read_bytes() + "\ncaf\xe9 ja\xfcrt\n".encode("latin-1"))
    code = run(corpus.config, "train", tmp_path / "out")
    said = capfd.readouterr().err
    assert "Traceback" not in said
    if code == 0:
        assert str(path) in listed(tmp_path)
    else:
        assert code == 2 and (path.name in said.splitlines()[-1] or str(path) in listed(tmp_path))


# --- permissions


@contextlib.contextmanager
def unprivileged():
    """Root may read everything, so become nobody for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder():
    """A folder that everybody may enter; pytest's are private."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    for path in [folder, *folder.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o777)
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", LAYOUTS)
def test_folders_without_permission(name, corpora, open_folder):
    corpus = copied(corpora(name), open_folder / Path(corpora(name).config["path"]).name)
    root = Path(corpus.config["path"])
    root.chmod(0o000)
    with unprivileged(), pytest.raises(UserError, match=r"cannot be read: Permission denied; change"):
        found(corpus.config, "train", open_folder / "out")
    root.chmod(0o755)
    for path in (p for p in root.rglob("*") if p.is_dir()):
        path.chmod(0o000)
    with unprivileged():
        try:
            said, aside = found(corpus.config, "train", open_folder / "out")
        except UserError as error:
            assert str(root) in str(error)
        else:  # what is in no folder of its own can be read; the rest is listed
            assert {*said, *aside} >= corpus.texts["train"].keys()


# --- names


def test_ids_from_names():
    names = [
        "a b",
        "a%20b",
        "a\tb",
        "a\nb",
        "a%b",
        "日本",
        "-a/b",
        "/a",
        "a\u00a0b",
        "it's",
        'say "x"',
        "a\x00b",
        "Zoë",
    ]
    made = [name_id(name) for name in names]
    assert len(set(made)) == len(names)
    assert not any(c.isspace() or not c.isprintable() for name in made for c in name)
    assert made[0] == "a%20b" and made[5] == "日本" and made[6] == "-a/b" and made[9] == "it's"
    assert segment_id("a b", 1.2304, 61.0, "A", None) == "a%20b-A-00001230-00061000"


ODD = [
    "a b",
    "it's",
    'say "x"',
    "new\nline",
    "tab\there",
    "日本語",
    "Zoë",
    "-dash",
    "--option=1",
    "#hash",
    "$HOME",
    "100%",
]


def test_names_of_files_and_of_columns(tmp_path):
    """Every odd name of a file is found by folder, table and manifest, with one id for each."""
    for i, name in enumerate(ODD):
        put(tmp_path / "train" / "wav" / f"{name}.wav", i)
        write(tmp_path / "train" / "wav" / f"{name}.txt", "ab")
    rows = ['"' + f"wav/{name}.wav".replace('"', '""') + '",ab' for name in ODD]
    write(tmp_path / "train" / "train.csv", "path,sentence", *rows)
    lines = [json.dumps({"audio_filepath": f"wav/{name}.wav", "text": "ab"}) for name in ODD]
    write(tmp_path / "train" / "train.json", *lines)
    wanted = {f"wav/{name_id(name)}" for name in ODD}
    for config in (
        {"kind": "folder", "path": str(tmp_path), "splits": {"train": {"source": "train"}}},
        {"kind": "table", "path": str(tmp_path / "train"), "splits": {"train": {"source": "train.csv"}}},
        {"kind": "nemo", "path": str(tmp_path / "train"), "splits": {"train": {"source": "train.json"}}},
    ):
        said, aside = found({**config, "language": "en"}, "train", tmp_path / "out")
        assert said == dict.fromkeys(wanted, "ab") and not aside


def test_names_that_are_not_utf_8(tmp_path, capfd):
    put(tmp_path / "train/a.wav", 1)
    try:
        os.rename(os.fsencode(tmp_path / "train/a.wav"), os.fsencode(tmp_path / "train") + b"/caf\xe9.wav")
    except OSError:
        pytest.skip("the file system only has names in UTF-8")
    put(tmp_path / "train/b.wav", 2)
    config = {"kind": "folder", "path": str(tmp_path), "language": "en", "splits": {"train": {"source": "train"}}}
    assert run(config, "train", tmp_path / "out") == 0
    rows = (tmp_path / "out/train.set_aside.tsv").read_text().splitlines()[1:]
    assert len(rows) == 1 and "the name is not UTF-8; rename the file" in rows[0] and "caf" in rows[0]


def test_links_in_a_circle(tmp_path):
    put(tmp_path / "a/b/x.wav", 1)
    (tmp_path / "a/b/up").symlink_to(tmp_path / "a")
    (tmp_path / "a/gone.wav").symlink_to(tmp_path / "nowhere.wav")
    assert [str(p.relative_to(tmp_path)) for p in audio_files(tmp_path, "folder")] == ["a/b/x.wav", "a/gone.wav"]
    config = {"kind": "folder", "path": str(tmp_path), "language": "en", "splits": {"train": {"source": "a"}}}
    assert found(config, "train", tmp_path)[1] == {"gone": "missing file"}


# --- tables


CSV = {
    "comma": ("path,sentence", "a.wav,ab"),
    "semicolon": ("path;sentence", "a.wav;ab, cd"),
    "tab": ("path\tsentence, normalised", 'a.wav\t"ja" sagte er'),
    "bar": ("file|text", "a.wav|ab, cd; e"),
    "quoted tabs": ('"path"\t"sentence"', '"a.wav"\t"ab"'),
}


@pytest.mark.parametrize("name", CSV)
def test_delimiters(name, tmp_path):
    header, row = CSV[name]
    write(tmp_path / "t.csv", header, row)
    quotes = True if "quoted" in name else None
    names, rows = read_rows(tmp_path / "t.csv", "auto", quotes, lambda names: names[0] in ("path", "file"))
    assert len(names) == 2 and names[0] in ("path", "file")
    [found_row] = rows
    assert found_row.values[0] == "a.wav" and not found_row.fault


def test_quoted_records_agree_with_the_csv_module(tmp_path):
    """Any valid CSV, with line breaks, quotes and delimiters in its fields, reads as Python's reader reads it."""
    import csv

    import numpy as np

    rng = np.random.default_rng(5)
    letters = np.array(list('ab,";\n x'))
    rows = [["".join(rng.choice(letters, rng.integers(0, 7))) for _ in range(3)] for _ in range(200)]
    with (tmp_path / "t.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows([["path", "b", "c"], *rows])
    with (tmp_path / "t.csv").open(newline="") as file:
        expected = list(csv.reader(file))[1:]
    _, found_rows = read_rows(tmp_path / "t.csv", "comma", None, bool)

    def words(row: list[str]) -> list[list[str]]:
        return [field.split() for field in row]  # blank lines do not count

    assert [words(row.values) for row in found_rows] == [words(row) for row in expected]


def test_an_open_quote_costs_one_row(tmp_path):
    write(tmp_path / "t.csv", "path,text", 'a.wav,"open', *[f"b{i}.wav,ab" for i in range(500)])
    _, rows = read_rows(tmp_path / "t.csv", "auto", None, lambda names: "path" in names)
    assert [row.values[0] for row in rows] == ["a.wav", *(f"b{i}.wav" for i in range(500))]


REFUSED = {
    "path,file,text": r"the columns path and file could all be the audio; .*`columns: \{audio: path\}`",
    "path,text,sentence": r"the columns text and sentence could all be the text; .*`columns: \{text: text\}`",
    "path,words": r"no column has a usual name of the transcript; set `columns: \{text: ...\}` to one of path, words",
    "name,text": r"the delimiter of the header .* is not clear \(no column has a known name\)",
    "path,x;path": r"is not clear \(comma and semicolon are possible\)",
    "path,text,text": r"the columns text and text could all",
}


@pytest.mark.parametrize("header", REFUSED)
def test_headers_that_are_not_clear(header, tmp_path):
    write(tmp_path / "train.csv", header, "a.wav,ab")
    config = {"kind": "table", "path": str(tmp_path), "language": "en", "splits": {"train": {"source": "train.csv"}}}
    with pytest.raises(UserError, match=REFUSED[header]):
        found(config, "train", tmp_path)


def test_columns_by_name(tmp_path):
    put(tmp_path / "x.wav", 1)
    write(tmp_path / "train.csv", "path,clip,words,who,code,how long", "wrong,x.wav,ab,anna,DE,0.4")
    columns = {"audio": "clip", "text": "words", "speaker": "who", "language": "code", "seconds": "how long"}
    splits = {"train": {"source": "train.csv"}}
    config = {"kind": "table", "path": str(tmp_path), "splits": splits, "columns": columns, "delimiter": "comma"}
    assert found(config, "train", tmp_path) == ({"x": "ab"}, {})
    with pytest.raises(UserError, match=r"no column 'speaker' \(`columns.speaker`\); there are path, clip"):
        found({**config, "columns": {**columns, "speaker": "speaker"}}, "train", tmp_path)
    with pytest.raises(UserError, match="no column has a usual name of the language; set the corpus's key `language`"):
        found({**config, "columns": {**columns, "language": None}}, "train", tmp_path)


def test_speakers_that_are_not_named_give_a_warning(tmp_path, caplog):
    put(tmp_path / "x.wav", 1)
    write(tmp_path / "train.csv", "path,text", "x.wav,ab")
    config = {"kind": "table", "path": str(tmp_path), "language": "en", "splits": {"train": {"source": "train.csv"}}}
    found(config, "train", tmp_path)
    assert "every utterance counts as a speaker of its own" in caplog.text


def test_ids_that_occur_twice(tmp_path):
    put(tmp_path / "x.wav", 1)
    rows = ["u1,x.wav,ab", "u1,x.wav,ab"]
    write(tmp_path / "train.csv", "id,path,text", *rows)
    config = {"kind": "table", "path": str(tmp_path), "language": "en", "splits": {"train": {"source": "train.csv"}}}
    assert found(config, "train", tmp_path) == ({"u1": "ab"}, {"u1": "duplicate id"})
    write(tmp_path / "train.csv", "id,path,text", rows[0], "u1,x.wav,cd")
    with pytest.raises(
        UserError, match=r"train.csv lines 2 and 3: the id u1 occurs twice, with the values 'ab' and 'cd'"
    ):
        found(config, "train", tmp_path)


# --- what is not there

ABSENT = {
    "table": ("none.csv", "none.csv does not exist"),
    "commonvoice": ("none", "none.tsv exists; correct `source` or `path`"),
    "fleurs": ("none", "none.tsv exists; correct `source` or `path`"),
    "librispeech": ("none", r"the folder .*none does not exist .* has dev-clean, train-clean-5, train-other"),
    "mls": ("none", "none/transcripts.txt exists; correct `source` or `path`"),
    "voxlingua107": ("none", r"the folder .*none does not exist"),
    "lre": ("none.key", "none.key does not exist"),
    "atco2": ("none", r"the folder .*none does not exist .* has dev, train"),
    "folder": ("none", r"the folder .*none does not exist .* has dev, train"),
    "nemo": ("none.json", "none.json does not exist"),
    "long_stm": ("none.stm", r"the folder .*none.stm does not exist"),
    "lhotse_cuts": ("none", "is not a file, a Shar folder or the end of the name"),
    "datasets_saved": ("none", r"is not a folder, an Arrow or Parquet file, or a split .* there are dev, train"),
}


@pytest.mark.parametrize("name", ABSENT)
def test_sources_that_do_not_exist(name, corpora, tmp_path):
    source, message = ABSENT[name]
    config = corpora(name).config
    with pytest.raises(UserError, match=message):
        found({**config, "splits": {"train": {"source": source}}}, "train", tmp_path)
    with pytest.raises(UserError, match=r"the folder .*lost does not exist; set the corpus's key `path`"):
        found({**config, "path": str(tmp_path / "lost")}, "train", tmp_path)


@pytest.mark.parametrize("name", ["commonvoice", "fleurs", "voxlingua107", "mls"])
def test_languages_that_are_not_there(name, corpora, tmp_path):
    with pytest.raises(UserError, match=r"'xx'"):
        found({**corpora(name).config, "languages": ["xx"]}, "train", tmp_path)


def test_wrong_headers(tmp_path):
    write(tmp_path / "train.tsv", "path\ttext", "a\tb")
    (tmp_path / "clips").mkdir()
    with pytest.raises(UserError, match=r"the header has no column 'sentence'; expected .* The kind table reads"):
        found({"kind": "commonvoice", "path": str(tmp_path), "splits": {"train": SPLITS["train"]}}, "train", tmp_path)
    write(tmp_path / "x.key", "name\tvalue\tmore", "a\tb\tc")
    with pytest.raises(UserError, match="the header of this key is not known"):
        found({"kind": "lre", "path": str(tmp_path), "splits": {"train": {"source": "x.key"}}}, "train", tmp_path)
    write(tmp_path / "m.json", json.dumps({"audio_filepath": "a.tar/x.wav", "shard_id": 0, "text": "ab"}))
    with pytest.raises(UserError, match=r"a manifest of tar files \(`shard_id`\)"):
        config = {"kind": "nemo", "path": str(tmp_path), "language": "en", "splits": {"train": {"source": "m.json"}}}
        found(config, "train", tmp_path)


def test_damaged_manifests(corpora, tmp_path):
    corpus = copied(corpora("lhotse_cuts"), tmp_path / "x")
    path = tmp_path / "x" / "cuts_train.jsonl.gz"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"cuts_train.jsonl.gz: the manifest is damaged .* copy it again"):
        found(corpus.config, "train", tmp_path)
    from lhotse import AudioSource, MonoCut, Recording, SupervisionSegment

    recording = Recording("r", [AudioSource("command", [0], "rm -rf x | sox")], 16_000, 16_000, 1.0)
    cut = MonoCut("c", 0, 1, 0, [SupervisionSegment("s", "r", 0, 1)], recording=recording)
    path = write(tmp_path / "x" / "command.jsonl", json.dumps(cut.to_dict()))
    with pytest.raises(UserError, match=r"is a command \(rm -rf x \| sox\); commands inside data are refused"):
        found({**corpus.config, "splits": {"train": {"source": path.name}}}, "train", tmp_path)


def test_paths_that_start_elsewhere(corpora, tmp_path):
    corpus = copied(corpora("lhotse_cuts"), tmp_path / "x")
    (tmp_path / "x/wav").rename(tmp_path / "wav")
    said, aside = found(corpus.config, "dev", tmp_path / "out")
    assert not said and aside == {"dev-0": "missing file", "dev-1": "missing file"}
    config = {**corpus.config, "audio": str(tmp_path)}
    assert found(config, "dev", tmp_path / "out") == (corpus.texts["dev"], {})


def test_damaged_archives(corpora, tmp_path):
    corpus = copied(corpora("lhotse_shar"), tmp_path / "x")
    [archive] = (tmp_path / "x/train").glob("*.tar")
    archive.write_bytes(archive.read_bytes()[:900])
    with pytest.raises(UserError, match=r"not a readable Shar folder|the archives have no audio"):
        found(corpus.config, "train", tmp_path / "out")
    archive.unlink()
    with pytest.raises(UserError, match=r"not a Shar folder, .*found 1 and 0"):
        found(corpus.config, "train", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_arrow_files_hold_what_parquet_files_hold(corpora, tmp_path):
    """Both forms of Arrow, as `datasets` and others write them, with bytes of audio."""
    corpus = copied(corpora("datasets_parquet"), tmp_path / "x")
    import pyarrow as pa
    import pyarrow.parquet as parquet

    for i, path in enumerate(sorted((tmp_path / "x/data").iterdir())):
        table = parquet.read_table(path)
        with pa.OSFile(str(path.with_suffix(".arrow")), "wb") as file:
            writer = (pa.ipc.new_stream, pa.ipc.new_file)[i % 2]
            with writer(file, table.schema) as out:
                out.write_table(table)
        path.unlink()
    for split, texts in corpus.texts.items():
        assert found(corpus.config, split, tmp_path / "out" / split) == (texts, corpus.aside[split])


@pytest.mark.parametrize("limit", ["max_utterances", "max_seconds_per_language"])
def test_only_the_chosen_audio_is_written(limit, corpora, tmp_path):
    """A limit in seconds measures the stored audio, which no column declares."""
    splits = {"train": {"source": "train", "by": "utterance", limit: 1 if limit == "max_utterances" else 0.5}}
    said, aside = found({**corpora("datasets_parquet").config, "splits": splits}, "train", tmp_path / "out")
    names = [path.stem for path in (tmp_path / "out").iterdir()]
    chosen = [
        name for name in (*said, *aside) if name in ("train-000000003", *corpora("datasets_parquet").texts["train"])
    ]
    assert sorted(names) == sorted(name.removeprefix("train-") for name in chosen)
    assert len(names) == 1 if limit == "max_utterances" else len(said) == 2  # 0.4 s of each language


def test_damaged_parquet(corpora, tmp_path):
    corpus = copied(corpora("datasets_parquet"), tmp_path / "x")
    path = tmp_path / "x/data/train-00001-of-00002.parquet"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError, match=r"train-00001-of-00002.parquet: not a readable Arrow or Parquet file"):
        found(corpus.config, "train", tmp_path / "out")
    path.unlink()
    with pytest.raises(UserError, match=r"train-00001-of-00002.parquet does not exist, but .* does; copy the missing"):
        found(corpus.config, "train", tmp_path / "out")
