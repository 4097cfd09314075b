"""NIST score and key files: forms, order of columns, round trips, errors; and the commands."""

import json

import numpy as np
import pytest

from lowrank_speech import cli
from lowrank_speech.scoring import nist

TABLE = "segmentid\teng\tara\nlre_1\t-1.5\t0\nlre_2\t0\t-2\n"
LINES = "lre_2 ara -2\nlre_1 eng -1.5\nlre_1 ara 0\nlre_2 eng 0\n"
LRE07 = "".join(f"general_lr {x} closed_set {s} {d} {v}\n" for s, x, d, v in [
    ("lre_1", "eng", "f", "-1.5"), ("lre_1", "ara", "t", "0"), ("lre_2", "eng", "t", "0"), ("lre_2", "ara", "f", "-2")
])  # fmt: skip
EXPECTED = {("lre_1", "eng"): -1.5, ("lre_1", "ara"): 0, ("lre_2", "eng"): 0, ("lre_2", "ara"): -2}


@pytest.fixture
def write(tmp_path):
    def write(data, name="file"):
        (tmp_path / name).write_text(data)
        return tmp_path / name

    return write


def cells(found):
    ids, languages, scores = found
    return {(one, language): scores[i, j] for i, one in enumerate(ids) for j, language in enumerate(languages)}


@pytest.mark.parametrize(
    "data",
    [
        TABLE,
        TABLE.replace("\t", " "),
        TABLE.replace("segmentid", "Segment_ID"),
        "segmentid\tara\teng\nlre_1\t0\t-1.5\nlre_2\t-2\t0\n",
        LINES,
        LINES.replace(" ", "\t"),
        "segmentid language score\n" + LINES,
        "score language segment\n" + "".join(" ".join(line.split()[::-1]) + "\n" for line in LINES.splitlines()),
        LRE07,
        LRE07.replace(" ", "\t"),
        "".join(f"{line} {'ara' if 'lre_1' in line else 'eng'}\n" for line in LRE07.splitlines()),
    ],
)  # fmt: skip
def test_scores_in_all_forms(write, data):
    assert cells(nist.read_scores(write(data))) == EXPECTED


@pytest.mark.parametrize(
    "data, match",
    [
        ("", "the file is empty"),
        ("what is this file\n", r"file:1: the form of this file is not known, its first line is 'what is this file'"),
        ("name\teng\tara\nlre_1\t0\t1\n", r"file:1: the form of this file is not known"),
        ("lre_1\t0\t1\n", r"file:1: the header is missing"),
        (LINES + "lre_1 eng 3\n", r"file:5: segment 'lre_1' and language 'eng' are also in line 2"),
        (LINES.replace("lre_1 ara 0\n", ""), r"segment 'lre_1' has no score of language 'ara'; add it"),
        ("a x 1\nb y 2\nc z 3\n", r"segment 'a' has no score of language 'y' \(6 scores are missing in all\)"),
        (LINES.replace("-1.5", "high"), r"file:2: segment 'lre_1', language 'eng': 'high' is not a number"),
        (LINES + "lre_1 eng\n", r"file:5: expected 3 fields, as in line 1, got 'lre_1 eng'"),
        ("segmentid language score\n", "the file has no segment"),
        (TABLE + "lre_1\t0\t0\n", r"file:4: id 'lre_1' has"),
    ],
)
def test_score_errors(write, data, match):
    with pytest.raises(ValueError, match=match):
        nist.read_scores(write(data))


@pytest.mark.parametrize(
    "data",
    [
        "a eng\nb ara\n",
        "id\tlanguage\na\teng\nb\tara\n",
        "segmentid\tlanguage\na\teng\nb\tara\n",
        "language_code\tsegmentid\neng\ta\nara\tb\n",
        LRE07.replace("lre_1", "b").replace("lre_2", "a").replace("\n", " eng\n").replace("b t 0 eng", "b t 0 ara")
        .replace("b f -1.5 eng", "b f -1.5 ara"),
    ],
)  # fmt: skip
def test_keys(write, data):
    key = nist.read_key(write(data))
    assert key.labels == {"a": "eng", "b": "ara"} and key.durations is None


def test_a_key_with_everything(write):
    key = nist.read_key(
        write("segmentid\tspeech_duration\tlanguage\tdata_source\tx\na\t3s\teng\tcts\t1\nb\t30\tara\tafv\t2\n")
    )
    assert key == nist.Key({"a": "eng", "b": "ara"}, {"a": "3", "b": "30"}, {"a": "cts", "b": "afv"})


@pytest.mark.parametrize(
    "data, match",
    [
        ("segmentid\tdialect\tx\na\tb\tc\n", r"file:1: the header of this key is not known: 'segmentid\\tdialect\\tx'"),
        ("segmentid\tlanguage\tx\na\teng\n", r"file:2: expected 3 fields"),
        ("segmentid\tlanguage\tx\na\teng\t1\na\teng\t1\n", r"file:3: id 'a' is also in line 2"),
        ("segmentid\tlanguage\tx\n", "the key has no segment"),
        (LRE07, r"file:1: these lines have no true language \(field 7\)"),
        (LRE07.splitlines()[0] + " eng\n" + LRE07.splitlines()[1] + " ara\n", "file:2: segment 'lre_1' has"),
    ],
)  # fmt: skip
def test_key_errors(write, data, match):
    with pytest.raises(ValueError, match=match):
        nist.read_key(write(data))


@pytest.mark.parametrize("form", ["table", "lines", "lre07"])
def test_written_scores_read_the_same(write, form):
    rng = np.random.default_rng(0)
    ids, languages, scores = ["s1", "s2", "s3"], ["eng", "ara", "fre"], rng.normal(size=(3, 3)) * 1e3
    path = write("".join(f"{line}\n" for line in nist.score_lines(form, ids, languages, scores)))
    found = nist.read_scores(path)
    assert found[:2] == (ids, languages) and np.array_equal(found[2], scores)


def test_lre07_decisions_are_those_of_c_avg_at_half():
    lines = list(nist.score_lines("lre07", ["a"], ["x", "y", "z"], np.array([[0.0, -1.0, -9.0]])))
    assert [line.split()[4] for line in lines] == ["t", "f", "f"]


def call(argv, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main([str(a) for a in argv])
    captured = capsys.readouterr()
    return left.value.code or 0, captured.out, captured.err


def test_commands(write, tmp_path, capsys):
    key = write("segmentid\tlanguage\tspeech_duration\nlre_2\teng\t3\nlre_1\tara\t30\n", "key")
    results = []
    for name, data in (("a", TABLE), ("b", LINES), ("c", LRE07)):
        code, out, err = call(["score", "lid", write(data, name), key, "--json", "--bootstrap", 0], capsys)
        assert code == 0 and not err
        results.append(json.loads(out))
    assert results[0]["accuracy"] == 1 and list(results[0]["by_duration"]) == ["below 5 s", "20 s or more"]
    assert all(
        one["min_cprimary"] == results[0]["min_cprimary"] and one["cllr"] == results[0]["cllr"] for one in results
    )
    scores, copy = tmp_path / "out.txt", tmp_path / "key.tsv"
    code, _, err = call(
        ["score", "nist", tmp_path / "a", key, "--scores-out", scores, "--key-out", copy, "--form", "lre07"], capsys
    )
    assert code == 0 and not err
    assert cells(nist.read_scores(scores)) == EXPECTED and nist.read_key(copy) == nist.read_key(key)


@pytest.mark.parametrize(
    "key, match",
    [
        ("lre_1 eng\n", "segment 'lre_2' has scores but no label"),
        ("lre_1 eng\nlre_2 ara\nlre_3 ara\n", "segment 'lre_3' has a label but no scores"),
        ("lre_1 eng\nlre_2 eng\n", "there is no segment of the language 'ara'"),
    ],
)
def test_commands_refuse_what_does_not_match(write, tmp_path, capsys, key, match):
    files = [write(TABLE, "scores"), write(key, "key")]
    for argv in (["lid", *files], ["nist", *files, "--scores-out", tmp_path / "out"]):
        code, _, err = call(["score", *argv], capsys)
        assert code == 2 and match in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()
