"""Every layout of a corpus: what its reader finds, what it sets aside, and what stage corpus makes of it."""

import json
import re
from pathlib import Path

import pytest
import yaml
from lhotse import CutSet

from conftest import REPOSITORY
from corpus_layouts import LAYOUTS, PYARROW, Corpus
from lowrank_speech.corpora import registry
from lowrank_speech.corpora.detect import detect
from lowrank_speech.stages import corpus as stage

DOCS = REPOSITORY / "docs" / "your-data.md"


def make(name: str, root: Path) -> Corpus:
    """The corpus ``name``; skips where a package is missing."""
    if name in PYARROW:
        pytest.importorskip("pyarrow", reason="Arrow and Parquet files need pyarrow")
    root.mkdir()
    return LAYOUTS[name](root)


def run(config: dict, split: str, out: Path) -> int:
    arguments = ["--cfg", json.dumps({"seed": 1, "corpus": config}), "--split", split, "--out", str(out)]
    return stage.main([*arguments, "--manifest", str(out / f"{split}.json"), "--jobs", "2"])


def results(out: Path, split: str) -> tuple[list, dict[str, str]]:
    """Cuts, and id -> reason of what was set aside."""
    rows = [line.split("\t") for line in (out / f"{split}.set_aside.tsv").read_text().splitlines()[1:]]
    return list(CutSet.from_file(out / f"{split}.jsonl.gz")), {row[0]: row[1] for row in rows}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout(name, tmp_path):
    """Texts, languages, set-aside rows: exactly those that were written. A second run gives the same bytes."""
    made = make(name, tmp_path / "data")
    out = tmp_path / "out"
    languages, sources = set(), set()
    for split in made.texts:
        assert run(made.config, split, out) == 0
        cuts, aside = results(out, split)
        assert {cut.id: cut.supervisions[0].text for cut in cuts} == made.texts[split]
        assert aside == made.aside[split]
        for cut in cuts:
            assert cut.load_audio().shape == (1, cut.num_samples)
            languages.add(cut.supervisions[0].language)
            sources.add((cut.supervisions[0].custom or {}).get("source"))
    assert languages == made.languages
    assert sources - {None} == made.sources
    before = (out / "train.jsonl.gz").read_bytes()
    assert run(made.config, "train", out) == 0
    assert (out / "train.jsonl.gz").read_bytes() == before


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout_is_detected(name, tmp_path):
    """The folder alone gives the kind, and keys with which the config is complete once the missing ones are added."""
    made = make(name, tmp_path / "data")
    found = detect(made.config["path"])
    assert found.kind == made.config["kind"]
    given = {key: made.config[key] for key in found.missing}
    own = {key: value for key, value in made.config.items() if key not in ("splits",)}
    assert run({**own, **found.keys, **given}, "train", tmp_path / "out") == 0


def test_the_recipes_in_the_docs_exist():
    """With the installed Lhotse: the commands, and the options that they are given."""
    from lhotse.bin.modes.recipes import prepare

    lines = re.findall(r"`lhotse prepare ([^`]+)`", DOCS.read_text(encoding="utf-8"))
    assert len(lines) >= 10
    for name, *words in (line.split() for line in lines):
        params = prepare.commands[name].params
        options = {option for param in params for option in (*param.opts, *param.secondary_opts)}
        assert {word for word in words if word.startswith("-")} <= options, name
        assert sum(param.param_type_name == "argument" for param in params) == len(
            {"CORPUS", "AUDIO", "OUT"} & set(words)
        )


def test_the_configs_in_the_docs_are_valid():
    """Every section of corpora; and the table of kinds is complete."""
    text = DOCS.read_text(encoding="utf-8")
    sections = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(corpora:.*?)```", text, re.S)]
    kinds = set()
    for section in sections:
        for name, corpus in section["corpora"].items():
            kinds.add(registry.read(corpus, f"corpora.{name}").kind)
    assert kinds >= set(registry.KINDS) - {"digits", "espeak"}
    listed = re.findall(r"^\| `([a-z0-9]+)`", text, re.M)
    assert set(registry.KINDS) - {"digits", "espeak"} <= set(listed)
