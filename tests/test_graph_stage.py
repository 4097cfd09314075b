"""The stage graph, and the decoders hlg, nbest and rescore on stored emissions."""

import json
import shutil
import sys
import types

import h5py
import numpy as np
import pytest

import graph_brute as brute
from lowrank_speech.decoding import registry
from lowrank_speech.lang.graphs.load import Graph
from lowrank_speech.lang.load import Lang
from lowrank_speech.settings import read
from lowrank_speech.stages import decode, emissions, graph, lang, lm, tune
from stage_world import decode_with, done, hypotheses, make_features, refused, run, utterance

TASK = {"type": "asr"}
WORDS = ("ab", "abä", "bb", "bä", "c", "cd", "d", "dc", "dd")
"""The words of the training transcripts."""


@pytest.fixture(scope="module")
def stored(world, systems, tmp_path_factory):
    """Emissions of the test set."""
    folder = tmp_path_factory.mktemp("emissions")
    paths = {"model": systems["wav2vec2", "asr"].model, "cuts": world.features["wav2vec2"] / "test.jsonl.gz"}
    done(emissions, {}, folder / "emissions.json", out=folder, **paths)
    return folder


@pytest.fixture(scope="module")
def babble(stored, tmp_path_factory):
    """The same with random outputs: the tiny network writes hardly anything."""
    folder = tmp_path_factory.mktemp("babble") / "emissions"
    shutil.copytree(stored, folder)
    with h5py.File(folder / "emissions.h5", "a") as file:
        for seed, name in enumerate(sorted(file)):
            drawn = np.random.default_rng(seed).dirichlet(np.full(file[name].shape[1], 0.3), len(file[name]))
            file[name][...] = np.log(np.maximum(drawn, 1e-9))
    return folder


@pytest.fixture(scope="module")
def models(world, tmp_path_factory):
    """n-grams: words, more words, tokens, characters."""
    root = tmp_path_factory.mktemp("lm")
    paths = {"lang": world.lang["wav2vec2"], "cuts": world.corpus / "train.jsonl.gz"}
    for name, keys in {
        "words": {"order": 2},
        "larger": {"order": 4},
        "tokens": {"order": 3, "unit": "token"},
        "characters": {"order": 3, "unit": "character"},
    }.items():
        done(lm, {"lm": keys}, root / name / "lm.json", out=root / name, **paths)
    return root


def make_graph(world, models, folder, kind, model=None, **keys):
    paths = {"lang": world.lang["wav2vec2"]} | ({"lm": models / model} if model else {})
    return done(graph, {"graph": kind, "lm": model, **keys}, folder / "graph.json", out=folder, **paths)


@pytest.fixture(scope="module")
def graphs(world, models, tmp_path_factory):
    root = tmp_path_factory.mktemp("graph")
    found = {}
    for name, kind, model in (
        ("h", "h", None),
        ("hl", "hl", None),
        ("hlg", "hlg", "words"),
        ("hg", "hg", "tokens"),
        ("characters", "hg", "characters"),
    ):
        found[name] = make_graph(world, models, root / name, kind, model)
    return root, found


def decoded(world, stored, graphs, folder, name="hlg", cuts=None, rescore=None, **keys):
    """(exit code, manifest) of the stage decode."""
    kind = keys.pop("kind", "hlg")
    model = {"hlg": "words", "hg": "tokens", "characters": "characters"}.get(name)
    section = {"kind": kind, "graph": {"characters": "hg"}.get(name, name), "lm": model, "backend": "kaldi", **keys}
    cfg = {"task": TASK, "decoder": section | ({"rescore_lm": rescore.name} if rescore else {})}
    paths = {"emissions": stored, "graph": graphs[0] / name, "lang": world.lang["wav2vec2"], "out": folder}
    paths |= {"cuts": cuts or world.features["wav2vec2"] / "test.jsonl.gz"}
    return run(decode, cfg, folder / "decode.json", **paths, **({"rescore_lm": rescore} if rescore else {}))


# -- the stage ---------------------------------------------------------------------------------------------------------


def test_a_graph_and_its_files(world, graphs):
    root, found = graphs
    of_lang = Lang.load(world.lang["wav2vec2"])
    record, loaded = found["hlg"], Graph.load(root / "hlg")
    metrics = record["metrics"]
    assert metrics["graph"] == "hlg" and metrics["lang_sha256"] == of_lang.sha256
    assert metrics["words"] == metrics["pronunciations"] == len(WORDS)
    assert metrics["missing_words"] == metrics["words_not_in_lm"] == 0
    assert metrics["states"] == loaded.arcs.states and metrics["arcs"] == len(loaded.arcs.arcs)
    assert metrics["lm"]["unit"] == "word" and metrics["lm"]["order"] == 2
    assert set(record["outputs"]) == {
        *("HLG.fst", "G.fst", "tokens.txt", "words.txt"),
        *("lexicon.txt", "missing_words.txt", "not_in_lm.txt"),
    }
    assert loaded.symbols == WORDS and loaded.tokens == tuple(of_lang.tokens.symbols)
    assert loaded.pronunciations["abä"] == (tuple(of_lang.tokens.encode("abä")),)
    words = (root / "hlg" / "words.txt").read_text(encoding="utf-8").splitlines()
    assert words[0] == "<eps> 0" and words[1] == "ab 1" and words[-3:] == ["#0 10", "<s> 11", "</s> 12"]
    assert (root / "hlg" / "lexicon.txt").read_text(encoding="utf-8").splitlines()[1] == "abä a b ä"
    assert set(found["h"]["outputs"]) == {"H.fst", "tokens.txt"} and Graph.load(root / "h").grammar is None
    assert set(found["hg"]["outputs"]) == {"HG.fst", "G.fst", "tokens.txt"}


def test_other_programs_read_the_graph(graphs):
    import kaldifst

    table = kaldifst.SymbolTable.read_text(str(graphs[0] / "hlg" / "words.txt"))
    assert table.find("bb") == 3
    read_back = kaldifst.StdConstFst.read(str(graphs[0] / "hlg" / "HLG.fst"))
    assert read_back.num_states == graphs[1]["hlg"]["metrics"]["states"]


def test_equal_inputs_give_equal_graphs_and_other_ones_replace_all_files(world, models, graphs, tmp_path):
    made = make_graph(world, models, tmp_path, "hlg", "words")
    assert made["outputs"] == graphs[1]["hlg"]["outputs"]
    make_graph(world, models, tmp_path, "h")
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith(".")) == [
        *("H.fst", "graph.cost.json", "graph.json", "tokens.txt"),
    ]


def test_a_dictionary_and_what_it_misses(world, models, tmp_path, capsys):
    path = tmp_path / "lexicon.txt"
    path.write_text("ab a b\nab a a b\nbb b\nnew a c\nother d\n", encoding="utf-8")
    record = make_graph(world, models, tmp_path / "hlg", "hlg", "words", lexicon=str(path))
    metrics = record["metrics"]
    assert (metrics["words"], metrics["pronunciations"], metrics["words_not_in_lm"]) == (2, 3, 2)
    assert metrics["missing_words"] == len(WORDS) - 2 and list(record["sources"]) == ["lexicon"]
    missing = (tmp_path / "hlg" / "missing_words.txt").read_text(encoding="utf-8").splitlines()
    assert missing == [f"{word}\tnot in the dictionary" for word in WORDS if word not in ("ab", "bb")]
    assert (tmp_path / "hlg" / "not_in_lm.txt").read_text() == "new\tno unigram\nother\tno unigram\n"
    said = capsys.readouterr().err
    assert "7 words have no pronunciation, so they cannot be recognised (abä, bä, c, cd, d, ...)" in said
    assert "2 words have no unigram, so they cannot be recognised (new, other)" in said
    # Without an n-gram, all words of the dictionary can be recognised.
    record = make_graph(world, models, tmp_path / "hl", "hl", lexicon=str(path))
    assert record["metrics"]["words"] == 4 and Graph.load(tmp_path / "hl").symbols == ("ab", "bb", "new", "other")


def own_model(world, tmp_path, words):
    """An n-gram of another program over ``words``."""
    model = {("<s>",): (-99, 0), ("</s>",): (-0.5, 0), ("<unk>",): (-1, 0)} | {(word,): (-0.8, 0) for word in words}
    (tmp_path / "own.arpa").write_text(brute.arpa(model), encoding="utf-8")
    cfg = {"lm": {"arpa": str(tmp_path / "own.arpa")}}
    done(lm, cfg, tmp_path / "own" / "lm.json", lang=world.lang["wav2vec2"], out=tmp_path / "own")
    return tmp_path / "own"


def test_words_without_unigrams_or_characters_are_listed(world, tmp_path):
    model = own_model(world, tmp_path, ["ab", "bb", "zyx", "ay"])
    cfg, out = {"graph": "hlg", "lm": "own"}, tmp_path / "graph"
    record = done(graph, cfg, out / "graph.json", lang=world.lang["wav2vec2"], lm=model, out=out)
    assert Graph.load(out).symbols == ("ab", "bb")
    assert record["metrics"]["missing_words"] == 2 and record["metrics"]["words_not_in_lm"] == len(WORDS) - 2
    missing = (out / "missing_words.txt").read_text(encoding="utf-8")
    assert missing == "ay\tthe token set lacks y\nzyx\tthe token set lacks x y z\n"


def test_bad_input_of_the_stage_is_refused(world, models, tmp_path, capsys):
    of_lang, out = world.lang["wav2vec2"], {"out": tmp_path / "g"}
    manifest = tmp_path / "g" / "graph.json"

    def no(message, cfg, **paths):
        refused(capsys, message, graph, cfg, manifest, **{"lang": of_lang, **out, **paths})

    hlg = {"graph": "hlg", "lm": "words"}
    no("graph: hlg needs an n-gram; give the folder of the stage lm as --lm", hlg)
    no("cfg: graph: hlg needs lm, the n-gram", {"graph": "hlg"})
    no("cfg: graph: hl has no n-gram; remove lm ('words')", {"graph": "hl", "lm": "words"})
    no("cfg: graph: h has no words; remove lexicon", {"graph": "h", "lexicon": "x"})
    no("cfg.graph: 'hcl' is not valid; expected one of: h, hl, hg, hlg", {"graph": "hcl"})
    no("graph: h has no n-gram, but --lm is", {"graph": "h"}, lm=models / "words")
    no("which is over tokens; choose graph: hg", hlg, lm=models / "tokens")
    no("which is over words; choose graph: hlg", {"graph": "hg", "lm": "words"}, lm=models / "words")
    no("is Whisper's own tokenizer", {"graph": "h"}, lang=whisper_lang(tmp_path))
    model = own_model(world, tmp_path, ["AB", "XY"])
    no("have no word in common (the token set can spell none of 2 words", hlg, lm=model)
    (tmp_path / "lexicon.txt").write_text("ab a b\nq q\n", encoding="utf-8")
    keys = hlg | {"lexicon": str(tmp_path / "lexicon.txt")}
    no(f"lexicon: {tmp_path}/lexicon.txt, line 2: the token set lacks q of 'q'", keys, lm=models / "words")
    (tmp_path / "lexicon.txt").write_text("zz a b\n", encoding="utf-8")
    no("1 words of the lexicon have no unigram); check case and normalisation", keys, lm=models / "words")
    no("lexicon: nowhere cannot be read", hlg | {"lexicon": "nowhere"}, lm=models / "words")
    no(
        "is a model of the tokens of another token set",
        {"graph": "hg", "lm": "t"},
        lm=models / "tokens",
        lang=other_lang(world, tmp_path),
    )


def whisper_lang(tmp_path):
    out = tmp_path / "whisper"
    done(lang, {"seed": 1, "lang": {"kind": "whisper"}}, out / "lang.json", out=out)
    return out


def other_lang(world, tmp_path):
    """A token set with fewer characters."""
    out = tmp_path / "other"
    cfg = {"seed": 1, "lang": {"kind": "char", "min_count": 3}}
    done(lang, cfg, out / "lang.json", cuts=world.corpus / "train.jsonl.gz", out=out)
    return out


def test_a_graph_that_has_changed_is_refused(graphs, tmp_path):
    from lowrank_speech.errors import UserError

    folder = tmp_path / "graph"
    shutil.copytree(graphs[0] / "hlg", folder)
    (folder / "HLG.fst").write_bytes((folder / "HLG.fst").read_bytes()[:-4])
    with pytest.raises(UserError, match=r"HLG\.fst has changed since the stage wrote it"):
        Graph.load(folder)
    with pytest.raises(UserError, match=r"has no graph\.json; give a folder that the stage graph made"):
        Graph.load(tmp_path)


# -- decoders ----------------------------------------------------------------------------------------------------------


def test_h_hears_what_greedy_hears(world, systems, stored, graphs, tmp_path):
    decode_with(world, systems, "wav2vec2", "asr", tmp_path / "greedy")
    code, record = decoded(world, stored, graphs, tmp_path / "h", "h")
    assert code == 0 and record["metrics"]["stopped"] == {}
    for greedy, one in zip(hypotheses(tmp_path / "greedy"), hypotheses(tmp_path / "h"), strict=True):
        assert one["text"] == greedy["text"] and one["score"] == pytest.approx(greedy["score"], abs=2e-3)


@pytest.mark.parametrize("name", ["hl", "hlg", "hg", "characters"])
def test_hypotheses_are_of_the_graph_and_do_not_depend_on_the_batch(world, babble, graphs, tmp_path, name):
    _, record = decoded(world, babble, graphs, tmp_path / "one", name, batch_seconds=0.1)
    decoded(world, babble, graphs, tmp_path / "all", name, batch_seconds=600.0)
    found = hypotheses(tmp_path / "one")
    assert found == hypotheses(tmp_path / "all") and len(found) == record["metrics"]["utterances"] == 8
    if name in ("hl", "hlg"):
        for one in found:
            words = one["text"].split()
            assert set(words) <= set(WORDS)
            assert [word["text"] for word in one.get("words", [])] == words
            times = [time for word in one.get("words", []) for time in (word["start"], word["end"])]
            assert times == sorted(times) and all(0 <= time < 2 for time in times)
        assert any(one["text"] for one in found)
    else:
        assert not any("words" in one for one in found)


def test_rescoring_a_list_of_all_hypotheses_is_rescoring_the_lattice(world, babble, graphs, models, tmp_path):
    keys = {"rescore": models / "larger", "search_beam": 12.0, "lattice_beam": 3.0, "nbest": 4, "rescore_weight": 1.5}
    code, _ = decoded(world, babble, graphs, tmp_path / "nbest", kind="nbest", candidates=5000, **keys)
    assert code == 0
    code, record = decoded(world, babble, graphs, tmp_path / "rescore", kind="rescore", **keys)
    assert code == 0 and record["cfg"]["decoder"]["rescore_lm"] == "larger"
    decoded(world, babble, graphs, tmp_path / "first", search_beam=12.0, lattice_beam=3.0, nbest=4)
    listed, lattice, first = (hypotheses(tmp_path / name) for name in ("nbest", "rescore", "first"))
    for a, b in zip(listed, lattice, strict=True):
        assert a["text"] == b["text"] and a["score"] == pytest.approx(b["score"], abs=2e-3)
        texts = [one["text"] for one in b["nbest"]]
        assert texts[0] == b["text"] and len(set(texts)) == len(texts) <= 4
        scores = [one["score"] for one in b["nbest"]]
        assert scores == sorted(scores, reverse=True)
    assert [one["nbest"] for one in first] != [one["nbest"] for one in lattice]


def test_rescoring_with_the_model_of_the_graph_finds_no_other_words(world, babble, graphs, models, tmp_path):
    """Its scores replace themselves, except where backing off was cheaper in the graph."""
    decoded(world, babble, graphs, tmp_path / "hlg", lm_weight=0.7, lattice_beam=6.0)
    decoded(
        world,
        babble,
        graphs,
        tmp_path / "same",
        kind="rescore",
        lm_weight=0.7,
        lattice_beam=6.0,
        rescore=models / "words",
    )
    before, after = ([one["text"] for one in hypotheses(tmp_path / name)] for name in ("hlg", "same"))
    assert before == after


def test_the_scales_of_a_graph_are_tuned(world, babble, graphs, models, tmp_path):
    grid = {"lm_weight": [0.0, 0.5], "search_beam": [8.0]}
    decoder = {"kind": "rescore", "lm": "words", "rescore_lm": "larger", "backend": "kaldi", "lattice_beam": 4.0}
    paths = {"emissions": babble, "cuts": world.features["wav2vec2"] / "test.jsonl.gz", "lang": world.lang["wav2vec2"]}
    paths |= {"graph": graphs[0] / "hlg", "rescore_lm": models / "larger"}
    grid["rescore_weight"] = [1.0, 2.0]
    record = done(tune, {"task": TASK, "decoder": decoder, "tune": grid}, tmp_path / "tune.json", **paths)
    assert len(record["metrics"]["points"]) == 4 and set(record["metrics"]["best"]) == set(grid)
    cfg = {"task": TASK, "decoder": decoder}
    given = paths | {"tune": tmp_path / "tune.json", "out": tmp_path}
    decoding = done(decode, cfg, tmp_path / "decode.json", **given)
    assert decoding["metrics"]["tuned"] == record["metrics"]["best"]


def test_nothing_that_survives_is_an_empty_hypothesis_and_counted(world, systems, models, graphs, tmp_path, capsys):
    """An utterance of one frame, in a graph whose words need more."""
    short = utterance(tmp_path, "x-short", "a", "de", seconds=0.05)
    cuts = make_features(world, "wav2vec2", [short, *world.cuts["test"][:2]], tmp_path, "test")
    paths = {"model": systems["wav2vec2", "asr"].model, "cuts": cuts}
    done(emissions, {}, tmp_path / "e" / "emissions.json", out=tmp_path / "e", **paths)
    code, record = decoded(world, tmp_path / "e", graphs, tmp_path / "out", cuts=cuts)
    assert code == 0 and record["metrics"]["utterances"] == 3
    # As if the network had no output for it.
    with h5py.File(tmp_path / "e" / "emissions.h5", "a") as file:
        symbols = file["x-short"].shape[1]
        del file["x-short"]
        file.create_dataset("x-short", shape=(0, symbols), dtype="float32")
    rows = (tmp_path / "e" / "frames.tsv").read_text().splitlines()
    rows = [f"x-short\t0\t{row.rpartition(chr(9))[2]}" if row.startswith("x-short") else row for row in rows]
    (tmp_path / "e" / "frames.tsv").write_text("\n".join(rows) + "\n")
    for kind, more in (("hlg", {}), ("hlg", {"nbest": 3}), ("rescore", {"rescore": models / "larger"})):
        code, record = decoded(world, tmp_path / "e", graphs, tmp_path / "out", cuts=cuts, kind=kind, **more)
        assert code == 0 and record["metrics"]["stopped"] == {"nothing": 1}
        one = next(one for one in hypotheses(tmp_path / "out") if one["id"] == "x-short")
        assert one == {"id": "x-short", "text": "", "score": None, "stopped": "nothing"}
    assert (
        "the decoder stopped 1 hypotheses that are empty, because nothing survived the beam" in capsys.readouterr().err
    )


def test_bad_input_of_the_decoders_is_refused(world, stored, graphs, models, tmp_path, capsys, monkeypatch):
    cuts, of_lang = world.features["wav2vec2"] / "test.jsonl.gz", world.lang["wav2vec2"]
    folder = graphs[0] / "hlg"

    def no(message, decoder, **paths):
        cfg = {"task": TASK, "decoder": {"kind": "hlg", "lm": "words", "backend": "kaldi", **decoder}}
        given = {"emissions": stored, "cuts": cuts, "lang": of_lang, "out": tmp_path / "o", **paths}
        refused(capsys, message, decode, cfg, tmp_path / "m.json", **given)

    no("the decoder hlg reads the graph 'hlg'; give the folder of the stage graph as --graph", {})
    no("reads no lm, but --lm is", {}, graph=folder, lm=models / "words")
    again = {"kind": "rescore", "rescore_lm": "larger"}
    no("reads the rescore_lm 'larger'; give the folder of the stage lm as --rescore-lm", again, graph=folder)
    no("over tokens does not fit a graph over words", again, graph=folder, rescore_lm=models / "tokens")
    no("rescore_lm is missing; name the larger n-gram", {"kind": "rescore"}, graph=folder)
    bounded = again | {"max_active": 500}
    no(
        "kaldi-decoder cannot bound the states of a search for lattices, only k2",
        bounded,
        graph=folder,
        rescore_lm=models / "larger",
    )
    no("decoder.search_beam is 0.0; it must be above 0", {"search_beam": 0.0}, graph=folder)
    no("decoder.lattice_beam is 2000.0; it must be at most 1000", {"lattice_beam": 2000.0}, graph=folder)
    no("decoder.max_active is 10; it must be at least 100", {"max_active": 10}, graph=folder)
    no("decoder.lm_weight is -1.0; it must be at least 0", {"lm_weight": -1.0}, graph=folder)
    other, out = other_lang(world, tmp_path), tmp_path / "of_other"
    done(graph, {"graph": "hl"}, out / "graph.json", lang=other, out=out)
    no(f"{out} was made for another token table (lang_sha256 ", {"graph": "hl", "lm": None}, graph=out)
    # A k2 for another torch raises ImportError when it is imported.
    broken = tmp_path / "broken" / "k2.py"
    broken.parent.mkdir()
    broken.write_text("raise ImportError('k2 was built for torch 1.13.1,\\n this is another')\n")
    monkeypatch.syspath_prepend(str(broken.parent))
    monkeypatch.delitem(sys.modules, "k2", raising=False)
    no(
        "cannot be imported: k2 was built for torch 1.13.1, this is another; install the k2",
        {"backend": "k2"},
        graph=folder,
    )
    code, _ = decoded(world, stored, graphs, tmp_path / "auto", backend="auto")
    assert code == 0
    assert "kaldi-decoder searches the graph: k2, under torch" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "k2", types.SimpleNamespace(__path__=["k2-folder"]))
    no("k2 is not installed; Python finds the folder k2-folder instead", {"backend": "k2"}, graph=folder)


def test_the_settings_say_what_a_decoder_reads():
    from lowrank_speech.decoding.resources import read_by

    for kind in ("hlg", "nbest", "rescore"):
        cls = registry.module(kind, "ctc").Settings
        keys = {"kind": kind, "lm": "a"} | ({"rescore_lm": "b"} if kind != "hlg" else {})
        assert read(cls, keys, "decoder").graph == "hlg"
        assert read_by(cls) == (("graph",) if kind == "hlg" else ("graph", "rescore_lm"))
    assert read_by(registry.module("greedy", "ctc").Settings) == ("lm",)
    assert json.dumps(sorted(WORDS))
