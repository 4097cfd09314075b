"""What the stage score writes beside score.json: token errors, oracle errors, alignments, TRN and CTM."""

import itertools
import json
import random
import re

import numpy as np
import pytest

from lowrank_speech.scoring import aligned, asr, exchange, oracle, text, tokens
from lowrank_speech.scoring.files import read_seconds
from lowrank_speech.scoring.options import ScoreOptions
from lowrank_speech.stages import score

WORDS = ["the", "a", "of", "light", "{x}", "of;f", "house@", "(um)", "c/d", "%", "ab*", "日本", "e\u0301t"]


def corpus(n: int = 30, seed: int = 1) -> dict[str, tuple[list[str], list[str]]]:
    rng, pairs = random.Random(seed), {}
    for i in range(n):
        ref = rng.choices(WORDS, k=rng.randint(0, 12) if i else 4)
        hyp = [rng.choice([word, word, word[::-1] or word, ""]) for word in ref] + ["x"] * (i % 7 == 0)
        pairs[f"s{i % 3}_u{i:02}"] = (ref, [word for word in hyp if word])
    return pairs


def brute_distance(ref, hyp) -> int:
    """Levenshtein by the definition."""
    row = list(range(len(hyp) + 1))
    for i, r in enumerate(ref, 1):
        row, above = [i], row
        for j, h in enumerate(hyp, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (r != h)))
    return row[-1]


def test_pra_has_the_counts_and_both_sides():
    pairs = corpus()
    blocks = "\n".join(aligned.pra(pairs, {name: name[:2] for name in pairs})).split("\n\n")
    assert len(blocks) == len(pairs) and "Speaker: s1" in blocks[1]
    for (name, (ref, hyp)), block in zip(pairs.items(), blocks, strict=True):
        lines = block.splitlines()
        assert lines[0] == f"id: ({name})"
        correct, *errors = map(int, re.fullmatch(r"Scores: \(#C #S #D #I\) (\d+) (\d+) (\d+) (\d+)", lines[2]).groups())
        assert sum(errors) == brute_distance(ref, hyp) and correct + errors[0] + errors[1] == len(ref)
        assert correct + errors[0] + errors[2] == len(hyp)
        sides = {
            side: " ".join(line[5:] for line in lines if line.startswith(f"{side}:")).split() for side in ("REF", "HYP")
        }
        gaps = [[word for word in side if not re.fullmatch(r"\*+", word)] for side in sides.values()]
        assert gaps == [ref, hyp]
        letters = "".join(line[5:] for line in lines if line.startswith("Eval")).split()
        assert [letters.count(letter) for letter in "SDI"] == errors


def test_pra_stands_in_columns_also_in_wide_scripts():
    lines = list(aligned.pra({"u": (["日本", "e\u0301t", "x"], ["日", "et", "yy", "z"])}))
    ref, hyp, marks = (
        line.removeprefix(label) for line, label in zip(lines[2:5], ("REF: ", "HYP: ", "Eval:"), strict=True)
    )
    assert [aligned.width(ref[: ref.index(w)]) for w in ("日本", "x")] == [
        aligned.width(hyp[: hyp.index(w)]) for w in ("日", "yy")
    ]
    assert marks.split() == ["S", "S", "S", "I"]
    long = {"u": (["word"] * 60, ["word"] * 60)}
    wrapped = [line for line in aligned.pra(long) if line.startswith("REF")]
    assert len(wrapped) > 2 and max(map(len, wrapped)) <= aligned.WRAP + 5


def test_dtl_adds_up():
    pairs = corpus()
    lines = list(aligned.dtl(pairs, "words"))
    table = asr.per_utterance(pairs)
    shown = {line.split("=")[0].strip(): int(line.split("(")[1].strip(" )")) for line in lines if " = " in line}
    assert shown["sentences"] == len(pairs) and shown["with errors"] == table["wrong"].sum()
    assert shown["Ref. words"] == table["words"].sum() and shown["Percent Substitution"] == table["substitutions"].sum()
    assert shown["Percent Total Error"] == table[["substitutions", "deletions", "insertions"]].to_numpy().sum()
    assert shown["Hyp. words"] == sum(len(hyp) for _, hyp in pairs.values())
    ends = [int(line) for line in lines if re.fullmatch(r" +\d+", line)]
    totals = [
        shown[f"Percent {what}"] for what in ("Substitution", "Insertion", "Deletion", "Substitution", "Substitution")
    ]
    assert ends == totals


def test_trn_keeps_words_apart_without_the_scorers_signs():
    words = ["{x}", "{y}", "@", ";;", "a;b", "a;c", "(um)", "um", "c/d", "%7B", "{", "a*", "a**", "back\\slash"]
    (line,) = exchange.trn({"u1": words}, {"u1": "s1"})
    *escaped, label = line.split()
    assert len(set(escaped)) == len(words) and label == "(s1-u1)"
    assert not set("{}@/();*\\") & set("".join(escaped))
    assert next(exchange.trn({"s1_u": ["a"]}, {"s1_u": "s1"})) == "a (s1_u)"
    assert next(exchange.trn({"u": []})) == " (u)".strip()


def test_ctm_has_a_line_for_each_word():
    words = [{"text": "b", "start": 1.0, "end": 1.25, "score": -0.5}, {"text": "a", "start": 0.25, "end": 0.5}]
    assert list(exchange.ctm([{"id": "u", "words": words}, {"id": "v"}])) == [
        "u 1 0.250 0.250 a",
        "u 1 1.000 0.250 b 0.6065",
    ]
    for broken, match in (
        ({"text": "a", "start": 1.0, "end": 0.5}, "utterance 'u': the word 'a' has the times 1.0 to 0.5 s"),
        ({"text": "a b", "start": 1.0, "end": 1.5}, "'a b' is not one word"),
    ):
        with pytest.raises(ValueError, match=match):
            list(exchange.ctm([{"id": "u", "words": [broken]}]))


def test_oracle_is_the_best_of_the_first_n():
    rng = random.Random(2)
    refs = {f"u{i}": rng.choices("abc", k=rng.randint(0, 5)) for i in range(20)}
    lists = {name: [rng.choices("abc", k=rng.randint(0, 5)) for _ in range(rng.randint(1, 6))] for name in refs}
    found = oracle.curve(refs, lists)
    for n, wer in enumerate(found["wer"], 1):
        errors = sum(min(brute_distance(refs[u], hyp) for hyp in lists[u][:n]) for u in refs)
        assert wer == errors / sum(map(len, refs.values()))
    assert all(a >= b for a, b in itertools.pairwise(found["wer"])) and len(found["wer"]) == max(
        map(len, lists.values())
    )
    assert oracle.curve(refs, {name: [[]] for name in refs}) is None
    with pytest.raises(ValueError, match="utterance 'u3' has no list"):
        oracle.curve(refs, lists | {"u3": []})


def test_token_errors_over_characters_are_the_character_errors():
    pairs = {name: (ref, hyp) for name, (ref, hyp) in corpus().items()}
    spelt = {name: (list("|".join(ref)), list("|".join(hyp))) for name, (ref, hyp) in pairs.items()}
    options = ScoreOptions(bootstrap=50)
    found = tokens.summary(tokens.counts(spelt), np.arange(len(pairs)), options, 1)
    known = asr.score(pairs, options, 1)
    assert found["ter"] == known["cer"] and found["interval"] == known["interval"]["cer"]
    assert (found["tokens"], found["token_deletions"]) == (known["characters"], known["char_deletions"])


def test_lengths_add_up_and_have_their_ranges():
    pairs = corpus(60)
    seconds = {name: 0.5 * len(ref) for name, (ref, _) in pairs.items()}
    options = ScoreOptions(bootstrap=20, word_bins=(3, 8), second_bins=(1.5, 4.0))
    result = asr.score(pairs, options, 1, seconds=seconds)
    by_words, by_seconds = result["by_length"]["words"], result["by_length"]["seconds"]
    assert list(by_words) == ["0", "1-3", "4-8", "over 8"] and list(by_seconds) == ["0-1.5", "1.5-4", "over 4"]
    for groups in (by_words, by_seconds):
        for key in ("utterances", "words", "substitutions", "deletions", "insertions", "characters"):
            assert sum(group[key] for group in groups.values()) == result[key]
    assert by_words["1-3"]["utterances"] == sum(1 <= len(ref) <= 3 for ref, _ in pairs.values())
    # The ends belong to the lower range, in both.
    assert by_seconds["1.5-4"] == by_words["4-8"]
    with pytest.raises(ValueError, match="word_bins is"):
        ScoreOptions(word_bins=(5, 5))


def test_seconds_are_checked(tmp_path):
    (tmp_path / "seconds.tsv").write_text("id\tseconds\na\t1.5\nb\tx\n")
    with pytest.raises(ValueError, match=r"seconds\.tsv: utterance 'b': 'x' is not a duration"):
        read_seconds(tmp_path / "seconds.tsv")


def decoded(folder, normaliser: str = "none"):
    """A folder of the stage decode with all that it may have; the stage's manifest."""
    folder.mkdir(exist_ok=True)
    pairs = corpus()
    for side in (0, 1):
        name = ("ref", "hyp")[side]
        said = {u: both[side] for u, both in pairs.items()}
        for end, joined in (("", " "), ("_raw", " "), ("_tokens", " | ")):
            lines = [f"{u} {joined.join(words)}".rstrip() for u, words in said.items()]
            (folder / f"{name}{end}.txt").write_text("\n".join(lines) + "\n")
    rows = []
    for u, (ref, hyp) in pairs.items():
        nbest = [{"text": " ".join(t), "raw": " ".join(t).upper(), "score": -1.0} for t in (hyp, ref[:-1], ref)]
        words = [{"text": w, "start": float(i), "end": i + 0.5, "score": -0.1} for i, w in enumerate(hyp)]
        rows.append({"id": u, "text": " ".join(hyp), "score": -1.0, "nbest": nbest, "words": words})
    (folder / "hypotheses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for what, value in (("speaker", lambda u: u[:2]), ("language", lambda u: "en"), ("second", lambda u: len(u))):
        header = "seconds" if what == "second" else what
        (folder / f"{what}s.tsv").write_text(f"id\t{header}\n" + "".join(f"{u}\t{value(u)}\n" for u in pairs))
    cfg = {"seed": 1, "type": "asr", "score": {"bootstrap": 50, "normaliser": normaliser}}
    return ["--cfg", json.dumps(cfg), "--decoded", str(folder), "--manifest", str(folder.parent / "score/score.json")]


def test_the_stage_writes_and_lists_them(tmp_path):
    arguments = decoded(tmp_path / "d")
    assert score.main(arguments) == 0
    out = tmp_path / "score"
    record = json.loads((out / "score.json").read_text())
    names = {"utterances.tsv", "words.pra", "words.dtl", "tokens.pra", "ref.trn", "hyp.trn", "hyp.ctm"}
    assert set(record["outputs"]) == names
    metrics = record["metrics"]
    assert (
        metrics["oracle"]["wer"][0] == metrics["wer"] > metrics["oracle"]["wer"][1] > metrics["oracle"]["wer"][2] == 0
    )
    assert metrics["ter"] > 0 and len(metrics["interval"]["ter"]) == 2
    lines = text.asr_lines(metrics)
    assert any(line.startswith("%TER ") for line in lines) and any("0.00 (n = 3)" in line for line in lines)
    table = [line.split("\t") for line in (out / "utterances.tsv").read_text().splitlines()]
    assert len(table) == 31 and sum(int(row[table[0].index("deletions")]) for row in table[1:]) == metrics["deletions"]
    # A decoder without times and lists: files of the last run do not stay beside the new manifest.
    for name in ("hypotheses.jsonl", "ref_tokens.txt"):
        (tmp_path / "d" / name).unlink()
    assert score.main(arguments) == 0
    record = json.loads((out / "score.json").read_text())
    assert (
        set(record["outputs"])
        == names - {"tokens.pra", "hyp.ctm"}
        == {p.name for p in out.iterdir()}
        - {
            *("score.json", "score.cost.json"),
        }
    )
    assert "ter" not in record["metrics"] and "oracle" not in record["metrics"]


def test_lists_go_through_the_normaliser_of_scoring(tmp_path):
    """The third of each list is the reference in upper case: right only if lists are normalised from the raw text."""
    assert score.main(decoded(tmp_path / "d", "house")) == 0
    metrics = json.loads((tmp_path / "score/score.json").read_text())["metrics"]
    assert metrics["oracle"]["wer"][0] == metrics["wer"] and metrics["oracle"]["wer"][-1] == 0


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("hypotheses.jsonl", '{"id": "s0_u00", "te', "hypotheses.jsonl, line 1 is not a hypothesis"),
        ("ref_tokens.txt", "other a b\n", "ref_tokens.txt"),
        ("seconds.tsv", "id\tseconds\ns0_u00\t1\n", "utterance 's1_u01' has no duration"),
        ("seconds.tsv", "id\tseconds\ns0_u00\t-1\n", "'-1' is not a duration"),
    ],
)
def test_broken_inputs_are_named(tmp_path, capsys, name, content, match):
    arguments = decoded(tmp_path / "d")
    (tmp_path / "d" / name).write_text(content)
    assert score.main(arguments) == 2
    assert match in capsys.readouterr().err and not (tmp_path / "score/score.json").exists()


def test_counts_are_those_of_jiwer():
    jiwer = pytest.importorskip("jiwer", reason="jiwer is no dependency; install it to compare the counts")
    pairs = {name: both for name, both in corpus(80).items() if both[0]}
    table = asr.per_utterance(pairs)
    for row in table.itertuples():
        found = jiwer.process_words(row.ref, row.hyp)
        assert (
            found.substitutions + found.deletions + found.insertions
            == row.substitutions + row.deletions + row.insertions
        )
        chars = jiwer.process_characters(row.ref, row.hyp)
        assert chars.substitutions + chars.deletions + chars.insertions == (
            row.char_substitutions + row.char_deletions + row.char_insertions
        )
    whole = asr.score(pairs, ScoreOptions(bootstrap=0), 1)
    assert whole["wer"] == pytest.approx(jiwer.wer(list(table["ref"]), list(table["hyp"])))
    assert whole["cer"] == pytest.approx(jiwer.cer(list(table["ref"]), list(table["hyp"])))
