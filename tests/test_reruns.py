"""Exact reruns: which edit reruns which jobs, on a copy of the workflow with stub stages (workflow_tree.py).

The tree is built once. Each case edits it, runs a dry run and reverts the edit. Docs: docs/RELIABILITY.md.
"""

import contextlib
import copy
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from workflow_tree import REPOSITORY, Tree, tiny_config

pytestmark = pytest.mark.slow

Jobs = dict[str, int]

# The whole grid is 2 bases x 2 tasks x 4 methods: 8 systems a task, 4 a method; each has one decoder and one test set.
SYSTEMS = 16
RESULTS = {"decode": SYSTEMS, "score": SYSTEMS, "report": 1}
FROM_TRAIN = {"train": SYSTEMS, **RESULTS}
# The features of waveforms do not look at the base.
FROM_BASE = {"base": 2, "features": 6, "calibrate": 2, "factorise": 4, **FROM_TRAIN}


def systems(number: int) -> Jobs:
    """So many systems, trained, decoded and scored."""
    return {"train": number, "decode": number, "score": number, "report": 1}


OF_WHISPER = {"calibrate": 1, "factorise": 2, **systems(8)}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """The tree, complete: everything has run once."""
    built = Tree(tmp_path_factory.mktemp("reruns"), tiny_config())
    built.run()
    return built


@contextlib.contextmanager
def edited(path: Path, change: Callable[[str], str]) -> Iterator[None]:
    """``path`` with its text changed, and back afterwards with its times."""
    before, times = path.read_text(encoding="utf-8"), path.stat()
    after = change(before)
    assert after != before, f"the edit does not change {path}"
    path.write_text(after, encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(before, encoding="utf-8")
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def due_with(tree: Tree, change: Callable[[dict[str, Any]], Any]) -> Jobs:
    """What would run after ``change`` of the config (in place, or a new one that it returns)."""
    config = tiny_config()
    changed = change(config)
    tree.write(changed if isinstance(changed, dict) else config)
    try:
        return tree.due()
    finally:
        tree.write(tiny_config())


def put(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """An edit that sets the key at the dotted ``path``."""

    def change(config: dict[str, Any]) -> None:
        *sections, key = path.split(".")
        for section in sections:
            config = config.setdefault(section, {})
        config[key] = value

    return change


def several(*changes: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], None]:
    """Edits one after the other."""

    def change(config: dict[str, Any]) -> None:
        for one in changes:
            one(config)

    return change


def reverse(value: Any) -> Any:
    """All mappings in the opposite order of keys."""
    if isinstance(value, dict):
        return {key: reverse(value[key]) for key in reversed(value)}
    return value


def add_method(config: dict[str, Any]) -> None:
    config["methods"]["another"] = copy.deepcopy(config["methods"]["lowrank"]) | {"constraint": {"mode": "exact"}}
    config["systems"]["methods"].append("another")


def add_seed(config: dict[str, Any]) -> None:
    config["methods"]["again"] = config["methods"]["full"] | {"seed": 2}
    config["systems"]["methods"].append("again")


def add_base(config: dict[str, Any]) -> None:
    config["bases"]["second"] = copy.deepcopy(config["bases"]["whisper"]) | {"model": {"encoder_layers": 1}}
    config["systems"]["bases"].append("second")


def add_task(config: dict[str, Any]) -> None:
    config["tasks"]["short"] = copy.deepcopy(config["tasks"]["lid"]) | {"segment": {"seconds": 1}}
    config["systems"]["tasks"].append("short")


def drop_base(config: dict[str, Any]) -> None:
    config["systems"]["bases"].remove("whisper")


OTHER_TEST = {"test": {"split": "test"}, "children": {"split": "children"}}


def test_nothing_to_do(tree):
    assert tree.due() == {}


# -- extending an experiment -------------------------------------------------------------------------------------------

EXTENSIONS = {
    "a test set of the same corpus": (
        several(
            put("corpora.ocean.splits.children", {"source": "children"}),
            put("tasks.asr.test", ["test", "children"]),
        ),
        {"corpus": 1, "overlap": 1, "features": 2, "decode": 8, "score": 8, "report": 1},
    ),
    "a test set of another corpus": (
        put("tasks.asr.test", {"test": {"split": "test"}, "far": {"corpus": "babel", "split": "test"}}),
        {"overlap": 1, "decode": 8, "score": 8, "report": 1},
    ),
    "the short form of the test sets spelt out": (put("tasks.asr.test", {"test": {"split": "test"}}), {}),
    "the dev set, decoded": (lambda config: None, {}),
    "a decoder": (
        several(
            put("decoders.short", {"kind": "greedy", "batch_seconds": 5}),
            put("tasks.asr.decoders", ["greedy", "short"]),
        ),
        {"decode": 8, "score": 8, "report": 1},
    ),
    "a decoder that no task uses": (put("decoders.short", {"kind": "greedy", "batch_seconds": 5}), {}),
    "a method that shares a factorisation": (add_method, systems(4)),
    "a seed": (add_seed, systems(4)),
    "a base": (add_base, {"base": 1, "features": 6, "calibrate": 1, "factorise": 2, **systems(8)}),
    "a task": (add_task, {"overlap": 1, **systems(8)}),
    "a split that no task uses": (put("corpora.ocean.splits.extra", {"source": "dev", "part": [0.5, 0.6]}), None),
    "a base less": (drop_base, {"report": 1, "overlap": 0}),
}


@pytest.mark.parametrize("name", EXTENSIONS)
def test_an_extension_runs_the_new_jobs_only(tree, name):
    change, expected = EXTENSIONS[name]
    if expected is None:  # splits may not overlap: the config is refused, and nothing runs
        config = tiny_config()
        change(config)
        tree.write(config, "refused.yaml")
        done = tree.snakemake("--dry-run", "--configfile", "refused.yaml")
        assert done.returncode != 0 and "overlap" in done.stdout
        return
    folder = tree.root / "data/ocean/children"
    shutil.copytree(tree.root / "data/ocean/dev", folder)
    try:
        assert due_with(tree, change) == {rule: n for rule, n in expected.items() if n}
    finally:
        shutil.rmtree(folder)


# -- the config --------------------------------------------------------------------------------------------------------

CONFIG_EDITS = {
    "order of the keys": (reverse, {}),
    "title": (put("experiment", "other"), {"report": 1}),
    "report key": (put("report.dpi", 90), {"report": 1}),
    "bootstrap": (put("score.bootstrap", 60), {"score": SYSTEMS, "report": 1}),
    "score key of one type": (put("score.p_target", [0.5]), {"score": 8, "report": 1}),
    "decode key": (put("decode.batch_seconds", 20), RESULTS),
    "decode key of one family": (put("decode.language", "detect"), {"decode": 4, "score": 4, "report": 1}),
    "decode key of one type": (put("decode.priors", False), {"decode": 8, "score": 8, "report": 1}),
    "training key": (put("training.lr", 0.01), FROM_TRAIN),
    "training key of a method": (put("methods.full.training.lr", 0.01), systems(4)),
    "training key of a base": (put("bases.whisper.training.lr", 0.01), systems(8)),
    "training key of a task": (put("tasks.lid.training.lr", 0.1), systems(8)),
    "override equal to what is below": (put("methods.full.training.lr", 0.001), {}),
    "key of the task": (put("tasks.lid.segment.seconds", 2), systems(8)),
    "lora": (put("methods.lowrank_lora.lora.rank", 3), systems(4)),
    "constraint": (put("methods.lowrank.constraint.probability", 0.5), systems(4)),
    "progressive truncation": (put("methods.aware.progressive", {}), {"factorise": 2, **systems(4)}),
    "its schedule": (
        several(put("methods.aware.progressive", {}), put("methods.aware.progressive.stages", 2)),
        {"factorise": 2, **systems(4)},
    ),
    "a teacher": (put("methods.lowrank.distil", {"teacher": "full"}), systems(4)),
    "a teacher, and speech for it alone": (
        put("methods.lowrank.distil", {"teacher": "full", "untranscribed": {"corpus": "babel", "split": "pretrain"}}),
        {"overlap": 2, "features": 2, **systems(4)},
    ),
    "a teacher that trains otherwise": (
        several(put("methods.lowrank.distil", {"teacher": "full"}), put("methods.full.training", {"lr": 0.002})),
        systems(8),
    ),
    "calibration": (put("calibrate.utterances", 5), {"calibrate": 2, "factorise": 2, **systems(4)}),
    "factorisation of one of two that share": (
        put("methods.lowrank.factorise.reduction", 0.3),
        {"factorise": 2, **systems(4)},
    ),
    "pretraining": (put("bases.whisper.pretrain.epochs", 3), {"base": 1, "features": 6, **OF_WHISPER}),
    "vocabulary": (put("langs.pieces.vocab_size", 61), {"lang": 1, "base": 1, "features": 6, **OF_WHISPER}),
    "kind of a token set": (
        put("langs.chars", {"kind": "sentencepiece", "corpora": ["babel"], "splits": ["pretrain"], "vocab_size": 60}),
        {"lang": 1, "base": 1, "calibrate": 1, "factorise": 2, **systems(8)},
    ),
    "kind of features": (
        put("bases.whisper.features", "waveform"),
        {"features": 6, "calibrate": 1, "factorise": 1, "train": 8, "decode": 8, "score": 8, "report": 1},
    ),
    "another language": (
        put("corpora.babel.languages", ["de", "en", "es"]),
        {
            "corpus": 4,
            "overlap": 2,
            "lang": 2,
            "features": 9,
            **{k: v for k, v in FROM_BASE.items() if k != "features"},
        },
    ),
    "the other corpus": (
        put("corpora.ocean.language", "xx"),
        {"corpus": 3, "overlap": 1, "features": 6, **systems(8)},
    ),
    "size of a test set": (
        put("corpora.ocean.splits.test.max_utterances", 1),
        {"corpus": 1, "overlap": 1, "features": 2, "decode": 8, "score": 8, "report": 1},
    ),
    "a split more, and another one changed": (
        several(
            put("corpora.ocean.splits.late", {"source": "late"}),
            put("corpora.ocean.splits.test.max_utterances", 1),
        ),
        {"corpus": 1, "overlap": 1, "features": 2, "decode": 8, "score": 8, "report": 1},
    ),
    "seed": (
        put("seed", 2),
        {
            "corpus": 7,
            "overlap": 2,
            "lang": 2,
            "features": 12,
            **{k: v for k, v in FROM_BASE.items() if k != "features"},
        },
    ),
    # What changes no result runs nothing.
    "workers": (put("runtime.workers", 2), {}),
    "workers, in the recipe": (put("training.workers", 2), {}),
    "save interval": (put("training.save_minutes", 3), {}),
    "TensorBoard": (put("runtime.tensorboard", True), {}),
    "dry run": (put("training.dry_run", True), {}),
    "device": (several(put("training.device", "cpu"), put("decode.device", "cpu"), put("calibrate.device", "cpu")), {}),
    "device of a pretraining": (put("bases.whisper.pretrain.device", "cpu"), {}),
    # Defaults may be spelt out anywhere.
    "defaults of a recipe": (put("training.warmup", 0.1), {}),
    "defaults of a factorisation": (
        several(
            put("methods.lowrank.factorise.init", "svd"),
            put("methods.lowrank.factorise.multiple_of", 1),
            put("methods.lowrank_lora.factorise.rank", None),
        ),
        {},
    ),
    "defaults of lora": (put("methods.lowrank_lora.lora.alpha", 16), {}),
    "defaults of a constraint": (put("methods.aware.constraint", {"mode": "floating", "probability": 0.25}), {}),
    "defaults of a split": (put("corpora.ocean.splits.test.by", "speaker"), {}),
    "defaults of a token set": (put("langs.pieces.normalise", {"case": "lower"}), {}),
    "a whole number for a number": (put("decode.batch_seconds", 30.0), {}),
}


@pytest.mark.parametrize("name", CONFIG_EDITS)
def test_config_edit(tree, name):
    change, expected = CONFIG_EDITS[name]
    assert due_with(tree, change) == expected


def test_window_of_a_published_base(tree):
    """Base and all that is made with it; another base's systems stay."""
    config = tiny_config()
    config["output"] = "exp/published"
    config["langs"]["own"] = {"kind": "whisper"}
    hub = {"family": "whisper", "source": "openai/whisper-tiny", "lang": "own", "features": "logmel"}
    config["bases"]["whisper"] = hub
    config["systems"] |= {"tasks": ["lid"], "methods": ["full", "lowrank"]}
    try:
        tree.write(config)
        tree.run()
        hub["window"] = 10
        tree.write(config)
        assert tree.due() == {"base": 1, "features": 3, "factorise": 1, **systems(2)}
        hub["window"] = None
        tree.write(config)
        assert tree.due() == {}
    finally:
        tree.write(tiny_config())


# -- the code ----------------------------------------------------------------------------------------------------------


def comment(text: str) -> str:
    return f"{text}\n# a comment\n"


def docstring(text: str) -> str:
    return text.replace('"""', '"""Another beginning. ', 1)


def statement(text: str) -> str:
    return f"{text}\nANOTHER_CONSTANT = 1\n"


OF_BABEL = {"corpus": 4, "overlap": 2, "lang": 2, **FROM_BASE, "features": 9}
DECODED_BY = {"greedy, CTC": 4, "greedy, Whisper": 4, "scores": 8}

CODE_EDITS = {
    "comment": ("training/loop.py", comment, {}),
    "docstring": ("training/loop.py", docstring, {}),
    "training loop": ("training/loop.py", statement, FROM_BASE),
    "setting up an adaptation": ("training/adapt.py", statement, FROM_TRAIN),
    "CTC loss": (
        "training/losses/ctc.py",
        statement,
        {"base": 1, "calibrate": 1, "factorise": 2, **systems(8 + 4 - 4)},
    ),
    "sequence-to-sequence loss": ("training/losses/seq2seq.py", statement, {"base": 1, "features": 6, **OF_WHISPER}),
    "classification loss": ("training/losses/language.py", statement, systems(8)),
    "LF-MMI, which no method uses": ("training/losses/lfmmi.py", statement, {}),
    "its denominator": ("training/losses/denominator.py", statement, {}),
    "LoRA": ("lowrank/lora.py", statement, systems(4)),
    "constraint": ("lowrank/constraint.py", statement, systems(8)),
    "truncation, which no method uses": ("lowrank/truncate.py", statement, {}),
    "distillation, which no method uses": ("training/losses/distil.py", statement, {}),
    "speech for a teacher alone, which no method uses": ("training/losses/untranscribed.py", statement, {}),
    "its transcripts": ("training/data/untranscribed.py", statement, {}),
    "ranks": ("lowrank/plan.py", statement, {"factorise": 4, **systems(12)}),
    "allocation of ranks": ("lowrank/allocate.py", statement, {}),
    "factors": ("lowrank/factors.py", statement, {"factorise": 4, **systems(12)}),
    "pooled head": ("models/heads/pooled.py", statement, systems(8)),
    "greedy search of CTC": ("decoding/ctc/greedy.py", statement, {"decode": 4, "score": 4, "report": 1}),
    "greedy search of Whisper": ("decoding/whisper/greedy.py", statement, {"decode": 4, "score": 4, "report": 1}),
    "language scores": ("decoding/language/scores.py", statement, {"decode": 8, "score": 8, "report": 1}),
    "scoring of recognition": ("scoring/asr.py", statement, {"score": 8, "report": 1}),
    "scoring of languages": ("scoring/lid.py", statement, {"score": 8, "report": 1}),
    "report": ("reporting/page.py", statement, {"report": 1}),
    "style sheet": ("reporting/page.css", lambda text: f"{text}\np {{}}\n", {"report": 1}),
    "reader of one kind": ("corpora/espeak.py", statement, OF_BABEL),
    "reader of a kind that is not used": ("corpora/tsv.py", statement, {}),
    "a family that is not used": ("models/families/w2v_bert.py", statement, {}),
    "sentences": ("corpora/sentences/de.yaml", comment, OF_BABEL),
    "overlap check": ("stages/overlap.py", statement, {"overlap": 2, "report": 1}),
    "orchestration": ("workflow/paths.py", statement, {}),
    "words of errors": ("settings_errors.py", statement, {}),
    "help": ("stages/keys.py", statement, {}),
    "command line": ("cli.py", statement, {}),
}


@pytest.mark.parametrize("name", CODE_EDITS)
def test_code_edit(tree, name):
    file, change, expected = CODE_EDITS[name]
    with edited(tree.root / "src" / "lowrank_speech" / file, change):
        assert tree.due() == expected


def test_comment_in_rule(tree):
    with edited(tree.root / "workflow" / "rules" / "train.smk", comment):
        assert tree.due() == {}


# -- what people edit outside ------------------------------------------------------------------------------------------


def test_an_edited_transcript_runs_what_is_made_from_it(tree):
    table = tree.root / "data/ocean/dev/text"
    with edited(table, lambda text: text.replace("hello", "hallo")):
        assert tree.due() == {"corpus": 1, "overlap": 1, "features": 2, "decode": 8, "score": 8, "report": 1}
    with edited(tree.root / "data/ocean/train/utt2spk", lambda text: text.replace("somebody", "anybody")):
        assert tree.due() == {"corpus": 2, "overlap": 1, "features": 4, **systems(8)}
    assert tree.due() == {}


def test_a_table_that_comes_or_goes_counts_as_an_edit(tree):
    table = tree.root / "data/ocean/dev/utt2lang"
    table.write_text("dev1 en\n", encoding="utf-8")
    try:
        assert tree.due()["corpus"] == 1
    finally:
        table.unlink()
    assert tree.due() == {}


def test_touched_data_are_the_same_data(tree):
    for path in (tree.root / "data").rglob("*"):
        os.utime(path)
    assert tree.due() == {}


def test_data_that_are_elsewhere_now_are_no_reason_to_start_again(tree):
    moved = tree.root / "data" / "elsewhere"
    (tree.root / "data" / "ocean").rename(moved)
    try:
        assert tree.due() == {}
    finally:
        moved.rename(tree.root / "data" / "ocean")


def test_edited_weights_of_a_local_base(tree):
    folder = tree.root / "mine"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    config = tiny_config()
    config["output"] = "exp/local"
    config["bases"]["wav2vec2"] = {"family": "wav2vec2", "source": "mine", "features": "waveform"}
    config["systems"] = {"bases": ["wav2vec2"], "tasks": ["lid"], "methods": ["full"]}
    try:
        tree.write(config)
        tree.run()
        assert tree.due() == {}
        (folder / "model.safetensors").write_bytes(b"WEIGHTS")
        assert tree.due() == {"base": 1, **systems(1)}
        tree.run()
        assert tree.due() == {}
    finally:
        tree.write(tiny_config())


def test_edited_recordings_of_noise(tree):
    folder = tree.root / "noises"
    folder.mkdir()
    (folder / "a.wav").write_bytes(b"noise")
    config = tiny_config()
    config["output"] = "exp/noisy"
    config["systems"] = {"bases": ["wav2vec2"], "tasks": ["lid"], "methods": ["full", "lowrank"]}
    config["methods"]["full"]["training"] = {"noise": {"folder": "noises"}}
    try:
        tree.write(config)
        tree.run()
        assert tree.due() == {}
        os.utime(folder / "a.wav")
        assert tree.due() == {}
        (folder / "a.wav").write_bytes(b"NOISE")
        assert tree.due() == systems(1)
        (folder / "a.wav").write_bytes(b"noise")
        assert tree.due() == {}
        (folder / "b.wav").write_bytes(b"another")
        assert tree.due() == systems(1)
        folder.rename(tree.root / "elsewhere")  # what is trained already does not need it
        assert tree.due() == {}
        config["methods"]["aware"]["training"] = {"noise": {"folder": "noises"}}
        config["systems"]["methods"].append("aware")
        tree.write(config, "lost.yaml")
        done = tree.snakemake("--dry-run", "--configfile", "lost.yaml")
        assert done.returncode != 0
        assert "noise.folder: noises does not exist; correct the path (the system wav2vec2/lid/aware)" in done.stdout
    finally:
        tree.write(tiny_config())


def test_a_language_model_and_its_text(tree):
    text, target = tree.root / "more.txt", "exp/tiny/lm/words/lm.json"
    text.write_text("a\n")
    config = tiny_config()
    config["lms"] = {"words": {"lang": "chars", "text": ["more.txt"], "dev": {"corpus": "babel", "split": "dev"}}}
    try:
        tree.write(config)
        assert tree.due() == {} and tree.due(target) == {"lm": 1}
        command = next(line for line in tree.commands(target))
        assert "--lang exp/tiny/lang/chars" in command and "--cuts exp/tiny/corpus/babel/pretrain.jsonl.gz" in command
        assert "--dev-cuts exp/tiny/corpus/babel/dev.jsonl.gz" in command
        tree.run(target)
        assert tree.due(target) == {}
        text.write_text("b\n")
        assert tree.due(target) == {"lm": 1}
        text.write_text("a\n")
        with edited(tree.root / "src/lowrank_speech/lang/lm/estimate.py", statement):
            assert tree.due(target) == {"lm": 1}
        config["lms"]["words"]["order"] = 2
        tree.write(config)
        assert tree.due(target) == {"lm": 1}
    finally:
        tree.write(tiny_config())


# -- what Snakemake does not see ---------------------------------------------------------------------------------------

ARTEFACTS = {
    "hypotheses": (
        "decode/whisper/asr/full/greedy/test/hyp.txt",
        {"decode": 1, "score": 1, "report": 1},
    ),
    "a declared output": ("train/whisper/lid/full/metrics.jsonl", systems(1)),
    "a file that only the manifest names": (
        "lang/chars/tokens.txt",
        {"lang": 1, "base": 1, "calibrate": 1, "factorise": 2, **systems(8)},
    ),
    "cuts": (
        "corpus/ocean/test.jsonl.gz",
        {"corpus": 1, "overlap": 1, "features": 2, "decode": 8, "score": 8, "report": 1},
    ),
}


@pytest.mark.parametrize("name", ARTEFACTS)
@pytest.mark.parametrize("damage", ["gone", "truncated"])
def test_a_damaged_artefact_is_made_again(tree, name, damage):
    file, expected = ARTEFACTS[name]
    path = tree.root / "exp/tiny" / file
    before, times = path.read_bytes(), path.stat()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(before[:-1])
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    try:
        assert tree.due() == expected
    finally:
        path.write_bytes(before)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert tree.due() == {}


def test_a_manifest_that_cannot_be_read_is_made_again(tree):
    path = tree.root / "exp/tiny/score/whisper/lid/full/scores/test/score.json"
    with edited(path, lambda text: text[:-5]):
        assert tree.due() == {"score": 1, "report": 1}


def records(tree: Tree) -> Path:
    return tree.root / ".snakemake" / "metadata"


def test_without_any_record_of_snakemake_nothing_runs_that_is_as_it_should_be(tree):
    kept = tree.root / "kept"
    records(tree).rename(kept)
    try:
        assert tree.due() == {}
        assert due_with(tree, put("training.lr", 0.01)) == FROM_TRAIN
        assert due_with(tree, put("langs.pieces.vocab_size", 61)) == {"lang": 1, "base": 1, "features": 6, **OF_WHISPER}
        with edited(tree.root / "src/lowrank_speech/scoring/asr.py", statement):
            assert tree.due() == {"score": 8, "report": 1}
    finally:
        shutil.rmtree(records(tree), ignore_errors=True)
        kept.rename(records(tree))


def test_a_file_that_nothing_recorded_is_made_again(tree):
    """A new version declares one output more: the old files have records, and the new one has none."""
    rule = tree.root / "workflow/rules/score.smk"
    with (
        edited(
            rule,
            lambda text: text.replace(
                'manifest=f"{layout.score()}/score.json"',
                'manifest=f"{layout.score()}/score.json",\n        more=f"{layout.score()}/more.txt"',
            ),
        ),
        edited(tree.root / "src/lowrank_speech/stages/score.py", statement),
    ):
        assert tree.due() == {"score": SYSTEMS, "report": 1}


def test_what_is_made_again_with_equal_bytes_runs_nothing_below_in_the_next_run(tree):
    tree.made()
    assert "Nothing to be done" not in tree.run("-R", "corpus", "--until", "corpus")
    assert len(tree.made()) == 7
    assert tree.due() == {}


def test_touching_everything(tree):
    for path in tree.root.rglob("*"):
        if path.is_file() and ".snakemake" not in path.parts:
            os.utime(path)
    assert tree.due() == {}


def test_weights_are_not_compared_by_time(tree):
    weights = tree.root / "exp/tiny/base/whisper/model/model.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(bytes(len(before)))
    try:
        assert tree.due() == {}
    finally:
        weights.write_bytes(before)


def test_an_edit_runs_exactly_what_it_concerns(tree):
    config = tiny_config()
    put("methods.full.training.lr", 0.01)(config)
    tree.made()
    tree.write(config)
    try:
        tree.run()
        names = [(base, task) for base in ("wav2vec2", "whisper") for task in ("asr", "lid")]
        decoder = {"asr": "greedy", "lid": "scores"}
        expected = [f"exp/tiny/train/{base}/{task}/full/train.json" for base, task in names]
        for stage in ("decode", "score"):
            expected += [f"exp/tiny/{stage}/{b}/{t}/full/{decoder[t]}/test/{stage}.json" for b, t in names]
        assert tree.made() == sorted([*expected, "exp/tiny/report/report.json"])
        assert "Nothing to be done" in tree.run()
    finally:
        tree.write(tiny_config())
        tree.run()


# -- every key, every module -------------------------------------------------------------------------------------------


def test_the_dev_set_can_be_decoded(tree):
    target = "exp/tiny/decode/whisper/asr/full/greedy/dev/decode.json"
    assert tree.due(target) == {"decode": 1}


DECODER_KEYS = {
    "hlg": {"lm": "words"},
    "nbest": {"lm": "words", "rescore_lm": "words"},
    "rescore": {"lm": "words", "rescore_lm": "words"},
    "scores": {"out_of_set": "xx"},
    "embeddings": {"out_of_set": "xx"},
}
"""What kinds of decoders need, and keys that no slice has unless they are set."""


def test_every_key_of_the_schema_is_compared_or_declared_neutral():
    """A key that no slice sees would be a setting that can change and run nothing."""
    sys.path.insert(0, str(REPOSITORY / "src"))
    from lowrank_speech.workflow import config as configs
    from lowrank_speech.workflow import schema as schemas
    from lowrank_speech.workflow.slices import Slices

    root = json.loads((REPOSITORY / "workflow/schemas/config.schema.json").read_text(encoding="utf-8"))
    config = tiny_config()
    config["lms"] = {"words": {"lang": "chars"}}
    kinds = {name.split(".")[1] for name in root["$defs"] if name.startswith("decoder.")}
    config["decoders"] = {kind: {"kind": kind, **DECODER_KEYS.get(kind, {})} for kind in sorted(kinds)}
    for task in config["tasks"].values():
        task["decoders"] = [kind for kind in sorted(kinds) if task["type"] in root["decoders"][kind]["types"]]
    for loss in root["modules"]["losses"]:
        config["methods"][loss] = {"adapt": "full", "training": {"loss": loss}}
    config["systems"]["methods"] = [*config["systems"]["methods"], *root["modules"]["losses"]]
    found = schemas.resolve(configs.complete(config), root, root)
    slices, seen, decoded = Slices(found, root), set(), {}
    for result in configs.results(found, root):
        train, own = slices.train(result), slices.decode(result)
        seen |= set(train.cfg["training"]) | set(train.runtime) | set(slices.score(result).cfg["score"])
        decoded.setdefault(slices.decoder_section(result), set(own.cfg["decoder"]) | set(own.runtime))
    wanted = {key for name in ("training", "score") for key in root["$defs"][name]["properties"]}
    # Every kind for each task of models that it decodes.
    assert decoded == {
        name: set(node["properties"]) for name, node in root["$defs"].items() if name.startswith("decoder.")
    }
    assert wanted - seen == set()
