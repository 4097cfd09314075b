"""The stage export on small models of both families."""

import json

import pytest
import torch
import transformers

from lowrank_speech.lowrank.structure import low_rank_layers
from lowrank_speech.models.folder import load_model, save_model
from lowrank_speech.stages import export, factorise
from test_factorise_stage import MODELS, outputs


@pytest.fixture(params=MODELS)
def low(request, tmp_path):
    """Folder of a factorised model, with a file that came with the base."""
    extra = tmp_path / "extra"
    extra.mkdir()
    (extra / "preprocessor_config.json").write_text('{"do_normalize": true}')
    save_model(MODELS[request.param](), tmp_path / "base", copy_from=extra)
    cfg = json.dumps({"seed": 1, "factorise": {"layers": "all", "rank": 6}})
    paths = ["--model", tmp_path / "base", "--out", tmp_path / "low", "--manifest", tmp_path / "factorise.json"]
    assert factorise.main(["--cfg", cfg, *map(str, paths)]) == 0
    return tmp_path / "low"


def run(form, model, out):
    manifest = out.parent / "export.json"
    paths = ["--model", str(model), "--out", str(out), "--manifest", str(manifest)]
    code = export.main(["--cfg", json.dumps({"format": form}), *paths])
    return code, json.loads(manifest.read_text())["metrics"] if code == 0 else None


def test_dense_is_loaded_by_plain_transformers(low, tmp_path):
    code, numbers = run("dense", low, tmp_path / "export" / "model")
    assert code == 0
    out, factors = tmp_path / "export" / "model", load_model(low)
    assert len(low_rank_layers(factors.body)) > 5
    (name,) = json.loads((out / "config.json").read_text())["architectures"]
    plain, info = getattr(transformers, name).from_pretrained(out, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert numbers["format"] == "dense"
    assert numbers["parameters"] == sum(p.numel() for p in plain.parameters()) == factors.dense_parameters()
    assert 0 < numbers["largest_difference"] < 1e-5 and numbers["same_best"] == 1
    assert (out / "preprocessor_config.json").read_text() == '{"do_normalize": true}'

    expected = outputs(factors)
    dense = load_model(out)
    assert not dense.plan and not low_rank_layers(dense.body)
    torch.testing.assert_close(outputs(dense), expected, atol=1e-5, rtol=0)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        if factors.family == "wav2vec2":
            wave = torch.randn(2, 8000, generator=generator)[:1]
            expected, _ = factors.ctc_logits(wave, torch.tensor([wave.shape[1]]))
            found = plain.eval()(wave).logits
        else:
            mel, tokens = torch.randn(2, 20, 100, generator=generator), torch.tensor([[31, 32, 34, 35, 7]] * 2)
            found, expected = (m(mel, decoder_input_ids=tokens).logits for m in (plain.eval(), factors.hf))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_dense_of_a_dense_model_changes_nothing(low, tmp_path):
    code, numbers = run("dense", tmp_path / "base", tmp_path / "export" / "model")
    assert code == 0 and numbers["largest_difference"] == 0
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "base" / file).read_bytes() == (tmp_path / "export" / "model" / file).read_bytes()


@pytest.mark.parametrize("form", ["hf", "lowrank"])
def test_hf_is_the_folder_as_it_is(form, low, tmp_path):
    """``lowrank`` is its earlier name."""
    code, numbers = run(form, low, tmp_path / "export" / "model")
    assert code == 0
    assert numbers["format"] == form and numbers["largest_difference"] == 0
    assert numbers["parameters"] == load_model(low).parameters_total()
    files = {path.name for path in low.iterdir()}
    assert files | {"README.md"} == {path.name for path in (tmp_path / "export" / "model").iterdir()}
    for file in files:
        assert (low / file).read_bytes() == (tmp_path / "export" / "model" / file).read_bytes()


def test_equal_exports_write_equal_manifests(low, tmp_path):
    for name in "ab":
        assert run("dense", low, tmp_path / name / "model")[0] == 0
    assert (tmp_path / "a/export.json").read_bytes() == (tmp_path / "b/export.json").read_bytes()


def test_errors_are_one_line(low, tmp_path, capsys):
    for form, model, out, message in (
        ("onxx", low, tmp_path / "x", "'onxx' is not a known format; expected one of: hf, dense, onnx, onnx-int8, ctr"),
        ("dense", tmp_path / "nothing", tmp_path / "x", "does not exist"),
        ("dense", low, low, "same folder"),
    ):
        assert run(form, model, out)[0] == 2
        shown = capsys.readouterr().err.strip().splitlines()
        assert message in shown[-1] and "Traceback" not in "".join(shown)
