"""Graphs in the workflow: which decoders share one, what reruns it, what the check refuses."""

import pytest

from lowrank_speech.fingerprints import PACKAGE
from lowrank_speech.workflow import closures
from lowrank_speech.workflow.config import graph_key, lms_used
from workflow_config import checked, refused, sliced, wildcards
from workflow_tree import Tree, tiny_config

CTC = {"base": "wav2vec2", "task": "asr", "method": "full"}


def with_graphs(**decoders):
    """tiny_config with n-grams and decoders that search graphs, on the CTC base."""
    config = tiny_config()
    config["lms"] = {
        "words": {"lang": "chars", "order": 2},
        "larger": {"lang": "chars", "order": 4},
        "tokens": {"lang": "chars", "unit": "token"},
    }
    config["decoders"] = {
        "hlg": {"kind": "hlg", "lm": "words"},
        "heavy": {"kind": "hlg", "lm": "words", "lm_weight": 2, "search_beam": 10},
        "rescore": {"kind": "rescore", "lm": "words", "rescore_lm": "larger"},
        "tokens": {"kind": "hlg", "graph": "hg", "lm": "tokens"},
        **decoders,
    }
    config["tasks"]["asr"]["decoders"] = ["greedy", *config["decoders"]]
    config["systems"] = {"bases": ["wav2vec2"], "tasks": ["asr"], "methods": ["full"]}
    return config


def test_decoders_with_the_same_graph_share_it():
    config = with_graphs()
    slices = sliced(config)
    assert len(slices.graphs()) == 2
    (lang, shared), (_, tokens) = sorted(slices.graphs())[::-1]
    found = {name: slices.resources(wildcards(**CTC, decoder=name)) for name in config["tasks"]["asr"]["decoders"]}
    assert found["hlg"] == found["heavy"] == {"graph": ("graph", lang, shared)}
    assert found["rescore"] == {"graph": ("graph", lang, shared), "rescore_lm": ("lm", "larger")}
    assert found["tokens"] == {"graph": ("graph", lang, tokens)} and found["greedy"] == {}
    cfg = slices.graph(wildcards(lang=lang, graph=shared)).cfg
    assert cfg == {"graph": "hlg", "lm": "words", "lexicon": None} and shared.startswith("hlg-words-")
    assert graph_key(cfg) == shared != graph_key({**cfg, "lexicon": "a.txt"})
    assert lms_used(slices.config, ["asr"]) == ["words", "larger", "tokens"]


def test_code_hashes_leave_out_what_a_job_does_not_run():
    slices = sliced(with_graphs(plain={"kind": "hlg", "graph": "h"}))
    graphs = {f"{PACKAGE}.{name}" for name in ("lang.graphs", "lang.lm")}

    def unused(stage, **names):
        return {f"{PACKAGE}.{name}" for name in closures.unused(stage, slices, wildcards(**names))} & graphs

    assert unused("decode", **CTC, test="test", decoder="greedy") == graphs
    assert unused("decode", **CTC, test="test", decoder="hlg") == {f"{PACKAGE}.lang.lm"}
    assert unused("decode", **CTC, test="test", decoder="rescore") == set()
    key = {slices.graph(wildcards(lang=lang, graph=graph)).cfg["graph"]: graph for lang, graph in slices.graphs()}
    assert unused("graph", lang="chars", graph=key["h"]) == {f"{PACKAGE}.lang.lm"}
    assert unused("graph", lang="chars", graph=key["hlg"]) == set()


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        ({"kind": "hlg"}, "decoders.new: graph: hlg needs lm, the n-gram; name one"),
        ({"kind": "hlg", "graph": "hl", "lm": "words"}, "decoders.new: graph: hl has no n-gram; remove lm"),
        ({"kind": "hlg", "graph": "h", "lexicon": "x"}, "decoders.new: graph: h has no words; remove lexicon"),
        ({"kind": "hlg", "lm": "wrods"}, "decoders.new.lm: 'wrods' does not exist"),
        ({"kind": "rescore", "lm": "words", "rescore_lm": "lager"}, "new.rescore_lm: 'lager' does not exist"),
        ({"kind": "hlg", "lm": "tokens"}, "new.lm: 'tokens' is over tokens, but the graph (hlg) is over words"),
        ({"kind": "hlg", "graph": "hg", "lm": "words"}, "new.lm: 'words' is over words, but the graph (hg) is over"),
        (
            {"kind": "nbest", "lm": "words", "rescore_lm": "tokens"},
            "decoders.new.rescore_lm: 'tokens' is over tokens, but the graph (hlg) is over words",
        ),
        ({"kind": "hlg", "lm": "words", "search_beam": 0}, "decoders.new.search_beam is 0; it must be above 0"),
        ({"kind": "hlg", "lm": "words", "backend": "K2"}, "decoders.new.backend: 'K2' is not valid"),
    ],
)
def test_what_does_not_go_together_is_refused(decoder, message):
    assert message in refused(with_graphs(new=decoder))


def test_the_config_is_valid():
    checked(with_graphs())


@pytest.mark.slow
def test_a_graph_is_made_once_and_again_when_its_inputs_change(tmp_path):
    config = with_graphs()
    tree = Tree(tmp_path, config)
    (tmp_path / "lexicon.txt").write_text("a a\n", encoding="utf-8")
    config["decoders"]["dictionary"] = {"kind": "hlg", "lm": "words", "lexicon": "lexicon.txt"}
    config["tasks"]["asr"]["decoders"].append("dictionary")
    tree.write(config)
    tree.run()
    made = tree.made()
    assert sum("/graph/chars/hlg-words-" in path for path in made) == 2  # spelled, and with the dictionary
    assert sum("/graph/" in path for path in made) == 3
    assert tree.due() == {}

    def due(**keys):
        """What reruns if the decoder `hlg` gets other keys."""
        changed = with_graphs()
        changed["decoders"]["dictionary"] = config["decoders"]["dictionary"]
        changed["tasks"]["asr"]["decoders"].append("dictionary")
        changed["decoders"]["hlg"] |= keys
        tree.write(changed)
        return tree.due()

    again = {"decode": 1, "score": 1, "report": 1}
    assert due(lm_weight=1.0) == again
    assert due(graph="hl", lm=None) == again | {"graph": 1}
    tree.write(config)
    (tmp_path / "lexicon.txt").write_text("a a\nb b\n", encoding="utf-8")
    assert tree.due() == again | {"graph": 1}
    (tmp_path / "lexicon.txt").unlink()
    done = tree.snakemake("--dry-run")
    assert done.returncode and "error in the config: decoders: the lexicon lexicon.txt does not exist" in done.stdout
