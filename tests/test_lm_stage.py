"""The stage lm, from cuts and text files to a folder that decoders load; its errors; the section `lms` of a config."""

import gzip
import json

import pytest

from lowrank_speech.artefact import read_manifest
from lowrank_speech.errors import UserError
from lowrank_speech.lang.lm import arpa
from lowrank_speech.lang.lm import query as queries
from lowrank_speech.lang.lm.estimate import estimate
from lowrank_speech.lang.lm.load import LanguageModel
from lowrank_speech.lang.lm.query import OwnScorer, sentence_score
from lowrank_speech.lang.lm.units import splitter
from lowrank_speech.lang.load import Lang
from lowrank_speech.stages import lang, lm
from lowrank_speech.workflow.config import complete, lm_splits, lms_used, overlaps, splits_used
from test_lang_stage import cut, write
from test_lm_arpa import BINARY, TINY
from test_lm_estimate import corpus_of
from workflow_config import checked, edited, refused, sliced, wildcards
from workflow_tree import tiny_config

TEXTS = ["Hello world", "the world turns", "Hello, you!", "over there", "the world", "Hello world"]


@pytest.fixture
def made(tmp_path):
    """Cuts, and the folder of a character set made from them."""
    cuts = write(tmp_path / "train.jsonl.gz", [cut(f"u{i}", text) for i, text in enumerate(TEXTS)])
    write(tmp_path / "dev.jsonl.gz", [cut("d0", "Hello, moon!"), cut("d1", "the world turns")])
    cfg = {"seed": 1, "lang": {"kind": "char"}}
    folder = tmp_path / "chars"
    paths = ["--out", str(folder), "--manifest", str(folder / "lang.json"), "--cuts", str(cuts)]
    assert lang.main(["--cfg", json.dumps(cfg), *paths]) == 0
    return tmp_path


def run(made, name="lm", cuts=("train.jsonl.gz",), dev="dev.jsonl.gz", lang="chars", **cfg):
    """The exit code, and the manifest if it is 0; ``cfg``: keys of the slice's ``lm``."""
    out = made / name
    paths = ["--lang", str(made / lang), "--out", str(out), "--manifest", str(out / "lm.json")]
    paths += ["--cuts", *(str(made / path) for path in cuts)] if cuts else []
    paths += ["--dev-cuts", str(made / dev)] if dev else []
    code = lm.main(["--cfg", json.dumps({"lm": cfg}), *paths])
    return code, read_manifest(out / "lm.json", "lm") if code == 0 else None


def stops(capsys, message, made, **given):
    capsys.readouterr()
    code, _ = run(made, "broken", **given)
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == 2 and message in last and not (made / "broken" / "lm.json").exists(), last


# -- what it makes -----------------------------------------------------------------------------------------------------


def test_words(made):
    code, record = run(made, order=2)
    metrics = record["metrics"]
    assert code == 0 and set(record["outputs"]) == {"lm.arpa", "words.txt", "set_aside.tsv"}
    assert (made / "lm/words.txt").read_text() == "hello 3\nover 1\nthe 2\nthere 1\nturns 1\nworld 4\nyou 1\n"
    assert metrics["unit"] == "word" and metrics["order"] == 2 and metrics["vocabulary"] == 7
    assert metrics["transcripts"] == 6 and metrics["words"] == 13 and metrics["lang_sha256"] is None
    dev = metrics["dev"]
    assert dev["words"] == 5 and dev["oov"] == 1 and dev["oov_rate"] == 0.2

    found = LanguageModel.load(made / "lm")
    assert found.arpa == found.path == made / "lm/lm.arpa" and found.binary is None
    assert found.vocabulary == ("hello", "over", "the", "there", "turns", "world", "you")
    # The same model as from the library, without normaliser, cuts and files.
    sentences = ["hello world", "the world turns", "hello you", "over there", "the world", "hello world"]
    model, facts = estimate(corpus_of(line.split() for line in sentences), 2)
    assert metrics["ngrams"] == facts["ngrams"] == model.counts
    own = found.scorer(kenlm=False)
    for sentence in (["hello", "world"], ["moon"], []):
        assert sentence_score(own, sentence) == pytest.approx(sentence_score(OwnScorer(model), sentence), abs=1e-5)


@pytest.mark.parametrize("unit", ["token", "character"])
def test_tokens_and_characters(made, unit):
    _, record = run(made, unit=unit, order=4)
    read, found = Lang.load(made / "chars"), LanguageModel.load(made / "lm")
    words = splitter(unit, read)("the world", "en")
    tokens = read.tokens
    expected = [str(i) for i in tokens.encode("the world")] if unit == "token" else [*"the|world"]
    assert words == expected and all(found.scorer(kenlm=False).knows(word) for word in words)
    assert record["metrics"]["dev"]["oov"] == 1  # m, which is the token <unk>
    assert found.lang_sha256 == (read.sha256 if unit == "token" else None)
    found.check_lang(read, "decoders.beam.lm")


def test_tokens_of_another_set_are_refused(made, capsys):
    run(made, unit="token")
    other = made / "other"
    paths = ["--out", str(other), "--manifest", str(other / "lang.json"), "--cuts", str(made / "dev.jsonl.gz")]
    assert lang.main(["--cfg", '{"seed": 1, "lang": {"kind": "char"}}', *paths]) == 0
    with pytest.raises(UserError, match=r"decoders.beam.lm: .* tokens of another token set"):
        LanguageModel.load(made / "lm").check_lang(Lang.load(other), "decoders.beam.lm")


def test_rare_characters_of_a_token_set_are_unknown_tokens_with_counts(made):
    rare = made / "rare"
    paths = ["--out", str(rare), "--manifest", str(rare / "lang.json"), "--cuts", str(made / "train.jsonl.gz")]
    assert lang.main(["--cfg", '{"seed": 1, "lang": {"kind": "char", "min_count": 2}}', *paths]) == 0
    run(made, "often", unit="token", lang="rare", order=2)
    run(made, "never", unit="token", order=2)
    often, never = (LanguageModel.load(made / name).scorer(kenlm=False) for name in ("often", "never"))
    assert often.score(often.empty(), "<unk>")[0] > never.score(never.empty(), "<unk>")[0]


def test_text_files_count_like_transcripts(made):
    half = TEXTS[:3]
    (made / "a.txt").write_text("\ufeff" + "\n".join(half) + "\n\n \r\n", encoding="utf-8")
    (made / "b.txt.gz").write_bytes(gzip.compress(("\n" + "...\n").encode()))
    _, record = run(made, "a", text=[str(made / "a.txt"), str(made / "b.txt.gz")], order=2)
    cuts = write(made / "more.jsonl.gz", [cut(f"m{i}", text) for i, text in enumerate(half)])
    _, other = run(made, "b", cuts=("train.jsonl.gz", cuts.name), order=2)
    assert record["outputs"]["lm.arpa"] == other["outputs"]["lm.arpa"]
    assert record["metrics"]["lines"] == 3 and record["metrics"]["blank_lines"] == 3
    assert record["metrics"]["set_aside"] == 1
    assert f"{made / 'b.txt.gz'}:2\tnormalises to nothing" in (made / "a/set_aside.tsv").read_text()
    assert set(record["sources"]) == {"text/0", "text/1"}


def test_the_same_bytes_again(made):
    for name in ("a", "b"):
        run(made, name, order=3, prune=[0, 1])
    for file in ("lm.arpa", "words.txt", "lm.json"):
        assert (made / "a" / file).read_bytes() == (made / "b" / file).read_bytes()


def test_warns_of_small_texts_and_lower_orders(made, capsys):
    run(made, order=6)
    said = capsys.readouterr().err
    assert "too small or too regular to compute the discounts of order" in said
    assert "no n-gram of order 6 is left; the model has order 5" in said
    assert "lm: order 5 over words: " in said and "20.00 % of 5 words unknown" in said


# -- models of other programs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
def test_an_arpa_file_is_taken_as_it_is(made, packed, capsys):
    given = made / "own.arpa"
    given.write_bytes(gzip.compress(TINY.encode()) if packed else TINY.encode())
    code, record = run(made, cuts=(), arpa=str(given))
    assert code == 0 and record["metrics"]["order"] == 3 and record["metrics"]["ngrams"] == [5, 4, 2]
    assert (made / "lm/lm.arpa").read_text(encoding="utf-8") == TINY and set(record["sources"]) == {"arpa"}
    assert LanguageModel.load(made / "lm").vocabulary == ("b", "ä")
    given.write_text(TINY.replace("ä", "Ä").replace("\tb", "\tB").replace(" b", " B"), encoding="utf-8")
    assert run(made, cuts=(), arpa=str(given))[0] == 0
    assert (
        "are never found, because transcripts are normalised otherwise, such as 'B' to 'b'" in capsys.readouterr().err
    )


def test_a_kenlm_binary(made, capsys, monkeypatch):
    given = made / "own.bin"
    given.write_bytes(BINARY)
    with monkeypatch.context() as patch:
        patch.setattr(lm, "has_kenlm", lambda: False)
        stops(capsys, "is a KenLM binary, but the package kenlm is not installed", made, cuts=(), arpa=str(given))
    pytest.importorskip("kenlm", reason="the package kenlm is an extra")
    code, record = run(made, cuts=(), arpa=str(given))
    assert code == 0 and set(record["outputs"]) == {"lm.bin", "words.txt"} and record["metrics"]["order"] == 2
    found = LanguageModel.load(made / "lm")
    assert found.path == found.binary and found.arpa is None and found.vocabulary == ("a", "b")
    assert found.scorer().knows("a") and not found.scorer().knows("c")
    with pytest.raises(UserError, match="which only kenlm reads"):
        found.scorer(kenlm=False)
    monkeypatch.setattr("lowrank_speech.lang.lm.load.has_kenlm", lambda: False)
    with pytest.raises(UserError, match="the package kenlm is not installed"):
        found.scorer()


def test_loading_refuses_what_the_stage_did_not_write(made):
    with pytest.raises(UserError, match=r"has no lm\.json"):
        LanguageModel.load(made / "chars")
    run(made)
    with (made / "lm/lm.arpa").open("a") as file:
        file.write("\n")
    with pytest.raises(UserError, match="has changed since the stage lm wrote it"):
        LanguageModel.load(made / "lm")
    (made / "lm/lm.arpa").unlink()
    with pytest.raises(UserError, match="does not exist; run the stage lm again"):
        LanguageModel.load(made / "lm")


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_bad_input(made, capsys):
    stops(capsys, "no sentence is left to estimate a model from; read: no file: give --cuts or", made, cuts=())
    write(made / "silent.jsonl.gz", [cut("none", None)])
    stops(capsys, f"read: {made}/silent.jsonl.gz", made, cuts=("silent.jsonl.gz",))
    stops(capsys, f"no transcript is left in {made}/silent.jsonl.gz", made, dev="silent.jsonl.gz")
    stops(capsys, f"text file {made}/nowhere.txt does not exist", made, text=[f"{made}/nowhere.txt"])
    (made / "latin.txt").write_bytes("gut\nschön\n".encode("latin-1"))
    stops(capsys, f"{made}/latin.txt, line 2: byte 4 is not UTF-8", made, text=[f"{made}/latin.txt"])
    (made / "short.gz").write_bytes(gzip.compress(b"hello\n" * 1000)[:-9])
    stops(capsys, f"{made}/short.gz, after line", made, text=[f"{made}/short.gz"])
    stops(capsys, "cfg.lm.order is 7; it must be at most 6", made, order=7)
    stops(capsys, "prune: [0, 1, 1] has 3 thresholds, but order is 2", made, order=2, prune=[0, 1, 1])
    stops(capsys, "prune: [0, 2, 1] decreases from 2 to 1", made, prune=[0, 2, 1])
    stops(capsys, "cfg.lm.unit: 'piece' is not valid; expected one of: word, token, character", made, unit="piece")
    stops(capsys, "language: it is the language of `text`, but no text is given", made, language="en")


def test_bad_models_of_other_programs(made, capsys):
    given = made / "own.arpa"
    stops(capsys, f"arpa: {given} does not exist", made, cuts=(), arpa=str(given))
    given.write_text(TINY, encoding="utf-8")
    stops(capsys, "--cuts: the model", made, arpa=str(given))
    stops(capsys, f"order is 4, but the model {given} has order 3", made, cuts=(), arpa=str(given), order=4)
    stops(capsys, "prune: the model", made, cuts=(), arpa=str(given), prune=[1])
    stops(capsys, "the word 'b' is not a token", made, cuts=(), arpa=str(given), unit="token")
    given.write_text(TINY.replace("ä", "abc"), encoding="utf-8")
    stops(capsys, "the word 'abc' is not one character", made, cuts=(), arpa=str(given), unit="character")
    given.write_text(TINY[:-20], encoding="utf-8")
    stops(capsys, "so it is truncated", made, cuts=(), arpa=str(given))


def test_whispers_tokenizer_has_no_tokens_for_a_model(made, capsys):
    folder = made / "whisper"
    paths = ["--out", str(folder), "--manifest", str(folder / "lang.json")]
    assert lang.main(["--cfg", '{"seed": 1, "lang": {"kind": "whisper"}}', *paths]) == 0
    stops(capsys, "unit: token needs a token set of kind char or sentencepiece", made, lang="whisper", unit="token")
    assert run(made, lang="whisper", unit="word")[0] == 0


# -- the config --------------------------------------------------------------------------------------------------------


def with_lm(**keys):
    """tiny_config with a language model."""
    return edited("lms", {"words": {"lang": "chars", **keys}})


def test_a_model_has_the_splits_of_its_token_set(tmp_path):
    assert lm_splits(checked(with_lm()), "words") == [("babel", "pretrain")]
    assert lm_splits(checked(with_lm(corpora=["ocean"], splits=["train"])), "words") == [("ocean", "train")]
    assert lm_splits(checked(with_lm(splits=["train"])), "words") == [("babel", "train")]
    (tmp_path / "a.txt").write_text("a\n")
    assert lm_splits(checked(with_lm(corpora=[], text=[str(tmp_path / "a.txt")])), "words") == []
    assert lm_splits(checked(with_lm(arpa="own.arpa")), "words") == []


def test_only_models_that_a_decoder_names_are_made():
    config = complete(checked(with_lm(corpora=["ocean"], splits=["train"], dev={"corpus": "babel", "split": "dev"})))
    before = splits_used(complete(checked(tiny_config())))
    assert lms_used(config, ["asr", "lid"]) == [] and splits_used(config) == before
    assert "lm" not in overlaps(config, "asr")
    named = {**config, "decoders": {**config["decoders"], "greedy": {"kind": "greedy", "lm": "words"}}}
    assert lms_used(named, ["asr", "lid"]) == ["words"] and lms_used(named, ["lid"]) == []
    other = {**named, "lms": {"words": {**config["lms"]["words"], "corpora": ["babel"], "splits": ["pretrain"]}}}
    assert overlaps(other, "asr")["lm"] == [("babel", "pretrain")]
    assert "lm" not in overlaps(named, "asr")  # it reads the training split of the task


def test_the_slice_has_the_keys_of_the_model_only():
    found = sliced(with_lm(order=2, dev={"corpus": "babel", "split": "dev"})).lm(wildcards(lm="words"))
    assert set(found.cfg["lm"]) == {"unit", "order", "prune", "text", "language", "arpa"} and found.runtime == {}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"lang": "nothing"}, "lms.words.lang: 'nothing' does not exist; expected one of chars, pieces"),
        ({"order": 7}, "lms.words.order is 7; it must be at most 6"),
        ({"order": 0}, "lms.words.order is 0; it must be at least 1"),
        ({"unit": "wrod"}, "lms.words.unit: 'wrod' is not valid; expected one of: word, token, character"),
        ({"prune": [0, 0, 1, 1]}, "lms.words: prune: [0, 0, 1, 1] has 4 thresholds, but order is 3"),
        ({"prune": [1, 0]}, "lms.words: prune: [1, 0] decreases from 1 to 0"),
        ({"corpora": ["nothing"]}, "lms.words.corpora: 'nothing' does not exist; expected one of babel, ocean"),
        ({"splits": ["nothing"]}, "lms.words.splits: 'nothing' does not exist"),
        (
            {"splits": ["test"]},
            "lms.words.splits: 'test' is the test split of tasks.lid; language models may only read",
        ),
        ({"splits": ["dev"]}, "lms.words.splits: 'dev' is the dev split of tasks.lid; language models may only read"),
        ({"splits": []}, "lms.words: there is nothing to make it from"),
        ({"arpa": "a.arpa", "splits": ["train"]}, "lms.words.splits: the model a.arpa is taken as it is"),
        ({"arpa": "a.arpa", "text": ["a.txt"]}, "lms.words: text: the model a.arpa is taken as it is"),
        ({"dev": {"corpus": "babel", "split": "nothing"}}, "lms.words.dev.split: 'nothing' does not exist"),
        ({"dev": {"corpus": "babel", "split": "test"}}, "lms.words.dev.split: 'test' is the test split of tasks.lid"),
        ({"dev": {"corpus": "babel", "split": "pretrain"}}, "the model is made from 'pretrain' of corpora.babel"),
        ({"ordre": 2}, "lms.words: unknown key 'ordre' (did you mean 'order'?)"),
    ],
)
def test_refused_before_the_first_job(keys, message):
    assert message in refused(with_lm(**keys))


def test_tokens_of_whisper_are_refused():
    config = with_lm(lang="own", unit="token")
    config["langs"]["own"] = {"kind": "whisper"}
    assert "lms.words.unit: token needs a token set of kind char or sentencepiece" in refused(config)
    config["lms"]["words"] = {"lang": "own"}
    assert "there is nothing to make it from" in refused(config)


def test_files_are_looked_at_before_the_first_job(tmp_path, monkeypatch):
    from lowrank_speech.experiment.outside import lm_sources, lost_lms

    text, own = tmp_path / "a.txt", tmp_path / "own.arpa"
    section = {"text": [str(text)], "arpa": None, "order": None}
    assert lost_lms({"words": section}) == f"lms.words.text: {text} does not exist; correct the path"
    assert lm_sources(section) is None
    text.write_text("a\n")
    assert lost_lms({"words": section}) is None and lm_sources(section) == {"text/0": str(text)}
    section = {"text": [], "arpa": str(own), "order": 2}
    assert "lms.words.arpa: " in lost_lms({"words": section})
    own.write_text(TINY, encoding="utf-8")
    assert "lms.words.order is 2, but the model" in lost_lms({"words": section})
    own.write_text(TINY[:100], encoding="utf-8")
    assert "truncated" in lost_lms({"words": section})
    own.write_bytes(BINARY)
    monkeypatch.setattr("lowrank_speech.lang.lm.taken.has_kenlm", lambda: False)
    assert "the package kenlm is not installed" in lost_lms({"words": section})


def test_has_kenlm_says_whether_it_can_be_imported():
    try:
        import kenlm  # noqa: F401
    except ImportError:
        assert not queries.has_kenlm()
    else:
        assert queries.has_kenlm()


def test_counts_of_a_header(tmp_path):
    path = tmp_path / "a.arpa"
    path.write_text(TINY, encoding="utf-8")
    assert arpa.counts(path) == [5, 4, 2]
