"""The stage overlap: forbidden overlap between splits is an error, permitted overlap is reported."""

import json
import time

import pytest

from lowrank_speech.stages import overlap


def index(folder, corpus, split, rows):
    """Rows: (id, speaker, samples)."""
    path = folder / corpus / f"{split}.index.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{name}\t{speaker}\ten\t1.0\t{sha}" for name, speaker, sha in rows]
    path.write_text("\n".join(["id\tspeaker\tlanguage\tseconds\tsha256", *lines]) + "\n", encoding="utf-8")
    return path


def run(folder, *splits, cfg="{}"):
    named = [word for role, path in splits for word in ("--split", f"{role}={path}")]
    return overlap.main(["--cfg", cfg, "--manifest", str(folder / "o" / "overlap.json"), *named])


def refused(folder, capfd, *splits):
    assert run(folder, *splits) == 2
    assert not (folder / "o" / "overlap.json").exists()
    *_, last = capfd.readouterr().err.strip().splitlines()
    return last


@pytest.fixture
def train(tmp_path):
    return index(tmp_path, "c", "train", [("a", "s1", "1"), ("b", "s1", "2"), ("c", "s2", "3")])


def test_splits_that_share_nothing(tmp_path, train):
    test = index(tmp_path, "c", "test", [("x", "s8", "8"), ("y", "s9", "9")])
    assert run(tmp_path, ("train", train), ("test", test), cfg='{"roles": {"train": ["c/train"]}}') == 0
    record = json.loads((tmp_path / "o" / "overlap.json").read_text())
    assert record["metrics"] == {
        "splits": [
            {"role": "train", "split": "c/train", "utterances": 3},
            {"role": "test", "split": "c/test", "utterances": 2},
        ],
        "shared_speakers": [],
    }


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("train", "test"),
        ("train", "dev"),
        ("pretrain", "test"),
        ("pretrain", "dev"),
        ("dev", "test"),
        ("untranscribed", "dev"),
    ],
)
def test_equal_samples_under_two_names(tmp_path, capfd, train, one, other):
    test = index(tmp_path, "d", "test", [("x", "s8", "8"), ("y", "s9", "2")])
    said = refused(tmp_path, capfd, (one, train), (other, test))
    assert f"utterance b of {one} ({train}) and y of {other} ({test}) have the same samples" in said
    assert "remove them from one split" in said and "more" not in said
    rows = (tmp_path / "o" / "shared.tsv").read_text().splitlines()
    assert rows[1:] == [f"samples\t{one}\tc/train\tb\t{other}\td/test\ty"]


def test_the_order_of_the_splits_does_not_matter(tmp_path, capfd, train):
    test = index(tmp_path, "c", "test", [("y", "s9", "2")])
    said = refused(tmp_path, capfd, ("test", test), ("train", train))
    assert f"utterance y of test ({test}) and b of train ({train}) have the same samples" in said


def test_an_id_twice_in_one_corpus(tmp_path, capfd, train):
    test = index(tmp_path, "c", "test", [("a", "s8", "8"), ("b", "s9", "9")])
    said = refused(tmp_path, capfd, ("train", train), ("test", test))
    assert f"utterance a of train ({train}) and a of test ({test}) have the same id, and 1 more are shared, see" in said
    # Names mean something within a corpus only.
    elsewhere = index(tmp_path, "d", "test", [("a", "s8", "8")])
    assert run(tmp_path, ("train", train), ("test", elsewhere)) == 0


def test_what_may_be_shared(tmp_path, train):
    again = index(tmp_path, "c", "more", [("a", "s1", "1")])
    one, other = (index(tmp_path, "c", name, [("x", "s8", "8")]) for name in ("test", "other"))
    splits = [
        ("pretrain", train),
        ("train", train),
        ("untranscribed", train),
        ("train", again),
        ("test", one),
        ("test", other),
        ("test", other),
    ]
    assert run(tmp_path, *splits) == 0


def test_speakers_are_reported(tmp_path, capfd, train):
    test = index(tmp_path, "c", "test", [("x", "s2", "8"), ("y", "s1", "9")])
    assert run(tmp_path, ("train", train), ("pretrain", train), ("test", test)) == 0
    said = capfd.readouterr().err
    assert "WARNING overlap: 2 speakers of train (c/train) are also in test (c/test), such as s1" in said
    found = json.loads((tmp_path / "o" / "overlap.json").read_text())["metrics"]["shared_speakers"]
    assert [(f["role"], f["other_role"], f["speakers"], f["examples"]) for f in found] == [
        ("train", "test", 2, ["s1", "s2"]),
        ("pretrain", "test", 2, ["s1", "s2"]),
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "tset={path}",
            "--split: expected ROLE=FILE with a role of pretrain, train, untranscribed, lm, dev, test, got 'tset=",
        ),
        ("{path}", "--split: expected ROLE=FILE"),
        ("test=nowhere.index.tsv", "--split: nowhere.index.tsv does not exist"),
        ("test={other}", "not an index of the stage corpus"),
    ],
)
def test_bad_command_lines(tmp_path, capfd, train, given, message):
    other = tmp_path / "other.tsv"
    other.write_text("id\tname\n1\t2\n")
    text = given.format(path=train, other=other)
    assert overlap.main(["--cfg", "{}", "--manifest", str(tmp_path / "o.json"), "--split", text]) == 2
    assert message in capfd.readouterr().err


def test_names_that_pandas_would_change(tmp_path, capfd):
    """nan, 007 and quotes are ids like any other."""
    odd = [("nan", "NA", "007"), ('"x"', "1.0", "8")]
    one, other = index(tmp_path, "c", "train", odd), index(tmp_path, "c", "test", [("nan", "s", "7"), ("y", "s", "9")])
    assert "utterance nan of train" in refused(tmp_path, capfd, ("train", one), ("test", other))


@pytest.mark.slow
def test_a_million_utterances_in_seconds(tmp_path):
    rows = [(f"u{i}", f"s{i % 999}", f"{i:064x}") for i in range(1_000_000)]
    one, other = index(tmp_path, "c", "train", rows), index(tmp_path, "c", "test", [("x", "y", "z")] * 1000)
    start = time.process_time()
    assert run(tmp_path, ("train", one), ("pretrain", one), ("test", other)) == 0
    assert time.process_time() - start < 30
