"""Every layout goes from the folder through the stages corpus and features to a step of training."""

import json
from types import SimpleNamespace

import pytest
from lhotse import CutSet

import stage_world
from corpus_layouts import LAYOUTS
from lowrank_speech.stages import corpus, features, lang, train
from test_corpora_layouts import make

RECOGNISED = [name for name in LAYOUTS if name not in ("voxlingua107", "lre")]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A token set with all letters and a base."""
    root = tmp_path_factory.mktemp("models")
    (root / "wav").mkdir()
    world = SimpleNamespace(root=root, corpus=root, lang={}, base={})
    for split in ("train", "dev"):
        texts = ("abcd", "d'cba\"ä") if split == "train" else ("ab", "cd")
        cuts = [stage_world.utterance(root / "wav", f"{split}{i}", text, "en") for i, text in enumerate(texts)]
        CutSet.from_cuts(cuts).to_file(root / f"{split}.jsonl.gz")
    folder = world.lang["wav2vec2"] = root / "lang"
    cfg = {"seed": 1, "lang": {"kind": "char", "for": "ctc", "normalise": {"tags": {"[*]": None}}}}
    stage_world.done(lang, cfg, folder / "lang.json", cuts=root / "train.jsonl.gz", out=folder)
    recipe = {"pretrain": {**stage_world.RECIPE, "epochs": 1}}
    stage_world.make_base(world, "wav2vec2", root / "base", **recipe)
    world.base["wav2vec2"] = root / "base" / "model"
    return world


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_from_the_folder_to_a_trained_model(name, models, tmp_path):
    made = make(name, tmp_path / "data")
    task = "asr" if name in RECOGNISED else "lid"
    for split in ("train", "dev"):
        arguments = ["--cfg", json.dumps({"seed": 1, "corpus": made.config}), "--split", split]
        out = ["--out", str(tmp_path / "corpus"), "--manifest", str(tmp_path / f"corpus/{split}.json")]
        assert corpus.main([*arguments, *out]) == 0
        paths = {"cuts": tmp_path / f"corpus/{split}.jsonl.gz", "base": models.base["wav2vec2"]}
        manifest = tmp_path / f"features/{split}.json"
        stage_world.done(features, {"kind": "conv"}, manifest, out=tmp_path / f"features/{split}.jsonl.gz", **paths)
    models.features = {"wav2vec2": tmp_path / "features"}
    cfg = stage_world.train_cfg(task, training={"epochs": 1})
    paths = stage_world.train_paths(models, "wav2vec2", tmp_path / "train", task)
    record = stage_world.done(train, cfg, tmp_path / "train/train.json", **paths)
    assert record["metrics"]["steps"] >= 1
    seen = len(list(CutSet.from_file(tmp_path / "features/train.jsonl.gz")))
    assert seen == len(made.texts["train"])
