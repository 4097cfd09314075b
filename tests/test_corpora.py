"""The readers of digits, Kaldi directories and tables, on small folders made here and on the real corpora."""

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from lowrank_speech.corpora import digits, kaldi, registry, tsv
from lowrank_speech.corpora.common import Checks, SetAside, Utterance, find_folder
from lowrank_speech.corpora.parts import SplitConfig, check_splits, select
from lowrank_speech.corpora.validate import Accepted, mark_duplicates, validate
from lowrank_speech.errors import UserError

NOWHERE = Path("unused")


def config(**keys):
    return registry.read(keys, "corpus")


def read(cfg, root, seed=1):
    """(split, item) of all splits, each read by itself, as the stage does."""
    corpus = registry.module(cfg.kind)
    return [(split, item) for split in cfg.splits for item in corpus.read(cfg, split, Path(root), NOWHERE, seed, 2)]


def checked(items):
    """What validate makes of (split, item)."""
    return list(validate(mark_duplicates(item for _, item in items), Checks(), 2))


def ids(items, split):
    return [item.id for name, item in items if name == split and not isinstance(item, SetAside)]


def aside(items):
    return {item.id: item.reason for _, item in items if isinstance(item, SetAside)}


# --- folders and kinds


def test_folder_by_path_and_below_the_data_root(tmp_path, monkeypatch):
    (tmp_path / "voices").mkdir()
    assert find_folder("tsv", None, tmp_path, "voices", "x") == tmp_path / "voices"
    assert find_folder("tsv", str(tmp_path), Path("/nonexistent"), "voices", "x") == tmp_path
    monkeypatch.chdir(tmp_path)
    assert find_folder("tsv", "voices", None, "other", "x") == tmp_path / "voices"
    with pytest.raises(UserError, match=r"SPEECH_DATA is not set.*must contain tables"):
        find_folder("tsv", None, None, "voices", "tables")
    with pytest.raises(UserError, match=r"the folder .*lost does not exist.*`path`.*SPEECH_DATA.*must contain tables"):
        find_folder("tsv", None, tmp_path, "lost", "tables")


def test_unknown_kind():
    with pytest.raises(UserError, match=r"unknown kind 'zip'; expected one of: atco2, .*espeak, .*kaldi, .*tsv"):
        registry.module("zip")


# --- parts


def people(speakers: int, each: int, language: str = "en") -> list[Utterance]:
    return [
        Utterance(f"{language}{s}-{i}", "a", language, f"{language}{s}", seconds=2.0)
        for s in range(speakers)
        for i in range(each)
    ]


@pytest.mark.parametrize("by", ["speaker", "utterance"])
@pytest.mark.parametrize("bounds", [(0.0, 0.9, 1.0), (0.0, 0.33, 0.5, 1.0), (0.0, 0.05, 1.0)])
def test_parts_cover_everything_once(by, bounds):
    utterances = people(11, 3) + people(4, 7, "de")
    parts = [select(utterances, SplitConfig("x", (low, high), by), 1) for low, high in itertools.pairwise(bounds)]
    assert sorted(u.id for part in parts for u in part) == sorted(u.id for u in utterances)
    if by == "speaker":
        assert sum(len({u.speaker for u in part}) for part in parts) == 15
    position = {u.id: i for i, u in enumerate(utterances)}
    for part in parts:
        order = [position[u.id] for u in part]
        assert order == sorted(order)


def test_parts_are_cut_in_each_language():
    utterances = people(10, 2) + people(10, 2, "de")
    part = select(utterances, SplitConfig("x", (0.0, 0.3)), 5)
    assert Counter(u.language for u in part) == {"en": 6, "de": 6}


def test_parts_follow_the_seed_and_nothing_else():
    utterances = people(30, 2)
    split = SplitConfig("x", (0.0, 0.5))
    first = {u.id for u in select(utterances, split, 1)}
    assert {u.id for u in select(utterances[::-1], split, 1)} == first
    assert {u.id for u in select(utterances, split, 2)} != first
    more = [*utterances, Utterance("new", "a", "en", utterances[0].speaker)]
    assert {u.id for u in select(more, split, 1)} - {"new"} == first


def test_a_speaker_of_two_languages_stands_in_one_part():
    utterances = people(6, 2) + [Utterance(f"de-{u.id}", "a", "de", u.speaker) for u in people(6, 2)]
    parts = [select(utterances, SplitConfig("x", part), 1) for part in [(0.0, 0.5), (0.5, 1.0)]]
    assert not {u.speaker for u in parts[0]} & {u.speaker for u in parts[1]}


def test_limits_grow_into_supersets():
    utterances = people(5, 8) + people(5, 8, "de")
    sizes = [5, 17, 80, 200]
    chosen = [{u.id for u in select(utterances, SplitConfig("x", max_utterances=n), 1)} for n in sizes]
    assert [len(c) for c in chosen] == [5, 17, 80, 80]
    assert chosen[0] < chosen[1] < chosen[2]
    limited = select(utterances, SplitConfig("x", max_seconds_per_language=9.0), 1)
    assert Counter(u.language for u in limited) == {"en": 4, "de": 4}
    assert {u.id for u in limited} < {
        u.id for u in select(utterances, SplitConfig("x", max_seconds_per_language=20), 1)
    }


def test_overlapping_parts_are_refused():
    check_splits({"a": SplitConfig("x", (0.0, 0.5)), "b": SplitConfig("x", (0.5, 1.0)), "c": SplitConfig("y")})
    with pytest.raises(ValueError, match="a and b overlap"):
        check_splits({"a": SplitConfig("x"), "b": SplitConfig("x", (0.9, 1.0))})
    with pytest.raises(ValueError, match="a and b overlap"):  # the same folder, written in two ways
        check_splits({"a": SplitConfig("x/"), "b": SplitConfig("./x", (0.9, 1.0))})
    with pytest.raises(ValueError, match="give both the same `by`"):
        check_splits({"a": SplitConfig("x", (0.0, 0.5)), "b": SplitConfig("x", (0.5, 1.0), "utterance")})
    with pytest.raises(UserError, match=r"corpus.splits.a.part is \[0.5, 0.5\]; expected \[from, to\]"):
        config(kind="tsv", splits={"a": {"source": "x", "part": [0.5, 0.5]}})
    with pytest.raises(UserError, match="at least one split"):
        config(kind="kaldi", splits={})


# --- digits


def make_digits(root: Path, speakers=("ann", "bob", "cy"), takes=3, rate=8000) -> Path:
    (root / "audio").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for speaker in speakers:
        for digit in range(10):
            for take in range(takes):
                samples = rng.normal(0, 0.1, int(rng.integers(1500, 4001)))
                soundfile.write(root / "audio" / f"{digit}_{speaker}_{take}.flac", samples, rate)
    return root


SPLITS = {"train": {"speakers": ["ann", "bob"], "strings": 40}, "test": {"speakers": ["cy"], "strings": 10}}


def test_digit_strings(tmp_path):
    root = make_digits(tmp_path)
    cfg = config(kind="digits", splits=SPLITS, path=str(root))
    items = read(cfg, digits.locate(cfg, None))
    assert len(items) == 50 == len({cut.id for _, cut in items})
    lengths = set()
    for split, cut in items:
        [supervision] = cut.supervisions
        assert supervision.id == cut.id
        assert (supervision.start, supervision.duration) == (0.0, cut.duration)
        assert supervision.language == "en"
        assert supervision.speaker in SPLITS[split]["speakers"]
        recordings = [track.cut.recording.id for track in cut.tracks if track.type == "MonoCut"]
        assert {name.split("_")[1] for name in recordings} == {supervision.speaker}
        words = supervision.text.split()
        assert words == [digits.WORDS[int(name[0])] for name in recordings]
        lengths.add(len(words))
        audio = cut.load_audio()
        assert cut.sampling_rate == 16_000
        assert audio.shape == (1, cut.num_samples)
        assert audio.shape[1] == round(cut.duration * 16_000)
    assert lengths == {3, 4, 5, 6}
    assert all(isinstance(result, Accepted) for result in checked(items))


def test_digits_of_a_string_are_its_recordings_and_silence(tmp_path):
    cfg = config(kind="digits", splits=SPLITS, path=str(make_digits(tmp_path)), pause_seconds=[0.1, 0.2])
    _, cut = read(cfg, tmp_path)[0]
    expected = [track.cut.load_audio()[0] for track in cut.tracks]
    assert [len(e) for e in expected[1::2]] == [track.cut.num_samples for track in cut.tracks[1::2]]
    assert all(1600 <= len(e) <= 3200 and not e.any() for e in expected[1::2])
    assert np.array_equal(cut.load_audio()[0], np.concatenate(expected))


def test_single_digits_and_no_pauses(tmp_path):
    cfg = config(
        kind="digits", splits=SPLITS, path=str(make_digits(tmp_path)), min_digits=1, max_digits=2, pause_seconds=[0, 0]
    )
    items = read(cfg, tmp_path)
    assert {len(cut.supervisions[0].text.split()) for _, cut in items} == {1, 2}
    assert all(isinstance(result, Accepted) for result in checked(items))
    assert all(cut.id == cut.supervisions[0].id for _, cut in items)


def test_digit_strings_depend_on_seed_split_and_number_alone(tmp_path):
    root = make_digits(tmp_path)
    one = [cut.to_dict() for _, cut in read(config(kind="digits", splits=SPLITS, path="x"), root)]
    assert one == [cut.to_dict() for _, cut in read(config(kind="digits", splits=SPLITS, path="x"), root)]
    assert one != [cut.to_dict() for _, cut in read(config(kind="digits", splits=SPLITS, path="x"), root, seed=2)]
    more = {"train": {**SPLITS["train"], "strings": 60}, "test": SPLITS["test"]}
    longer = [cut.to_dict() for _, cut in read(config(kind="digits", splits=more, path="x"), root)]
    assert longer[:40] == one[:40]
    assert longer[60:] == one[40:]


def test_speakers_in_two_splits(tmp_path):
    both = {"train": {"speakers": ["ann"], "strings": 20}, "dev": {"speakers": ["ann"], "strings": 20}}
    with pytest.raises(UserError, match=r"'ann' is in both train and dev.*`indices`"):
        config(kind="digits", splits=both)
    both["train"]["indices"], both["dev"]["indices"] = [1, 3], [0, 2]
    with pytest.raises(UserError, match="'ann' is in both"):
        config(kind="digits", splits=both)
    both["dev"]["indices"] = [0, 1]
    items = read(config(kind="digits", splits=both), make_digits(tmp_path))
    used = {
        split: {t.cut.recording.id for name, cut in items if name == split for t in cut.tracks if t.type == "MonoCut"}
        for split in both
    }
    assert {name.split("_")[2] for name in used["train"]} == {"1", "2"}
    assert {name.split("_")[2] for name in used["dev"]} == {"0"}


def test_bad_digit_recordings_enter_no_string(tmp_path):
    audio = make_digits(tmp_path) / "audio"
    soundfile.write(audio / "0_ann_0.flac", np.zeros(3000), 8000)
    whole = (audio / "1_ann_1.flac").read_bytes()
    (audio / "1_ann_1.flac").write_bytes(whole[: len(whole) // 2])
    soundfile.write(audio / "2_ann_2.flac", np.full((3000, 2), 0.1), 8000)
    (audio / "readme.txt").write_text("hello")
    (audio / ".hidden").write_text("hello")
    items = read(config(kind="digits", splits=SPLITS), tmp_path)
    assert aside(items) == {
        "0_ann_0.flac": "silent",
        "1_ann_1.flac": "unreadable audio",
        "2_ann_2.flac": "several channels",
        "readme.txt": "unknown name",
    }
    # Each split lists those of its own speakers, and what is of nobody.
    assert Counter(split for split, item in items if isinstance(item, SetAside)) == {"train": 4, "test": 1}
    used = {t.cut.recording.id for _, cut in items if not isinstance(cut, SetAside) for t in cut.tracks[::2]}
    assert not used & {"0_ann_0", "1_ann_1", "2_ann_2"}


def test_two_recordings_of_one_name(tmp_path):
    audio = make_digits(tmp_path) / "audio"
    soundfile.write(audio / "3_ann_1.wav", np.full(3000, 0.1), 8000)
    with pytest.raises(UserError, match=r"3_ann_1.flac and 3_ann_1.wav have the same digit, speaker and index; remove"):
        read(config(kind="digits", splits=SPLITS), tmp_path)
    apart = {"test": SPLITS["test"]}  # a split reads what is of its own speakers
    assert len(read(config(kind="digits", splits=apart), tmp_path)) == 10


def test_digits_that_are_not_there(tmp_path):
    make_digits(tmp_path)
    with pytest.raises(UserError, match="digit 0 by 'dan'"):
        read(config(kind="digits", splits={"train": {"speakers": ["dan"], "strings": 1}}), tmp_path)
    with pytest.raises(UserError, match=r"digit 0 by 'ann' with an index in \[7, 9\]"):
        read(config(kind="digits", splits={"a": {"speakers": ["ann"], "strings": 1, "indices": [7, 9]}}), tmp_path)
    with pytest.raises(UserError, match=r"the folder .*audio does not exist"):
        digits.locate(config(kind="digits", splits=SPLITS, path=str(tmp_path / "audio")), None)


# --- Kaldi


def make_kaldi(root: Path, files: dict[str, str]) -> Path:
    (root / "train").mkdir(parents=True, exist_ok=True)
    (root / "wav").mkdir(exist_ok=True)
    for name in ("r1", "r2", "r3"):
        soundfile.write(root / "wav" / f"{name}.wav", np.random.default_rng(0).normal(0, 0.1, 32_000), 16_000)
    for name, content in files.items():
        (root / "train" / name).write_text(content, encoding="utf-8")
    return root


WAVS = "r1 wav/r1.wav\nr2 wav/r2.wav\nr3 wav/r3.wav\n"
PLAIN = {"wav.scp": WAVS, "text": "r1 HELLO  WORLD\nr2\n", "utt2spk": "r1 s1\nr2 s1\nr3 s2\n", "spk2gender": "s1 f\n"}
TRAIN = {"train": {"source": "train"}}


def test_kaldi_directory(tmp_path):
    root = make_kaldi(tmp_path, PLAIN)
    cfg = config(kind="kaldi", splits=TRAIN, path=str(root), language="EN")
    items = [item for _, item in read(cfg, kaldi.locate(cfg, None))]
    assert [(u.id, u.text, u.speaker, u.gender, u.language) for u in items] == [
        ("r1", "HELLO  WORLD", "s1", "f", "en"),
        ("r2", None, "s1", "f", "en"),
        ("r3", None, "s2", None, "en"),
    ]
    assert all(isinstance(r, Accepted) for r in validate(items, Checks()))


def test_kaldi_segments(tmp_path):
    files = {
        **PLAIN,
        "segments": "u1 r1 0.0 1.0\nu2 r1 1.0 -1\nu3 r2 0.5 5.0\nu4 r9 0 1\n",
        "text": "u1 ONE\nu2 TWO\nu7 SEVEN\n",
        "utt2spk": "u1 s1\nu2 s1\nu3 s1\nu4 s1\n",
        "utt2lang": "u1 de\nu2 fr\nu3 de\nu4 de\n",
    }
    root = make_kaldi(tmp_path, files)
    items = read(config(kind="kaldi", splits=TRAIN, path=str(root)), root)
    assert aside(items) == {"u4": "no recording", "u7": "no recording"}
    results = {getattr(r, "cut", r).id: r for r in checked(items)}
    assert (results["u1"].cut.recording.id, results["u1"].cut.supervisions[0].language) == ("r1", "de")
    assert (results["u2"].cut.start, results["u2"].cut.duration) == (1.0, 1.0)
    assert results["u3"].reason == "segment outside recording"
    assert "segments line 3" in results["u3"].detail


def test_kaldi_tables_with_holes(tmp_path):
    files = {**PLAIN, "utt2spk": "r1 s1\nr2 s1\n", "utt2lang": "r1 en\n"}
    root = make_kaldi(tmp_path, files)
    items = read(config(kind="kaldi", splits=TRAIN), root)
    assert aside(items) == {"r2": "no language", "r3": "no speaker"}
    (root / "train" / "utt2spk").unlink()
    items = read(config(kind="kaldi", splits=TRAIN, language="en"), root)
    assert [u.speaker for _, u in items] == ["r1", "r2", "r3"]


def test_kaldi_duplicates_and_declared_durations(tmp_path):
    files = {**PLAIN, "wav.scp": WAVS + "r1 wav/r1.wav\n", "reco2dur": "r1 2.0\nr2 2.5\nr3 2.04\n"}
    root = make_kaldi(tmp_path, files)
    results = checked(read(config(kind="kaldi", splits=TRAIN, language="en"), root))
    assert [getattr(r, "reason", None) for r in results] == [None, "wrong duration", None, "duplicate id"]
    assert "wav.scp line 1" in results[3].detail
    assert "wav.scp line 4" in results[3].detail


TWICE = {
    "wav.scp": ("r1 wav/r1.wav\n", "r1 wav/r2.wav\n", r"lines 1 and 4: the recording r1 .*r1.wav' and .*r2.wav'"),
    "segments": (
        "u1 r1 0 1\n",
        "u1 r1 0.0 0.5\n",
        "lines 1 and 4: the utterance u1 .*'r1 0.0 1.0' and 'r1 0.0 0.5'",
    ),
    "text": ("u1 HELLO\n", "u1 WORLD\n", "lines 1 and 4: the key u1 occurs twice, with the values 'HELLO' and 'WORLD'"),
    "utt2spk": ("u1 s1\n", "u1 s2\n", "lines 1 and 4: the key u1 occurs twice, with the values 's1' and 's2'"),
    "utt2lang": ("u1 de\n", "u1 fr\n", "lines 1 and 4: the key u1 occurs twice, with the values 'de' and 'fr'"),
    "spk2gender": ("s1 f\n", "s1 m\n", "lines 1 and 4: the key s1 occurs twice, with the values 'f' and 'm'"),
    "reco2dur": ("r1 2.0\n", "r1 2.5\n", "lines 1 and 4: the key r1 occurs twice, with the values '2.0' and '2.5'"),
}


@pytest.mark.parametrize("name", TWICE)
def test_a_key_with_two_values_in_any_kaldi_table(tmp_path, name):
    """Of two recordings with one id, all segments were cut from the last one."""
    first, second, message = TWICE[name]
    others = {
        "wav.scp": "r2 wav/r2.wav\nr3 wav/r3.wav\n",
        "segments": "u2 r1 1 2\nu3 r2 0 1\n",
        "text": "u2 B\nu3 C\n",
        "utt2spk": "u2 s1\nu3 s2\n",
        "utt2lang": "u2 de\nu3 de\n",
        "spk2gender": "s2 f\ns3 f\n",
        "reco2dur": "r2 2.0\nr3 2.0\n",
    }
    files = {table: line + others[table] for table, (line, _, _) in TWICE.items()}
    cfg = config(kind="kaldi", splits=TRAIN)
    same = make_kaldi(tmp_path / "same", {**files, name: files[name] + first})
    found = [item.id for _, item in read(cfg, same) if isinstance(item, Utterance)]
    assert found == ["u1", "u2", "u3"]  # said twice alike, it is one; twice in segments, the second is set aside
    differs = make_kaldi(tmp_path / "differs", {**files, name: files[name] + second})
    with pytest.raises(UserError, match=f"{differs}/train/{name} {message}"):
        read(cfg, differs)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("wav.scp", "r1 sox x.wav -t wav - |\n", "r1 is a piped command .*refused"),
        ("wav.scp", "r1 | rm -rf x\n", "piped command"),
        ("wav.scp", "r1\n", "wav.scp line 1: expected"),
        ("segments", "u1 r1 0.0\n", "segments line 1: expected"),
        ("segments", "u1 r1 0.0 soon\n", "'soon' is not a number"),
        ("reco2dur", "r1 nan\n", "'nan' is not a number"),
    ],
)
def test_kaldi_directories_that_stop_the_run(tmp_path, name, content, message):
    root = make_kaldi(tmp_path, {**PLAIN, name: content})
    with pytest.raises(UserError, match=message):
        read(config(kind="kaldi", splits=TRAIN, language="en"), root)


def test_kaldi_needs_a_language_and_its_files(tmp_path):
    root = make_kaldi(tmp_path, PLAIN)
    with pytest.raises(UserError, match="no utt2lang; set the corpus's key `language`"):
        read(config(kind="kaldi", splits=TRAIN), root)
    with pytest.raises(UserError, match=r"test.wav.scp does not exist"):
        kaldi.locate(config(kind="kaldi", splits={"test": {"source": "test"}}, path=str(root)), None)
    (root / "train" / "text").write_bytes(b"r1 caf\xe9\n")
    with pytest.raises(UserError, match="text: byte 6 is not UTF-8"):
        read(config(kind="kaldi", splits=TRAIN, language="en"), root)


# --- tables

HEADER = "id\taudio\tlanguage\tspeaker\tseconds\ttext\n"


def make_table(root: Path, rows: list[str], header: str = HEADER) -> Path:
    (root / "train.tsv").write_text(header + "".join(row + "\n" for row in rows), encoding="utf-8")
    return root


TABLE = {"train": {"source": "train.tsv"}}


def test_table(tmp_path):
    rows = [
        'u1\ta/1.ogg\tDE\ts1\t1.5\tEr sagte "ja".',
        "u2\ta/2.ogg\tde\ts1\t1.5\t",
        "u3\ta/3.ogg\tpl\ts2\t1.0\tTak",
        "u4\ta/4.ogg\tde\ts1\tlong\tx",
        "u5\ta/5.ogg\tde",
        "u6\ta/6.ogg\t\ts1\t1\tx",
        "u7\ta/7.ogg\tde\t\t1\tx",
        "u8\t\tde\ts1\t1\tx",
        "",
    ]
    root = make_table(tmp_path, rows)
    cfg = config(kind="tsv", splits=TABLE, path=str(root), languages=["de"])
    items = read(cfg, tsv.locate(cfg, None))
    assert aside(items) == {
        "u3": "unknown language",
        "u4": "malformed row",
        "u5": "malformed row",
        "u6": "no language",
        "u7": "no speaker",
        "u8": "no recording",
    }
    taken = [item for _, item in items if isinstance(item, Utterance)]
    assert [(u.id, u.language, u.seconds, u.text) for u in taken] == [
        ("u1", "de", 1.5, 'Er sagte "ja".'),
        ("u2", "de", 1.5, None),
    ]
    assert taken[0].audio == str(root / "a" / "1.ogg")
    assert taken[0].where.endswith("train.tsv line 2")


def test_other_column_names(tmp_path):
    root = make_table(tmp_path, ["x.wav\tu1\ten\tme"], "path\tutt\tlang\twho\n")
    columns = {"id": "utt", "audio": "path", "language": "lang", "speaker": "who", "seconds": None, "text": None}
    [(_, item)] = read(config(kind="tsv", splits=TABLE, columns=columns), root)
    assert (item.id, item.language, item.speaker, item.seconds, item.text) == ("u1", "en", "me", None, None)
    with pytest.raises(UserError, match=r"no column 'id' \(`columns.id`\).*path, utt"):
        read(config(kind="tsv", splits=TABLE), root)


def test_a_table_without_seconds_is_measured(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).normal(0, 0.1, 8000), 16_000)
    root = make_table(tmp_path, ["u1\ta.wav\ten\tme\thello"], "id\taudio\tlanguage\tspeaker\ttext\n")
    items = read(config(kind="tsv", splits=TABLE), root)
    assert items[0][1].seconds is None
    [result] = checked(items)
    assert result.cut.duration == 0.5
    with pytest.raises(UserError, match=r"no column 'dur' \(`columns.seconds`\)"):  # asked for by name
        read(config(kind="tsv", splits=TABLE, columns={"seconds": "dur"}), root)
    with pytest.raises(UserError, match=r"no column 'text' \(`columns.text`\)"):  # transcripts are not lost by chance
        read(config(kind="tsv", splits=TABLE), make_table(tmp_path, [], "id\taudio\tlanguage\tspeaker\tseconds\n"))


def test_an_id_with_two_rows_that_differ(tmp_path):
    rows = ["u1\ta.wav\ten\tme\t1\thello", "u2\tb.wav\ten\tme\t1\tyou", "u1\ta.wav\ten\tme\t1\thallo"]
    cfg = config(kind="tsv", splits=TABLE)
    with pytest.raises(
        UserError, match=r"train.tsv lines 2 and 4: the id u1 occurs twice, with the values 'hello' and 'hallo'"
    ):
        read(cfg, make_table(tmp_path, rows))
    items = read(cfg, make_table(tmp_path, [*rows[:2], rows[0]]))
    assert ids(items, "train") == ["u1", "u2"]
    assert aside(items) == {"u1": "duplicate id"}


def test_a_column_that_stands_twice(tmp_path):
    root = make_table(tmp_path, ["u1\ta\ten\tme\t1\thello\tyou"], HEADER.replace("text", "text\ttext"))
    with pytest.raises(UserError, match="the header has the column 'text' twice; rename or remove one"):
        read(config(kind="tsv", splits=TABLE), root)


def test_byte_order_mark_and_carriage_returns(tmp_path):
    (tmp_path / "train.tsv").write_bytes(
        b"\xef\xbb\xbf" + (HEADER + "u1\ta\ten\ts\t1\tx\n").replace("\n", "\r\n").encode()
    )
    [(_, item)] = read(config(kind="tsv", splits=TABLE), tmp_path)
    assert (item.id, item.text) == ("u1", "x")


def test_a_language_without_rows_stops_the_run(tmp_path):
    root = make_table(tmp_path, [f"u{i}\ta\tde\ts1\t1\tx" for i in range(9)])
    with pytest.raises(UserError, match=r"no row has the language 'fr' of `languages`; the table has de"):
        read(config(kind="tsv", splits=TABLE, languages=["de", "fr"]), root)
    parts = {"a": {"source": "train.tsv", "part": [0, 0.9]}, "b": {"source": "train.tsv", "part": [0.9, 1.0]}}
    with pytest.raises(UserError, match=r"split b: part \[0.9, 1.0\] .*'de' \(the table has 1 speaker.*by: utt"):
        read(config(kind="tsv", splits=parts, languages=["de"]), root)
    parts = {name: {**part, "by": "utterance"} for name, part in parts.items()}
    items = read(config(kind="tsv", splits=parts, languages=["de"]), root)
    assert (len(ids(items, "a")), len(ids(items, "b"))) == (8, 1)


def test_empty_and_absent_tables(tmp_path):
    (tmp_path / "train.tsv").write_text("")
    with pytest.raises(UserError, match="the file is empty"):
        read(config(kind="tsv", splits=TABLE), tmp_path)
    with pytest.raises(UserError, match=r"dev.tsv does not exist"):
        tsv.locate(config(kind="tsv", splits={"dev": {"source": "dev.tsv"}}, path=str(tmp_path)), None)
    with pytest.raises(UserError, match=r"\S*train does not exist \(found train.tsv\)"):
        tsv.locate(config(kind="tsv", splits={"train": {"source": "train"}}, path=str(tmp_path)), None)


# --- the real corpora


def accepted(cfg, data, every=1):
    root = registry.module(cfg.kind).locate(cfg, data)
    items = read(cfg, root)
    results = checked(items[::every])
    assert all(isinstance(result, Accepted) for result in results)
    return items, [result.cut for result in results]


def test_real_digits(speech_data):
    splits = {
        "train": {"speakers": ["george", "jackson"], "strings": 60, "indices": [5, 50]},
        "dev": {"speakers": ["george", "jackson"], "strings": 20, "indices": [0, 5]},
        "test": {"speakers": ["theo"], "strings": 20},
    }
    items, cuts = accepted(config(kind="digits", splits=splits), speech_data)
    assert Counter(split for split, _ in items) == {"train": 60, "dev": 20, "test": 20}
    assert all(cut.load_audio().shape == (1, cut.num_samples) for cut in cuts[:10])


def test_real_speechocean(speech_data):
    splits = {
        "train": {"source": "train", "part": [0.0, 0.9]},
        "dev": {"source": "train", "part": [0.9, 1.0]},
        "test": {"source": "dev"},
    }
    items, cuts = accepted(config(kind="kaldi", splits=splits, language="en"), speech_data, every=40)
    assert Counter(split for split, _ in items) == {"train": 2240, "dev": 260, "test": 1200}
    speakers = {name: {u.speaker for split, u in items if split == name} for name in splits}
    assert [len(s) for s in speakers.values()] == [112, 13, 60]
    assert len(set.union(*speakers.values())) == 185
    assert all(cut.supervisions[0].text.isupper() for cut in cuts)


def test_real_voices(speech_data):
    languages = ["de", "en", "es", "fr", "nl"]
    splits = {
        "train": {"source": "train.tsv", "part": [0.0, 0.9], "by": "utterance"},
        "dev": {"source": "train.tsv", "part": [0.9, 1.0], "by": "utterance", "max_seconds_per_language": 60},
        "test": {"source": "dev.tsv", "max_utterances": 50},
    }
    items, cuts = accepted(config(kind="tsv", splits=splits, languages=languages), speech_data, every=40)
    assert {u.language for _, u in items} == set(languages)
    assert len(ids(items, "test")) == 50
    dev = Counter()
    for split, u in items:
        dev[u.language] += u.seconds if split == "dev" else 0
    assert all(30 < seconds <= 60 for seconds in dev.values())
    assert len({u.id for _, u in items}) == len(items)
    assert cuts
