"""Language recognition on tones: pieces of test sets, crops, embeddings, open sets, channels, controls, splits."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lhotse import CutSet
from safetensors.numpy import load_file

from lowrank_speech.errors import UserError
from lowrank_speech.features.batches import Loader, piece
from lowrank_speech.features.channel import through
from lowrank_speech.features.crops import Crops
from lowrank_speech.features.inputs import Inputs
from lowrank_speech.features.kept import ListedCuts, keep
from lowrank_speech.models import mean_logmel
from lowrank_speech.models.folder import load_model, save_model
from lowrank_speech.models.scratch import from_scratch
from lowrank_speech.scoring import files
from lowrank_speech.stages import decode, overlap, train
from lowrank_speech.training.config import TrainConfig
from lowrank_speech.training.data.plan import batching, plan
from lowrank_speech.training.data.shuffled import shuffled
from stage_world import done, refused, table, utterance
from tiny_models import WHISPER
from tiny_training import lang_of

TEXTS = {"de": ["ab", "ba", "aba", "bab"], "en": ["cd", "dc", "cdc", "dcd"], "es": ["xz", "zx", "xzx", "zxz"]}
RECIPE = {"epochs": 2, "batch_seconds": 2.0, "head_lr": 0.02, "dropout": 0.0}


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    """A base, and cuts with samples of three splits; languages differ in pitch."""
    root = tmp_path_factory.mktemp("tones")
    save_model(from_scratch("whisper", WHISPER, lang_of(["de", "en"]).tokens, 1, "random"), root / "base")
    cuts = {}
    for split in ("train", "dev", "test"):
        cuts[split] = [
            utterance(root, f"{split}-{language}{i}", text, language, speaker=f"{split}-{language}{i % 2}")
            for language, texts in TEXTS.items()
            for i, text in enumerate(texts)
        ]
        CutSet.from_cuts(cuts[split]).to_file(root / f"{split}.jsonl.gz")
    return SimpleNamespace(root=root, base=root / "base", cuts=cuts)


def trained(tones, folder, **keys):
    """Train a classifier for de and en."""
    task = {"type": "lid", "languages": ["de", "en"]} | keys.pop("task", {})
    cfg = {"seed": 1, "task": task, "adapt": "head", "head": {"kind": "statistics"}, "training": RECIPE} | keys
    cfg = {key: value for key, value in cfg.items() if value is not None}
    return done(train, cfg, folder / "train.json", **paths(tones, folder))


def paths(tones, folder):
    found = {f"{split}_cuts": tones.root / f"{split}.jsonl.gz" for split in ("train", "dev")}
    return found | {"model": tones.base, "out": folder, "scratch": folder / "scratch"}


@pytest.fixture(scope="module")
def system(tones):
    folder = tones.root / "system"
    trained(tones, folder)
    return folder / "model"


def decoded(tones, model, folder, **keys):
    cfg = {"task": {"type": "lid"}, "decoder": {"batch_seconds": 2.0}} | keys
    return done(decode, cfg, folder / "decode.json", model=model, cuts=tones.root / "test.jsonl.gz", out=folder)


# -- pieces ------------------------------------------------------------------------------------------------------------


def test_pieces_of_test_utterances(tones, system, tmp_path):
    record = decoded(tones, system, tmp_path / "a", cut={"seconds": 0.35, "place": "middle", "shorter": "set-aside"})
    rows = table(tmp_path / "a" / "set_aside.tsv")
    short = {row["id"] for row in rows if row["reason"] == "shorter than the pieces of the test set"}
    assert short == {cut.id for cut in tones.cuts["test"] if cut.duration < 0.33}
    seconds = files.read_seconds(tmp_path / "a" / "seconds.tsv")
    assert set(seconds.values()) == {0.35} and record["metrics"]["utterances"] == len(seconds) == 4
    decoded(tones, system, tmp_path / "b", cut={"seconds": 0.35, "place": "middle", "shorter": "keep"})
    kept = files.read_seconds(tmp_path / "b" / "seconds.tsv")
    assert set(kept.values()) == {0.3, 0.35} and len(kept) == 8
    # A random piece is another one, and always the same.
    again = [tmp_path / name for name in "cde"]
    for folder, seed in zip(again, (1, 1, 2), strict=True):
        decoded(tones, system, folder, cut={"seconds": 0.35, "place": "random", "shorter": "keep", "seed": seed})
    one, same, other = ((folder / "scores.tsv").read_text() for folder in again)
    assert one == same != other and one != (tmp_path / "b" / "scores.tsv").read_text()


def test_a_piece_is_what_its_samples_give(tones, system, tmp_path):
    """Decoding a piece equals decoding a recording that has only these samples."""
    decoded(tones, system, tmp_path / "a", cut={"seconds": 0.3, "place": "middle", "shorter": "keep"})
    _, _, scores = files.read_scores(tmp_path / "a" / "scores.tsv")
    ids = list(files.read_map(tmp_path / "a" / "labels.tsv"))
    cut = next(cut for cut in tones.cuts["test"] if cut.id == ids[-1])
    samples = cut.load_audio()[0]
    spare = len(samples) - 4800
    mel = Inputs("logmel", n_mels=12).of(torch.from_numpy(samples[spare // 2 : spare // 2 + 4800]))
    model = load_model(system)
    with torch.inference_mode():
        found = model.class_logits(mel[None], torch.tensor([len(mel)])).log_softmax(-1)[0]
    priors = torch.tensor(model.meta.priors).log()
    assert scores[-1] == pytest.approx((found - priors).numpy(), abs=1e-4)


def test_crops_are_within_and_repeat(tones, tmp_path):
    cuts = keep(tones.cuts["train"], tmp_path / "kept.jsonl")
    crops = Crops(0.1, 0.32, seed=3)
    first, second, other = crops.of(cuts, 0), crops.of(cuts, 0), crops.of(cuts, 1)
    for i, cut in enumerate(tones.cuts["train"]):
        mine = first[i]
        assert mine.id == cut.id and mine.start >= cut.start and mine.end <= cut.end + 1e-6
        assert min(0.1, cut.duration) - 1e-3 <= mine.duration <= min(0.32, cut.duration) + 1e-6
        assert (second[i].start, second[i].duration) == (mine.start, mine.duration)
        assert mine.duration == pytest.approx(first.durations[i], abs=1e-3)
        assert crops.longest(cut).duration <= 0.32 + 1e-6
    assert not np.allclose(first.durations, other.durations)
    assert not np.array_equal(first.durations, Crops(0.1, 0.32, seed=4).of(cuts, 0).durations)


def test_batches_have_the_crops_of_their_epoch(tones):
    cuts, crops = ListedCuts(tones.cuts["train"]), Crops(0.1, 0.25, seed=1)
    loader = Loader(Inputs("logmel", n_mels=12), memory=100.0, crops=crops)
    for epoch in (0, 1, 0):
        wanted = {cut.id: cut.duration for cut in (crops.of(cuts, epoch)[i] for i in range(len(cuts)))}
        seen = {}
        for batch in loader.train(cuts, 1.0, seed=1, epoch=epoch):
            total = max(cut.duration for cut in batch["cuts"]) * len(batch["cuts"])
            assert total <= 1.0 + 1e-6 or len(batch["cuts"]) == 1
            for cut, length in zip(batch["cuts"], batch["lengths"].tolist(), strict=True):
                seen[cut.id] = cut.duration
                assert length == -(-(round(cut.duration * 16_000) + 200) // 160)  # and not that of an earlier epoch
        assert seen == wanted
    # Skipping batches, as a run that continues does, gives the rest of the same ones.
    all_of = [[c.start for c in b["cuts"]] for b in loader.train(cuts, 0.5, 1, 5)]
    rest = [[c.start for c in b["cuts"]] for b in loader.train(cuts, 0.5, 1, 5, skip=2)]
    assert all_of[2:] == rest and len(rest)
    config = TrainConfig(epochs=3, batch_seconds=0.5)
    steps, _ = plan(cuts, config, 1, crops=crops)
    made = [len(list(loader.train(cuts, *batching(config, 1, epoch)))) for epoch in range(3)]
    assert steps == sum(made)


def test_training_on_crops(tones, tmp_path, capsys):
    whole = trained(tones, tmp_path / "a")["metrics"]["seconds_speech"]
    task = {"segment": {"crop": [0.1, 0.2]}}
    record = trained(tones, tmp_path / "b", task=task)
    assert record["metrics"]["seconds_speech"] == whole  # what can be used; each epoch uses pieces of it
    again = trained(tones, tmp_path / "c", task=task)
    assert again["outputs"]["model/model.safetensors"] == record["outputs"]["model/model.safetensors"]
    cfg = {"seed": 1, "adapt": "head", "training": RECIPE}
    for crop, said in (([0.5, 2.0], "segment.crop: pieces of 2 s do not fit the model's window of 1.02 s"),):
        refused(
            capsys, said, train, cfg | {"task": {"type": "lid", "segment": {"crop": crop}}}, tmp_path / "d.json",
            **paths(tones, tmp_path / "d"),
        )  # fmt: skip
    for crop, said in (([0.0, 1.0], "its lengths in seconds must be above 0"), ([2.0, 1.0], "give the lowest value")):
        refused(
            capsys, said, train, cfg | {"task": {"type": "lid", "segment": {"crop": crop}}}, tmp_path / "d.json",
            **paths(tones, tmp_path / "d"),
        )  # fmt: skip


# -- embeddings, open set ----------------------------------------------------------------------------------------------


def test_embeddings_give_the_scores(tones, system, tmp_path):
    plain = decoded(tones, system, tmp_path / "a")
    record = decoded(tones, system, tmp_path / "b", decoder={"kind": "embeddings", "batch_seconds": 2.0})
    assert record["outputs"]["scores.tsv"] == plain["outputs"]["scores.tsv"]
    embeddings = load_file(tmp_path / "b" / "embeddings.safetensors")["embeddings"]
    model, (_, _, scores) = load_model(system), files.read_scores(tmp_path / "b" / "scores.tsv")
    logits = model.head.classifier(torch.from_numpy(embeddings)).log_softmax(-1).detach().numpy()
    assert scores == pytest.approx(logits - np.log(model.meta.priors), abs=1e-4)


def test_open_set(tones, system, tmp_path, capsys):
    decoded(tones, system, tmp_path / "a", decoder={"kind": "scores", "out_of_set": "other", "batch_seconds": 2.0})
    ids, languages, scores = files.read_scores(tmp_path / "a" / "scores.tsv")
    labels = files.read_map(tmp_path / "a" / "labels.tsv")
    assert languages == ["de", "en", "other"] and len(ids) == 12
    assert {labels[name] for name in ids if "-es" in name} == {"other"}
    assert scores[:, 2] == pytest.approx(np.log(np.exp(scores[:, :2]).mean(axis=1)), abs=1e-5)
    assert not (scores.argmax(axis=1) == 2).any()
    cfg = {"task": {"type": "lid"}, "decoder": {"kind": "scores", "out_of_set": "de"}}
    refused(
        capsys, "out_of_set: 'de' is a language of the model", decode, cfg, tmp_path / "b.json", model=system,
        cuts=tones.root / "test.jsonl.gz", out=tmp_path / "b",
    )  # fmt: skip


# -- channel -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channel", ["narrow", "mulaw", "gsm"])
def test_telephone_channels_have_nothing_above_4_khz(tones, channel, tmp_path):
    cut = tones.cuts["test"][0]
    (changed,) = through([cut], channel, "x")
    assert changed.id == cut.id and changed.duration == cut.duration
    kept = keep([changed], tmp_path / "kept.jsonl")[0]  # it survives being written
    samples = kept.load_audio()[0]
    assert samples.shape == cut.load_audio()[0].shape

    def above(samples):
        power = np.abs(np.fft.rfft(samples)) ** 2
        return power[np.fft.rfftfreq(len(samples), 1 / 16_000) > 4200].sum() / power.sum()

    assert above(samples) < 0.1 * above(cut.load_audio()[0])
    assert np.corrcoef(samples, cut.load_audio()[0])[0, 1] > 0.6
    assert piece(kept, 0.1).load_audio().shape[1] == 1600


def test_training_and_decoding_use_the_channel(tones, tmp_path, system):
    plain, task = trained(tones, tmp_path / "a"), {"type": "lid", "channel": "mulaw"}
    narrow = trained(tones, tmp_path / "b", task=task)
    assert plain["outputs"]["model/model.safetensors"] != narrow["outputs"]["model/model.safetensors"]
    first = decoded(tones, system, tmp_path / "c")
    second = decoded(tones, system, tmp_path / "d", task=task)
    assert first["outputs"]["scores.tsv"] != second["outputs"]["scores.tsv"]
    stored = SimpleNamespace(has_features=True)
    with pytest.raises(UserError, match="x has stored features, which channel: gsm cannot change; set features: wave"):
        list(through([stored], "gsm", "x"))


# -- controls ----------------------------------------------------------------------------------------------------------


def test_mean_logmel_is_a_system(tones, tmp_path):
    """Languages of tones differ in their mean spectrum, so this control has to solve them."""
    record = trained(tones, tmp_path / "a", adapt="none", control="mean-logmel", head=None, training=None)
    metrics = record["metrics"]
    assert metrics["control"] == "mean-logmel" and metrics["dev_metric"] == 0.0
    assert metrics["parameters_total"] == 2 * 81 and metrics["labels"] == ["de", "en"]
    found = decoded(tones, tmp_path / "a" / "model", tmp_path / "b")
    ids, languages, scores = files.read_scores(tmp_path / "b" / "scores.tsv")
    labels = files.read_map(tmp_path / "b" / "labels.tsv")
    assert found["metrics"]["utterances"] == 8
    assert all(languages[row.argmax()] == labels[name] for name, row in zip(ids, scores, strict=True))
    # Padding does not count.
    model = mean_logmel.load(tmp_path / "a" / "model")
    mel = torch.randn(1, 20, 80)
    longer = torch.cat([mel, torch.full((1, 9, 80), 7.0)], 1)
    assert torch.allclose(
        model.class_logits(mel, torch.tensor([20])), model.class_logits(longer, torch.tensor([20])), atol=1e-5
    )
    assert mean_logmel.load(tones.base) is None


def test_shuffled_labels(tones, tmp_path):
    path = tones.root / "train.jsonl.gz"
    truth = {cut.id: cut.supervisions[0].language for cut in tones.cuts["train"]}
    new = shuffled(path, "utterances", 1, ())
    assert sorted(new.values()) == sorted(truth.values()) and new != truth and new.keys() == truth.keys()
    assert new == shuffled(path, "utterances", 1, ()) != shuffled(path, "utterances", 2, ())
    some = shuffled(path, "utterances", 1, ["de", "en"])
    assert set(some.values()) == {"de", "en"} and len(some) == 8
    by_speaker = shuffled(path, "speakers", 1, ())
    speakers = {}
    for cut in tones.cuts["train"]:
        speakers.setdefault(cut.supervisions[0].speaker, set()).add(by_speaker[cut.id])
    assert all(len(languages) == 1 for languages in speakers.values()) and by_speaker != truth
    plain, control = trained(tones, tmp_path / "a"), trained(tones, tmp_path / "b", control="shuffled-labels")
    assert control["cfg"]["control"] == "shuffled-labels" and control["cfg"]["shuffle"] == "utterances"
    assert plain["outputs"]["model/model.safetensors"] != control["outputs"]["model/model.safetensors"]
    assert plain["metrics"]["labels"] == control["metrics"]["labels"]


# -- splits apart ------------------------------------------------------------------------------------------------------


def index(folder, split, rows, columns="id speaker language seconds sha256 source session"):
    path = folder / f"{split}.index.tsv"
    lines = ["\t".join(columns.split()), *("\t".join([name, s, "de", "1", name, *more]) for name, s, *more in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def check(folder, splits, **cfg):
    words = [word for role, path in splits.items() for word in ("--split", f"{role}={path}")]
    cfg = {"apart": ["speakers", "sources", "sessions"], **cfg}
    return overlap.main(["--cfg", json.dumps(cfg), "--manifest", str(folder / "o" / "overlap.json"), *words])


@pytest.mark.parametrize(("what", "column"), [("speaker", 1), ("source", 2), ("session", 3)])
def test_what_language_recognition_must_not_share(tmp_path, capfd, what, column):
    rows = {role: [[f"{role}1", f"{role}s", f"{role}v", f"{role}c"]] for role in ("train", "dev", "test")}
    assert check(tmp_path, {role: index(tmp_path, role, own) for role, own in rows.items()}) == 0
    rows["test"][0][column] = rows["train"][0][column]
    splits = {role: index(tmp_path, role, own) for role, own in rows.items()}
    (tmp_path / "o" / "overlap.json").unlink()
    assert check(tmp_path, splits) == 2
    *_, last = capfd.readouterr().err.strip().splitlines()
    value = rows["train"][0][column]
    assert f"{what} {value!r} is in train ({splits['train']}, utterance train1) and in test ({splits['test']}" in last
    assert f"allow_shared: {{{what}s: [test, train]}}" in last
    assert check(tmp_path, splits, allow_shared={f"{what}s": ["train", "dev"]}) == 2
    assert check(tmp_path, splits, allow_shared={f"{what}s": ["train", "test"]}) == 0
    assert "WARNING overlap: 1 " in capfd.readouterr().err
    found = json.loads((tmp_path / "o" / "overlap.json").read_text())["metrics"][f"shared_{what}s"]
    assert [(row["role"], row["other_role"], row[f"{what}s"]) for row in found] == [("train", "test", 1)]
    assert check(tmp_path, splits, apart=[]) == 0  # speech recognition


def test_unknown_speakers_are_not_the_same_speaker(tmp_path, capfd):
    rows = {role: [[f"{role}1", "", "", ""]] for role in ("train", "test")}
    assert check(tmp_path, {role: index(tmp_path, role, own) for role, own in rows.items()}) == 0
    assert "1 of 1 utterances of train" in capfd.readouterr().err
    # Indices of older versions have no sources.
    old = "id speaker language seconds sha256"
    rows = {role: [[f"{role}1", role]] for role in ("train", "test")}
    assert check(tmp_path, {role: index(tmp_path, role, own, old) for role, own in rows.items()}) == 0
