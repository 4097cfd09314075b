"""``lowrank-speech factorise``: from model folders of every layout to a low-rank model, its report and its plot."""

# ruff: noqa: F811  (fixtures of another test file)

import dataclasses
import inspect
import json
import logging
import subprocess
import sys

import pytest
import torch
from lhotse import CutSet
from PIL import Image
from safetensors.torch import load_file
from tokenizers.pre_tokenizers import ByteLevel
from transformers import WhisperTokenizer

from lowrank_speech import cli, cli_factorise
from lowrank_speech.lowrank.factorise import factorise
from lowrank_speech.lowrank.layer_factors import Statistics
from lowrank_speech.lowrank.moments import MomentsFile
from lowrank_speech.lowrank.recipe import Factorise
from lowrank_speech.lowrank.structure import low_rank_layers
from lowrank_speech.models.build import unwrap
from lowrank_speech.models.folder import load_model, save_model
from lowrank_speech.models.sources import Source, import_model
from lowrank_speech.stages import calibrate
from lowrank_speech.stages import factorise as stage
from test_factorise_stage import MODELS, cuts, folder, outputs, run  # noqa: F401


@pytest.fixture
def call(capsys, monkeypatch):
    """Run the command: exit code, stdout, the lines of stderr."""
    # As in a process of its own: stages that ran before have set up logging, and so has pytest.
    monkeypatch.setattr(logging.root, "handlers", [])

    def call(*argv):
        with pytest.raises(SystemExit) as left:
            cli.main(["factorise", *map(str, argv)])
        captured = capsys.readouterr()
        return left.value.code or 0, captured.out, captured.err.strip().splitlines()

    return call


def save_tokenizer(folder):
    """Whisper's tokenizer with the special tokens of the model of ``test_factorise_stage``."""
    tokenizer = WhisperTokenizer(vocab={c: i for i, c in enumerate(sorted(ByteLevel.alphabet())[:30])}, merges=[])
    special = ["<|startoftranscript|>", "<|en|>", "<|de|>", "<|transcribe|>", "<|notimestamps|>"]
    tokenizer.add_tokens(special, special_tokens=True)
    assert tokenizer.convert_tokens_to_ids(special) == [31, 32, 33, 34, 35]
    tokenizer.save_pretrained(folder)


def same_folder(a, b):
    assert {p.name for p in a.iterdir()} == {p.name for p in b.iterdir()}
    return all((b / p.name).read_bytes() == p.read_bytes() for p in a.iterdir())


def in_memory(model, out, copy_from, plan, **options):
    """The folder that factorising in memory gives."""
    factorise(model.body, plan, **options)
    model.plan = plan
    save_model(model, out, copy_from=copy_from)


def test_text_report_and_plot(folder, tmp_path, call):
    report, plot = tmp_path / "report.json", tmp_path / "plots" / "spectra.png"
    out = tmp_path / "some" / "low"
    code, shown, errors = call(folder, out, "--reduction", 0.1, "--report", report, "--plot", plot)
    assert code == 0 and not errors
    result = json.loads(report.read_text())
    low = load_model(out)
    assert result["parameters_after"] == low.parameters_total()
    assert low.plan == {row["name"]: row["rank"] for row in result["layers"]}
    lines = shown.splitlines()
    assert lines[0].startswith(f"{result['parameters_before']:,} -> {result['parameters_after']:,} parameters, -10.")
    assert "%energy" in lines[2] and len(lines) == 3 + len(result["layers"]) + 4
    assert lines[-3] == f"written: {out}" and lines[-2].startswith("next: fine-tune it, as a base of an experiment")
    row, first = lines[3].split(), result["layers"][0]
    assert row[0] == first["name"] and row[3] == str(first["rank"]) and row[4] == f"{100 * first['energy']:.2f}"
    assert row[6] == "-"  # no output error without calibration
    image = Image.open(plot)
    assert image.format == "PNG" and image.width > 400 and len(set(image.convert("RGB").getdata())) > 20
    assert sorted(p.name for p in out.parent.iterdir()) == ["low"]  # nothing is left beside it


def test_defaults_are_those_of_the_recipe():
    options = {name: p.default for name, p in inspect.signature(cli_factorise.factorise).parameters.items()}
    assert options["layers"] is None  # ffn
    keys = [field.name for field in dataclasses.fields(Factorise) if field.name != "layers"]
    assert {key: options[key] for key in keys} == {key: getattr(Factorise, key) for key in keys}


def test_equals_the_stages_bit_for_bit(folder, cuts, tmp_path, call):
    cfg = {"seed": 3, "layers": ["attention"], "utterances": 2}
    run(calibrate, cfg, tmp_path / "m.safetensors", model=folder, cuts=cuts)
    wish = {"layers": ["attention"], "keep": 0.5, "allocate": True, "init": "activation"}
    cfg = {"seed": 3, "factorise": wish, "trial": {"utterances": 2}}
    run(stage, cfg, tmp_path / "stage", model=folder, moments=tmp_path / "m.safetensors", cuts=cuts)
    words = ("--layers", "attention", "--keep", 0.5, "--init", "activation", "--seed", 3, "--json")
    speech = ("--calibrate", cuts, "--utterances", 2, "--trial", 2)
    code, shown, _ = call(folder, tmp_path / "a", *words, *speech, "--allocate")
    assert code == 0 and json.loads(shown)["allocation"]["curves"]
    assert json.loads(shown) == json.loads((tmp_path / "stage.json").read_text())["metrics"]
    assert same_folder(tmp_path / "stage", tmp_path / "a")
    call(folder, tmp_path / "b", *words, *speech)
    call(folder, tmp_path / "c", *words, "--moments", tmp_path / "m.safetensors")
    assert same_folder(tmp_path / "b", tmp_path / "c")


@pytest.mark.parametrize("init", ["svd", "activation", "random"])
def test_the_stream_equals_the_work_in_memory_bit_for_bit(folder, cuts, tmp_path, init):
    run(calibrate, {"seed": 1, "layers": "all"}, tmp_path / "m.safetensors", model=folder, cuts=cuts)
    cfg = {"seed": 4, "factorise": {"layers": "all", "rank": 5, "init": init}}
    code, manifest = run(stage, cfg, tmp_path / "low", model=folder, moments=tmp_path / "m.safetensors")
    assert code == 0
    plan = {row["name"]: row["rank"] for row in manifest["metrics"]["layers"]}
    moments = MomentsFile(tmp_path / "m.safetensors")
    options = {"init": init, "seen": Statistics.of(moments), "seed": 4}
    in_memory(load_model(folder), tmp_path / "memory", folder, plan, **options)
    assert same_folder(tmp_path / "memory", tmp_path / "low")


def test_the_mean_of_what_is_lost_goes_into_the_bias(folder, cuts, tmp_path):
    run(calibrate, {"seed": 1, "layers": "ffn"}, tmp_path / "m.safetensors", model=folder, cuts=cuts)
    for init in ("svd", "activation"):
        cfg = {"seed": 1, "factorise": {"layers": "ffn", "rank": 5, "init": init}}
        run(stage, cfg, tmp_path / init, model=folder, moments=tmp_path / "m.safetensors")
    moments, dense = MomentsFile(tmp_path / "m.safetensors"), load_model(folder)
    plain, aware = load_model(tmp_path / "svd"), load_model(tmp_path / "activation")
    for name, low in low_rank_layers(aware.body).items():
        layer, mean = dense.body.get_submodule(name), moments.mean(name)
        expected = layer.weight.double() @ mean + layer.bias.double()
        found = low.second.weight.double() @ (low.first.weight.double() @ mean) + low.second.bias.double()
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(plain.body.get_submodule(name).second.bias, layer.bias)


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("form", ["one file", "shards", "pickle"])
def test_hub_layouts_are_imported_first(family, form, tmp_path, call):
    hub = tmp_path / "hub"
    unwrap(MODELS[family]()).save_pretrained(hub, max_shard_size="20KB" if form == "shards" else "1GB")
    (hub / "preprocessor_config.json").write_text("{}")
    (hub / "optimizer.pt").write_text("of a Trainer")
    tokenizer = set()
    if family == "whisper":
        save_tokenizer(hub)
        tokenizer = {"tokenizer.json", "tokenizer_config.json"}
    if form == "pickle":
        state = load_file(hub / "model.safetensors")
        torch.save(state, hub / "pytorch_model.bin")
        (hub / "model.safetensors").unlink()
    assert (form == "shards") == (hub / "model.safetensors.index.json").exists()
    assert (form == "one file") == (hub / "model.safetensors").exists()
    code, shown, _ = call(hub, tmp_path / "low", "--rank", 6, "--json")
    assert code == 0
    plan = {row["name"]: row["rank"] for row in json.loads(shown)["layers"]}
    model = import_model(Source(hub, None), family)
    in_memory(model, tmp_path / "memory", hub, plan)
    assert same_folder(tmp_path / "memory", tmp_path / "low")
    expected = {"config.json", "model.safetensors", "preprocessor_config.json"} | tokenizer
    assert {p.name for p in (tmp_path / "low").iterdir()} - {"generation_config.json"} == expected
    assert torch.equal(outputs(load_model(tmp_path / "low")), outputs(model))


def test_cuts_at_another_rate_without_supervision_and_uncompressed(folder, cuts, tmp_path, call):
    made = [cut.resample(8_000) for cut in CutSet.from_file(cuts)]
    for cut in made:
        cut.supervisions = []
    CutSet.from_cuts(made).to_file(tmp_path / "bare.jsonl")
    words = ("--rank", 6, "--layers", "all", "--init", "activation", "--json")
    code, shown, _ = call(folder, tmp_path / "low", *words, "--calibrate", tmp_path / "bare.jsonl")
    assert code == 0
    assert all(0 < row["output_error"] < 1 for row in json.loads(shown)["layers"])


def test_calibration_with_svd_reports_the_output_error_and_keeps_the_factors(folder, cuts, tmp_path, call):
    call(folder, tmp_path / "a", "--rank", 6)
    code, shown, _ = call(folder, tmp_path / "b", "--rank", 6, "--calibrate", cuts, "--json")
    assert code == 0 and all(row["output_error"] > 0 for row in json.loads(shown)["layers"])
    assert same_folder(tmp_path / "a", tmp_path / "b")


def test_random_factors_have_no_spectra_to_draw(folder, tmp_path, call):
    code, _, errors = call(folder, tmp_path / "low", "--rank", 6, "--init", "random", "--plot", tmp_path / "p.png")
    assert code == 0 and not errors and (tmp_path / "p.png").stat().st_size > 500


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "exactly one of rank, fraction, keep, energy, reduction; given: none"),
        (("--rank", 4, "--keep", 0.5), "given: rank, keep"),
        (("--rank", 999), "rank 999 is above the full rank 32 of the layer"),
        (("--rank", 0), "rank is 0; it must be at least 1"),
        (("--reduction", 24), "reduction is 24.0; it must be below 1"),
        (("--reduction", 0.99), "out of reach"),
        (("--rank", 31), "would stay dense; set a lower rank"),
        (("--rank", 4, "--layers", "*fc9"), "'*fc9' matches no linear layer"),
        (("--rank", 4, "--layers", "fnn"), "'fnn'; expected ffn, attention, all"),
        (("--rank", 4, "--init", "activation"), "needs --calibrate PATH or --moments FILE"),
        (("--rank", 4, "--calibrate", "no.jsonl.gz"), "no.jsonl.gz does not exist; give Lhotse cuts"),
        (("--rank", 4, "--moments", "no.safetensors"), "--moments: the file no.safetensors does not exist"),
        (("--rank", 4, "--moments", "a", "--calibrate", "b"), "not both"),
        (("--energy", 0.5, "--allocate"), "cannot be combined with allocate"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(folder, tmp_path, call, words, message):
    before = sorted(tmp_path.iterdir())
    code, shown, errors = call(folder, tmp_path / "low", *words)
    assert (code, shown) == (2, "") and len(errors) == 1, errors
    assert errors[0].startswith("error: ") and message in errors[0]
    assert sorted(tmp_path.iterdir()) == before


def test_sources_and_targets_that_cannot_be(folder, cuts, tmp_path, call):
    assert call(folder, tmp_path / "low", "--rank", 4)[0] == 0
    for source, out, message in (
        (tmp_path / "low", tmp_path / "twice", "layers); give the dense model"),
        (tmp_path / "none", tmp_path / "x", "neither a folder nor a hub name"),
        (tmp_path / "extra", tmp_path / "x", "the folder has no config.json"),
        (folder, tmp_path / "low", "low exists: remove it, or name another folder"),
        (folder, folder, "exists: remove it"),
    ):
        code, shown, errors = call(source, out, "--rank", 4)
        assert (code, shown) == (2, "") and message in errors[0] and len(errors) == 1
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.json").write_text('{"model_type": "bert"}')
    code, _, errors = call(tmp_path / "foreign", tmp_path / "x", "--rank", 4)
    assert code == 2 and "model_type is 'bert'; expected one of" in errors[0]
    (tmp_path / "bad.jsonl").write_text("{nonsense\n")
    code, _, errors = call(folder, tmp_path / "x", "--rank", 4, "--calibrate", tmp_path / "bad.jsonl")
    assert code == 2 and len(errors) == 1 and "bad.jsonl" in errors[0]


MEASURED = """
import sys, threading, time
from pathlib import Path
from lowrank_speech.lowrank.recipe import Factorise
from lowrank_speech.factorising.model import factorise_model
from lowrank_speech.models.sources import open_dense
import transformers.models.wav2vec2.modeling_wav2vec2

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("RssAnon")))

peak, done = [0], threading.Event()
def watch():
    while not done.is_set():
        peak[0] = max(peak[0], anonymous())
        time.sleep(0.005)

start = anonymous()
thread = threading.Thread(target=watch)
thread.start()
model, folder = open_dense(sys.argv[1])
factorise_model(model, Factorise(reduction=0.24), Path(sys.argv[2]), folder)
done.set()
thread.join()
print(peak[0] - start)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_is_bounded_by_a_layer_and_not_by_the_model(tmp_path):
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=512,
        num_hidden_layers=20,
        num_attention_heads=8,
        intermediate_size=4096,
        conv_dim=(64, 64),
        conv_kernel=(10, 8),
        conv_stride=(10, 8),
        num_feat_extract_layers=2,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
    )
    Wav2Vec2Model(config).save_pretrained(tmp_path / "hub", max_shard_size="150MB")
    size = sum(p.stat().st_size for p in (tmp_path / "hub").glob("*.safetensors"))
    assert size > 400e6
    words = [sys.executable, "-c", MEASURED, str(tmp_path / "hub"), str(tmp_path / "low")]
    found = subprocess.run(words, check=True, capture_output=True, text=True)
    written = (tmp_path / "low" / "model.safetensors").stat().st_size
    # Holding the result, or the source, would take its size; a layer in float64 takes 17 MB.
    assert int(found.stdout) < 0.4 * written < 0.4 * size
    assert load_model(tmp_path / "low").plan
