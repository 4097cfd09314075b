"""Back ends recover what was done to scores, agree with independent formulae, and refuse what they cannot use."""

import json

import numpy as np
import pytest

from lowrank_speech.artefact import write_table
from lowrank_speech.backend import affine, fitting, fusion, gaussian, registry, temperature, training
from lowrank_speech.backend.data import read
from lowrank_speech.backend.model import Backend, Input, arranged
from lowrank_speech.stages import apply, backend

NAMES = ("de", "en", "es", "fr")
L = len(NAMES)


@pytest.fixture(scope="module")
def world():
    """True log-likelihoods (n, L) of segments from Gaussians, unequal numbers per language, and the true language."""
    rng = np.random.default_rng(3)
    truth = rng.choice(L, size=3000, p=[0.6, 0.2, 0.15, 0.05])
    means = 0.8 * rng.normal(size=(L, L))
    x = means[truth] + rng.normal(size=(len(truth), L))
    return -0.5 * ((x[:, None] - means[None]) ** 2).sum(-1), truth


def trained(settings, inputs, truth):
    """The back end that a kind fits to ``inputs``."""
    found = registry.module(settings.kind).fit(list(inputs), truth, L, settings)
    named = tuple(Input(f"s{k}", NAMES if x.shape[1] == L else x.shape[1]) for k, x in enumerate(inputs))
    return Backend(settings.kind, getattr(settings, "on", "scores"), NAMES, named, found.weights, found.offsets), found


def measured(scores, truth):
    return training.measured(scores, truth)["cllr"]


def constants(scores, seed=0):
    """Scores with another constant added to each row."""
    return scores + 30 * np.random.default_rng(seed).normal(size=(len(scores), 1))


def test_temperature_recovers_a_scale(world):
    true, truth = world
    _, best = trained(temperature.Settings(ridge=0.0), [true], truth)
    _, found = trained(temperature.Settings(ridge=0.0), [constants(4.0 * true)], truth)
    assert found.facts["scale"] == pytest.approx(best.facts["scale"] / 4.0, rel=1e-5)
    assert best.facts["scale"] == pytest.approx(1.0, abs=0.06)  # true likelihoods need no calibration


def test_temperature_never_reverses_decisions(world):
    true, truth = world
    _, found = trained(temperature.Settings(), [-true], truth)
    assert found.facts["scale"] == 0.0


def test_one_scale_and_offsets_are_recovered(world):
    true, truth = world
    distorted = constants(true) / 3.0 + np.array([2.0, -1.0, 0.5, -1.5])
    _, found = trained(affine.Settings(scale="one", ridge=0.0), [distorted], truth)
    assert found.facts["scale"] == pytest.approx(3.0, rel=0.06)
    assert found.offsets == pytest.approx(-3.0 * np.array([2.0, -1.0, 0.5, -1.5]), abs=0.4)


@pytest.mark.parametrize(
    "settings", [temperature.Settings(ridge=0.0), affine.Settings(scale="one", ridge=0.0), affine.Settings(ridge=0.0)]
)
def test_nothing_near_has_a_lower_cllr_on_dev(world, settings):
    """At the minimum of a convex loss every small change of the parameters makes it worse."""
    true, truth = world
    model, _ = trained(settings, [2.0 * true], truth)
    least, rng = measured(model.apply(2.0 * true), truth), np.random.default_rng(0)
    assert least < measured(2.0 * true, truth)
    for _ in range(20):
        weights, offsets = model.weights[0], model.offsets
        if settings.kind == "temperature":
            weights = weights * rng.choice([0.97, 1.03])
        elif settings.scale == "one":
            weights, offsets = weights * rng.uniform(0.97, 1.03), offsets + 0.05 * rng.normal(size=L)
        else:
            weights, offsets = weights + 0.02 * rng.normal(size=(L, L)), offsets + 0.05 * rng.normal(size=L)
        near = Backend("", "scores", NAMES, model.inputs, (weights,), offsets)
        assert measured(near.apply(2.0 * true), truth) > least


def test_a_matrix_undoes_a_matrix(world):
    """Scores mixed by an invertible matrix are as good as the others after calibration."""
    true, truth = world
    mixed = fitting.centred(true) @ (np.eye(L) + 0.4 * fitting.centred(np.random.default_rng(1).normal(size=(L, L))))
    plain, _ = trained(affine.Settings(ridge=0.0), [true], truth)
    other, _ = trained(affine.Settings(ridge=0.0), [mixed], truth)
    assert measured(mixed, truth) > measured(plain.apply(true), truth) + 0.1
    assert measured(other.apply(mixed), truth) == pytest.approx(measured(plain.apply(true), truth), abs=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        temperature.Settings(),
        affine.Settings(),
        affine.Settings(scale="one"),
        gaussian.Settings(),
        fusion.Settings(systems=("a", "b")),
    ],
)
def test_invariances(world, settings, tmp_path):
    true, truth = world
    number = 2 if settings.kind == "fusion" else 1
    model, _ = trained(settings, [true] * number, truth)
    found = model.apply(*[true] * number)
    assert np.exp(found).sum(axis=1) == pytest.approx(1.0)
    # A constant per segment changes nothing, in training or later.
    shifted = constants(true)
    again, _ = trained(settings, [shifted] * number, truth)
    assert again.apply(*[shifted] * number) == pytest.approx(found, abs=1e-5)
    assert model.apply(*[shifted] * number) == pytest.approx(found, abs=1e-9)
    # The order of the languages changes nothing.
    order = [2, 0, 3, 1]
    place = np.argsort(order)
    other, _ = trained(settings, [true[:, order]] * number, place[truth])
    assert other.apply(*[true[:, order]] * number) == pytest.approx(found[:, order], abs=1e-4)
    # How often a language occurs changes nothing: its segments twice.
    twice = np.concatenate([np.arange(len(truth)), np.flatnonzero(truth == 0)])
    if settings.kind != "gaussian":  # its shrinkage depends on the number of segments
        more, _ = trained(settings, [true[twice]] * number, truth[twice])
        assert more.apply(*[true] * number) == pytest.approx(found, abs=1e-4)
    # From the file it is the same.
    for large in (False, True):
        record = {"stage": "backend", "metrics": {"backend": model.as_json(large)}}
        (tmp_path / "backend.json").write_text(json.dumps(record))
        if large:
            from safetensors.numpy import save_file

            save_file(model.tensors(), tmp_path / "backend.safetensors")
        loaded = Backend.load(tmp_path / "backend.json")
        assert loaded.languages == NAMES and loaded.inputs == model.inputs
        assert np.array_equal(loaded.apply(*[true] * number), found)


def test_gaussian_has_the_posteriors_of_discriminant_analysis(world):
    """On embeddings, with flat priors: scikit-learn's other solver, and Bayes' rule written out with shrinkage."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    rng, (_, truth) = np.random.default_rng(5), world
    mixing = rng.normal(size=(6, 6))
    x = (rng.normal(size=(L, 6))[truth] + rng.normal(size=(len(truth), 6))) @ mixing
    model, _ = trained(gaussian.Settings(on="embeddings", shrinkage=0.0), [x], truth)
    peer = LinearDiscriminantAnalysis(solver="eigen", priors=np.full(L, 1 / L)).fit(x, truth)
    assert np.exp(model.apply(x)) == pytest.approx(peer.predict_proba(x), abs=1e-6)
    means = np.stack([x[truth == j].mean(axis=0) for j in range(L)])
    spread = np.mean([np.cov(x[truth == j].T, bias=True) for j in range(L)], axis=0)
    spread = 0.7 * spread + 0.3 * np.eye(6) * np.trace(spread) / 6
    own, _ = trained(gaussian.Settings(on="embeddings", shrinkage=0.3), [x], truth)
    difference = x[:, None] - means[None]
    logs = -0.5 * np.einsum("njd,de,nje->nj", difference, np.linalg.inv(spread), difference)
    logs -= np.log(np.exp(logs - logs.max(1, keepdims=True)).sum(1, keepdims=True)) + logs.max(1, keepdims=True)
    assert own.apply(x) == pytest.approx(logs, abs=1e-6)


def test_fusion(world):
    true, truth = world
    rng = np.random.default_rng(2)
    noisy = [true + 4.0 * rng.normal(size=true.shape) for _ in range(2)]
    alone = [trained(affine.Settings(scale="one"), [x], truth)[0].apply(x) for x in noisy]
    both, _ = trained(fusion.Settings(systems=("a", "b")), noisy, truth)
    assert measured(both.apply(*noisy), truth) < min(measured(x, truth) for x in alone) - 0.01
    # Two copies are one system.
    one, single = trained(affine.Settings(scale="one"), noisy[:1], truth)
    two, double = trained(fusion.Settings(systems=("a", "b")), [noisy[0]] * 2, truth)
    assert two.apply(noisy[0], noisy[0]) == pytest.approx(one.apply(noisy[0]), abs=1e-4)
    assert double.facts["scales"] == pytest.approx([single.facts["scale"] / 2] * 2, rel=1e-4)
    # A system that says nothing gets no weight.
    _, useless = trained(fusion.Settings(systems=("a", "b")), [true, rng.normal(size=true.shape)], truth)
    assert abs(useless.facts["scales"][1]) < 0.15 < useless.facts["scales"][0]


def test_two_languages():
    """Scikit-learn's classifier has one row for two classes."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 500)
    scores = np.stack([1.0 - truth, truth], 1) * 2 + rng.normal(size=(500, 2))
    for settings in (affine.Settings(), gaussian.Settings(), temperature.Settings()):
        found = registry.module(settings.kind).fit([scores], truth, 2, settings)
        model = Backend("", "scores", NAMES[:2], (Input("s", NAMES[:2]),), found.weights, found.offsets)
        assert (model.apply(scores).argmax(1) == truth).mean() > 0.85
        assert measured(model.apply(scores), truth) < measured(scores * 0.01, truth)


def test_columns_go_by_name(world):
    true, _ = world
    order = ["fr", "de", "es", "en"]
    shuffled = true[:, [NAMES.index(name) for name in order]]
    assert np.array_equal(arranged(shuffled, order, NAMES, "x"), true)
    with pytest.raises(ValueError, match="x has no column 'fr', but the back end is for de, en, es, fr"):
        arranged(true[:, :3], NAMES[:3], NAMES, "x")
    with pytest.raises(ValueError, match="has the column 'it'"):
        arranged(np.zeros((1, 5)), (*NAMES, "it"), NAMES, "x")


# -- the stages --------------------------------------------------------------------------------------------------------


def decoded(folder, scores, truth, columns=NAMES, speaker="s", ids="u"):
    """A folder as the stage decode writes it."""
    names = [f"{ids}{i}" for i in range(len(truth))]
    write_table(folder / "scores.tsv", ("id", *columns), [(n, *row) for n, row in zip(names, scores, strict=True)])
    write_table(folder / "labels.tsv", ("id", "language"), [(n, NAMES[t]) for n, t in zip(names, truth, strict=True)])
    write_table(folder / "seconds.tsv", ("id", "seconds"), [(n, 3.0) for n in names])
    rows = [] if speaker is None else [(n, f"{speaker}{NAMES[t]}") for n, t in zip(names, truth, strict=True)]
    write_table(folder / "speakers.tsv", ("id", "speaker"), rows)
    return folder


def train(out, *folders, kind='{"kind":"temperature"}', least=5):
    names = json.dumps([f"base/lid/m{i}" for i in range(len(folders))])
    cfg = f'{{"backend":{kind},"systems":{names},"least":{least}}}'
    words = ["--cfg", cfg, "--out", str(out), "--manifest", str(out / "backend.json")]
    return backend.main([*words, "--dev", *map(str, folders)])


def calibrate(out, model, *folders):
    words = ["--cfg", "{}", "--out", str(out), "--manifest", str(out / "apply.json"), "--backend", str(model)]
    return apply.main([*words, "--test", *map(str, folders)])


@pytest.fixture
def folders(tmp_path, world):
    true, truth = world
    dev = decoded(tmp_path / "dev", 3 * true[:400], truth[:400], speaker="dev-")
    order = [3, 1, 0, 2]
    test = decoded(
        tmp_path / "test", 3 * true[400:700][:, order], truth[400:700], [NAMES[i] for i in order], "test-", "t"
    )
    return tmp_path, dev, test


def last_line(capfd):
    return capfd.readouterr().err.strip().splitlines()[-1]


def test_from_dev_to_calibrated_test_scores(folders, world):
    from lowrank_speech.scoring import files

    (root, dev, test), (true, truth) = folders, world
    assert train(root / "b", dev) == 0 and calibrate(root / "c", root / "b", test) == 0
    record = json.loads((root / "b" / "backend.json").read_text())["metrics"]
    assert record["segments"] == 400 and record["before"]["cllr"] > record["after"]["cllr"]
    assert record["after"]["accuracy"] == pytest.approx(record["before"]["accuracy"])
    ids, languages, scores = files.read_scores(root / "c" / "scores.tsv")
    assert languages == list(NAMES) and ids == [f"t{i}" for i in range(300)]
    model = Backend.load(root / "b" / "backend.json")
    assert scores == pytest.approx(model.apply(3 * true[400:700]), abs=1e-6)
    assert measured(scores, truth[400:700]) < measured(3 * true[400:700], truth[400:700]) - 0.1
    for name in ("labels.tsv", "seconds.tsv", "speakers.tsv"):
        assert (root / "c" / name).read_bytes() == (test / name).read_bytes()
    # Equal runs write equal bytes.
    before = {path.name: path.read_bytes() for path in (root / "b").iterdir() if "cost" not in path.name}
    assert train(root / "b", dev) == 0
    assert before == {path.name: path.read_bytes() for path in (root / "b").iterdir() if "cost" not in path.name}


def test_fusion_aligns_segments_and_columns(folders, world):
    (root, dev, _), (true, _) = folders, world
    other = root / "other"
    order = np.random.default_rng(0).permutation(400)
    names = [f"u{i}" for i in order]
    rows = [(n, *row) for n, row in zip(names, 3 * true[:400][order][:, [1, 0, 2, 3]], strict=True)]
    write_table(other / "scores.tsv", ("id", "en", "de", "es", "fr"), rows)
    (other / "labels.tsv").write_bytes((dev / "labels.tsv").read_bytes())
    data = read([dev, other], "scores")
    assert np.array_equal(data.scores[0], data.scores[1])
    assert train(root / "b", dev, other, kind='{"kind":"fusion","systems":["m0","m1"]}') == 0
    (other / "scores.tsv").write_text((other / "scores.tsv").read_text().replace("u7\t", "x7\t"))
    assert train(root / "b", dev, other, kind='{"kind":"fusion","systems":["m0","m1"]}') == 2


def test_what_cannot_be_trained_or_applied(folders, world, capfd, tmp_path):
    (root, dev, test), (true, truth) = folders, world
    one = decoded(tmp_path / "one", true[truth == 1][:50], truth[truth == 1][:50])
    assert train(root / "x", one) == 2
    assert "all 50 dev segments are 'en'; a back end needs dev segments of every language" in last_line(capfd)
    few = decoded(tmp_path / "few", true[:400], np.where(truth[:400] == 3, 0, truth[:400]))
    assert train(root / "x", few) == 2
    assert "dev has 0 of at least 5 segments of 'fr' that a back end needs" in last_line(capfd)
    broken = true[:400].copy()
    broken[7, 2] = np.nan
    assert train(root / "x", decoded(tmp_path / "nan", broken, truth[:400])) == 2
    assert "segment 'u7', language 'es': the score is nan" in last_line(capfd)
    assert not (root / "x" / "backend.json").exists()
    assert train(root / "b", dev) == 0
    same = decoded(tmp_path / "same", true[400:500], truth[400:500], speaker="dev-", ids="t")
    assert calibrate(root / "c", root / "b", same) == 2
    said = last_line(capfd)
    assert "speaker 'dev-" in said and "is in dev (segment 'u" in said and "choose other splits" in said
    unknown = decoded(tmp_path / "unknown", true[:100], truth[:100], speaker=None)
    assert calibrate(root / "c", root / "b", unknown) == 2
    assert "segment 'u0' is in dev" in last_line(capfd)
    nobody = decoded(tmp_path / "nobody", true[:100], truth[:100], speaker=None, ids="t")
    assert calibrate(root / "c", root / "b", nobody) == 0
    assert "the speakers of dev or of the test set are not known" in capfd.readouterr().err
    fewer = decoded(tmp_path / "fewer", true[400:500, :3], np.minimum(truth[400:500], 2), NAMES[:3], "t", "t")
    assert calibrate(root / "c", root / "b", fewer) == 2
    assert "has no column 'fr', but the back end is for de, en, es, fr" in last_line(capfd)
    foreign = decoded(tmp_path / "foreign", true[400:500], truth[400:500], speaker="t", ids="t")
    (foreign / "labels.tsv").write_text((foreign / "labels.tsv").read_text().replace("\tes", "\tit"))
    assert calibrate(root / "c", root / "b", foreign) == 2
    assert "is 'it', of which the back end had no dev segment" in last_line(capfd)
    assert calibrate(root / "c", root / "b", test, test) == 2
    assert "--test: 2 folders, but" in last_line(capfd)
    (root / "b" / "backend.json").write_text('{"stage": "tune"}')
    assert calibrate(root / "c", root / "b", test) == 2
    assert "not a back end (it is of the stage tune); give a backend.json of the stage backend" in last_line(capfd)


def test_dev_without_errors_is_a_warning(tmp_path, capfd):
    truth = np.repeat(np.arange(L), 10)
    assert train(tmp_path / "b", decoded(tmp_path / "dev", 5.0 * np.eye(L)[truth], truth)) == 0
    assert "WARNING backend: all 40 dev segments are recognised" in capfd.readouterr().err
    assert json.loads((tmp_path / "b" / "backend.json").read_text())["metrics"]["scale"] < 100


def test_settings_are_refused_by_name(tmp_path, capfd):
    dev = decoded(tmp_path / "dev", np.zeros((8, L)), np.repeat(np.arange(L), 2))
    for kind, said in (
        ('{"kind":"afine"}', "'afine' is not valid; expected one of: temperature, affine, gaussian, fusion"),
        ('{"kind":"affine","ridge":-1}', "ridge is -1"),
        ('{"kind":"fusion","systems":["a","a"]}', "name each system once"),
        ('{"kind":"gaussian","shrinkage":2}', "shrinkage is 2"),
    ):
        assert train(tmp_path / "b", dev, kind=kind) == 2
        assert said in last_line(capfd)
