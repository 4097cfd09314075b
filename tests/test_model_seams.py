"""Adding a family or a head takes one file and one registry line; loading a model does not import its construction."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from conftest import REPOSITORY
from lowrank_speech.errors import UserError
from lowrank_speech.fingerprints import closure
from lowrank_speech.models.build import build, quiet_config, unwrap
from lowrank_speech.models.folder import load_model, save_model
from lowrank_speech.models.heads.ctc import CtcSettings
from lowrank_speech.models.heads.pooled import PooledSettings
from lowrank_speech.models.registry import FAMILIES, family_class, family_of
from lowrank_speech.models.scratch import from_scratch
from lowrank_speech.models.tasks import to_task
from tiny_models import MEMBERS, WAV2VEC2, member, plain, speech

MAKING = {
    f"lowrank_speech.lowrank.{name}"
    for name in ("factors", "layer_factors", "factorise", "allocate", "plan", "moments", "tensors")
}
HUB = {f"lowrank_speech.models.{name}" for name in ("sources", "window", "scratch", "gabor", "dropout")}


LOADS = ("models.folder", "models.tasks", "models.text", "decoding.ctc.greedy", "decoding.whisper.greedy")


@pytest.mark.parametrize("module", LOADS)
def test_loading_training_and_decoding_import_neither_the_making_of_factors_nor_the_hub(module):
    assert not closure(f"lowrank_speech.{module}") & (MAKING | HUB)


def test_the_constraint_and_the_hub_import_stand_apart():
    own = {"structure", "linear", "embedding", "orthonormal", "constraint"}
    found = {name.rpartition(".")[2] for name in closure("lowrank_speech.lowrank.constraint")}
    assert found - {"lowrank_speech", "lowrank"} == own
    assert not closure("lowrank_speech.models.sources") & (MAKING | HUB - {"lowrank_speech.models.sources"})
    assert not closure("lowrank_speech.models.scratch") & {"lowrank_speech.models.sources", *MAKING}
    assert closure("lowrank_speech.models.dropout") == {
        f"lowrank_speech{x}" for x in ("", ".models", ".models.dropout")
    }


LIGHT = ("models.registry", "models.files", "models.settings", "models.preprocessor", "lowrank.recipe")
LIGHT += ("lowrank.lora_settings", "lowrank.constraint_settings", "factorising.speech")


def test_registry_and_settings_need_no_torch():
    heavy = ("torch", "transformers", "numpy", "lhotse", "soundfile")
    imports = "; ".join(f"import lowrank_speech.{name}" for name in LIGHT)
    code = f"{imports}; import sys; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "[]"


def test_every_model_type_has_one_family():
    types = [kind for family in FAMILIES.values() for kind in family.model_types]
    assert len(types) == len(set(types))
    assert family_of("hubert", "x") == "wav2vec2"
    with pytest.raises(UserError, match=r"x: model_type is None; expected one of: data2vec-audio, hubert, "):
        family_of(None, "x")
    for family, row in FAMILIES.items():
        assert row.front_end == ("conv" in row.features) and row.recognises in family_class(family).TASKS


# --- draws


def test_a_model_from_scratch_has_the_weights_of_transformers_own_class():
    model = from_scratch("wav2vec2", WAV2VEC2, type("Tokens", (), {"size": 9}), 5, "random")
    config = transformers.Wav2Vec2Config(**WAV2VEC2, vocab_size=9, pad_token_id=0, bos_token_id=None, eos_token_id=None)
    torch.manual_seed(5)
    expected = transformers.Wav2Vec2ForCTC(quiet_config(config)).state_dict()
    found = unwrap(model).state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[k], v) for k, v in expected.items())


@pytest.mark.parametrize(("task", "names"), [("ctc", ["lm_head"]), ("classify", ["projector", "classifier"])])
def test_a_new_head_is_drawn_as_transformers_draws_it(task, names):
    model, new = to_task(member("wav2vec2", "body"), task, 7, list("abcdefg") if task == "classify" else (), seed=3)
    found, cls = unwrap(model).state_dict(), type(unwrap(model))
    with torch.random.fork_rng():
        torch.manual_seed(3)
        with torch.device("meta"):
            hf = cls(model.config)
        for name in names:
            layer = hf.get_submodule(name).to_empty(device="cpu")
            layer.reset_parameters()
            layer.weight.data.normal_(0.0, model.config.initializer_range)
            layer.bias.data.zero_()
    drawn = {f"{name}.{part}": getattr(hf.get_submodule(name), part) for name in names for part in ("weight", "bias")}
    assert new and all(torch.equal(found[name], tensor) for name, tensor in drawn.items())


# --- folders and settings of heads


@pytest.mark.parametrize("name", ["wav2vec2", "w2v-bert"])
def test_plans_of_before_with_the_names_of_transformers_class_are_read(name, tmp_path):
    from lowrank_speech.factorising.model import save_factorised
    from lowrank_speech.models.layers import dense_layers

    model = member(name)
    save_factorised(model, dict.fromkeys(dense_layers(model, "ffn"), 4), tmp_path / "low")
    expected = load_model(tmp_path / "low")
    file = tmp_path / "low" / "config.json"
    raw = json.loads(file.read_text())
    assert all(layer.startswith("encoder.layers.") for layer in raw["lowrank_speech"]["plan"])
    raw["lowrank_speech"]["plan"] = {f"{model.body_prefix}{k}": v for k, v in raw["lowrank_speech"]["plan"].items()}
    file.write_text(json.dumps(raw))
    again = load_model(tmp_path / "low")
    assert again.plan == expected.plan
    batch, lengths = speech(model, 0.31)
    assert torch.equal(again.ctc_logits(batch, lengths)[0], expected.ctc_logits(batch, lengths)[0])


def test_settings_of_a_head_are_kept_in_transformers_config(tmp_path):
    labels = ["a", "b"]
    model, _ = to_task(member("wav2vec2"), "classify", 2, labels, head=PooledSettings(size=5))
    save_model(model, tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert again.head.projector.out_features == 5 and again.head.settings == PooledSettings(size=5)
    assert "head" not in json.loads((tmp_path / "model" / "config.json").read_text())["lowrank_speech"]
    hf = transformers.Wav2Vec2ForSequenceClassification.from_pretrained(tmp_path / "model")
    batch, lengths = speech(model, 0.31)
    torch.testing.assert_close(hf(batch).logits, model.class_logits(batch, lengths), atol=1e-5, rtol=1e-4)
    ctc, new = to_task(member("wav2vec2"), "ctc", 12, head=CtcSettings(dropout=0.3))
    assert new and ctc.head.dropout.p == 0.3 == ctc.config.final_dropout
    with pytest.raises(UserError, match="'pooled' is a head for 'classify', but the task is 'ctc'"):
        to_task(member("wav2vec2"), "ctc", 12, head=PooledSettings())


def test_a_discarded_head_is_named_in_the_log(caplog):
    base = member("wav2vec2")
    to_task(base, "ctc", 12)
    assert not caplog.text  # its own head stays
    to_task(base, "ctc", 17, lang_sha256="other")
    assert "replacing the base's head (ctc, 12 outputs): its outputs stand for other symbols" in caplog.text
    caplog.clear()
    to_task(base, "classify", 2, ["a", "b"])
    assert "replacing the base's head (ctc, 12 outputs): it is for ctc" in caplog.text


def test_which_parameters_are_the_heads():
    model = build("ctc", quiet_config(transformers.AutoConfig.for_model("wav2vec2", **MEMBERS["wav2vec2"][1])))
    heads = {name for name, _ in model.named_parameters() if model.is_head(name)}
    assert heads == {"head.linear.weight", "head.linear.bias"}
    assert {model.disk_name(name) for name in heads} == {"lm_head.weight", "lm_head.bias"}
    outside = {n for n, _ in plain("wav2vec2").named_parameters() if not n.startswith("wav2vec2.")}
    assert outside == {model.disk_name(name) for name in heads}


# --- a family and a head more

FAMILY = '''"""UniSpeech, wav2vec 2.0's computation under another name."""

from typing import ClassVar

from lowrank_speech.models.families.wav2vec2 import Wav2vec2


class UniSpeech(Wav2vec2):
    FAMILY = "unispeech"
    STEMS: ClassVar = {"unispeech": "UniSpeech"}
'''
HEAD = '''"""Mean and deviation over the valid frames, and a linear layer."""

from typing import Literal

import torch
from torch import nn

from lowrank_speech.models.heads.base import Head, within
from lowrank_speech.settings import Count, key, settings


@settings
class DeviationSettings:
    kind: Literal["deviation"] = key("deviation", "mean and deviation over the frames")
    size: Count = key(16, "outputs of the layer over frames")


class DeviationHead(Head):
    KIND, SETTINGS, TASK = "deviation", DeviationSettings, "classify"

    def __init__(self, settings, width, outputs):
        super().__init__(settings)
        self.frames = nn.Linear(width, settings.size)
        self.norm = nn.BatchNorm1d(2 * settings.size)
        self.classifier = nn.Linear(2 * settings.size, outputs)

    def forward(self, states, frames):
        mask = within(frames, states.shape[1])[..., None]
        hidden = torch.relu(self.frames(states)) * mask
        mean = hidden.sum(1) / frames[:, None]
        square = ((hidden - mean[:, None]) * mask).square().sum(1) / frames[:, None]
        return self.classifier(self.norm(torch.cat([mean, (square + 1e-6).sqrt()], 1)))
'''
ROW = '    "unispeech": Family(("unispeech",), ("conv", "waveform"), front_end=True),\n'
CASE = """        case "unispeech":
            from lowrank_speech.models.families.unispeech import UniSpeech

            return UniSpeech
"""
HEAD_CASE = """        case "deviation":
            from lowrank_speech.models.heads.deviation import DeviationHead

            return DeviationHead
"""
USED = """
import json, sys, torch, transformers
from pathlib import Path
from safetensors.torch import load_file
from torch.nn import functional as F
from lowrank_speech.factorising.model import save_factorised
from lowrank_speech.features.inputs import inputs_of
from lowrank_speech.models.build import build, quiet_config, unwrap
from lowrank_speech.models.folder import load_model, save_model
from lowrank_speech.models.heads.deviation import DeviationSettings
from lowrank_speech.models.layers import dense_layers
from lowrank_speech.models.sources import import_model, resolve
from lowrank_speech.models.tasks import to_task
from tiny_models import WAVEFORM, speech

root = Path(sys.argv[1])
torch.manual_seed(1)
config = quiet_config(transformers.UniSpeechConfig(**WAVEFORM))
unwrap(build("body", config)).save_pretrained(root / "hub")
base = import_model(resolve(str(root / "hub"), None), "unispeech")
assert base.family == "unispeech" and base.task == "body"
batch, lengths = speech(base, 0.31, 0.5)

model, new = to_task(base, "classify", 3, ["a", "b", "c"], seed=1, head=DeviationSettings(size=8))
assert new and model.head.frames.out_features == 8
model.train()
assert model.head.norm.training  # the body's batch norms rest, a head's learn
optimiser = torch.optim.SGD([p for n, p in model.named_parameters() if model.is_head(n)], lr=0.1)
before = {name: p.detach().clone() for name, p in model.named_parameters()}
F.cross_entropy(model.class_logits(batch, lengths), torch.tensor([0, 2])).backward()
optimiser.step()
moved = {name for name, p in model.named_parameters() if not torch.equal(before[name], p)}
assert moved == {name for name in before if name.startswith("head.")}

model.eval()
expected = model.class_logits(batch, lengths)
torch.testing.assert_close(model.class_logits(batch[:1, : lengths[0]], lengths[:1]), expected[:1])
save_model(model, root / "model")
names = load_file(root / "model" / "model.safetensors").keys()
assert {n for n in names if n.startswith("head.")} == {n for n in model.state_dict() if n.startswith("head.")}
raw = json.loads((root / "model" / "config.json").read_text())
assert raw["lowrank_speech"]["head"] == {"kind": "deviation", "size": 8} and raw["architectures"] == ["UniSpeechModel"]
again = load_model(root / "model")
assert torch.equal(again.class_logits(batch, lengths), expected) and inputs_of(root / "model").kind == "waveform"
plain = transformers.UniSpeechModel.from_pretrained(root / "model")
assert all(torch.equal(v, plain.state_dict()[k]) for k, v in model.body.state_dict().items())

save_factorised(again, dict.fromkeys(dense_layers(again, "ffn"), 4), root / "low")
low = load_model(root / "low")
assert len(low.plan) == 4 and low.class_logits(batch, lengths).shape == (2, 3)
print("done")
"""


@pytest.mark.slow
def test_a_family_and_a_head_are_a_file_each_and_a_line_of_their_registry(tmp_path):
    package = shutil.copytree(REPOSITORY / "src" / "lowrank_speech", tmp_path / "src" / "lowrank_speech") / "models"
    (package / "families" / "unispeech.py").write_text(FAMILY)
    (package / "heads" / "deviation.py").write_text(HEAD)
    for file, edits in {
        package / "registry.py": {
            "FAMILIES = {\n": "FAMILIES = {\n" + ROW,
            "    match family:\n": "    match family:\n" + CASE,
        },
        package / "heads" / "registry.py": {
            '"language-tokens")': '"language-tokens", "deviation")',
            "    match kind:\n": "    match kind:\n" + HEAD_CASE,
        },
    }.items():
        text = file.read_text()
        for old, new in edits.items():
            assert text.count(old) == 1
            text = text.replace(old, new)
        file.write_text(text)
    paths = os.pathsep.join([str(tmp_path / "src"), str(Path(__file__).parent)])
    ran = subprocess.run(
        [sys.executable, "-c", USED, str(tmp_path)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
    )
    assert ran.returncode == 0 and ran.stdout.strip() == "done", ran.stderr
