"""A feature extractor's settings are read from either file, as in transformers."""

import json

import pytest
from transformers import AutoFeatureExtractor, SeamlessM4TFeatureExtractor, Wav2Vec2FeatureExtractor

from lowrank_speech.errors import UserError
from lowrank_speech.features.inputs import Inputs, inputs_of
from lowrank_speech.models.files import files_read
from lowrank_speech.models.preprocessor import read_preprocessor
from lowrank_speech.stages import base
from stage_world import done
from tiny_models import BANDS, plain

OLD, NEW = "preprocessor_config.json", "processor_config.json"


def nested(folder, key="feature_extractor"):
    """Move the settings where transformers 5 writes them."""
    file = folder / OLD
    (folder / NEW).write_text(json.dumps({key: json.loads(file.read_text()), "processor_class": "X"}))
    file.unlink()


def checkpoint(folder, name="wav2vec2", **keys):
    plain(name, "body", quiet=False).save_pretrained(folder)
    if name == "w2v-bert":
        SeamlessM4TFeatureExtractor(feature_size=BANDS, num_mel_bins=BANDS, padding_value=1).save_pretrained(folder)
    else:
        Wav2Vec2FeatureExtractor(**keys).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("key", [None, "feature_extractor", "audio_processor"])
@pytest.mark.parametrize("normalise", [True, False])
def test_normalisation_is_what_the_file_says_whichever_it_is(key, normalise, tmp_path):
    hub = checkpoint(tmp_path / "hub", do_normalize=normalise)
    if key is not None:
        nested(hub, key)
    assert inputs_of(hub) == Inputs("waveform", normalise=normalise)
    done(base, {"seed": 1, "family": "wav2vec2", "source": str(hub)}, tmp_path / "base.json", out=tmp_path / "base")
    assert inputs_of(tmp_path / "base") == Inputs("waveform", normalise=normalise)
    file = tmp_path / "base" / (OLD if key is None else NEW)
    assert file in files_read(tmp_path / "base")  # a training that goes on looks at it


def test_of_two_files_the_one_counts_that_transformers_takes(tmp_path):
    hub = checkpoint(tmp_path / "hub", do_normalize=False)
    nested(hub)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(hub)
    assert inputs_of(hub).normalise is AutoFeatureExtractor.from_pretrained(hub).do_normalize is False
    (hub / NEW).write_text('{"processor_class": "Wav2Vec2Processor"}')  # the older form names only the class
    assert inputs_of(hub).normalise is AutoFeatureExtractor.from_pretrained(hub).do_normalize is True


def test_filterbanks_of_w2v_bert_are_read_from_either_file(tmp_path):
    hub = checkpoint(tmp_path / "hub", "w2v-bert")
    assert inputs_of(hub) == Inputs("fbank", n_mels=BANDS)
    nested(hub)
    assert inputs_of(hub) == Inputs("fbank", n_mels=BANDS)
    content = json.loads((hub / NEW).read_text())
    content["feature_extractor"]["stride"] = 4
    (hub / NEW).write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"{NEW}: num_mel_bins {BANDS} and stride 4 don't fit"):
        inputs_of(hub)


@pytest.mark.parametrize(("text", "said"), [("{", "not valid JSON"), ("[1]", r"expected a JSON mapping, got \[1\]")])
@pytest.mark.parametrize("name", [OLD, NEW])
def test_a_broken_file_is_named(name, text, said, tmp_path):
    checkpoint(tmp_path)
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=rf"{name}: {said}"):
        read_preprocessor(tmp_path)


def test_without_a_file_the_import_says_what_it_assumes(tmp_path, capsys):
    hub = checkpoint(tmp_path / "hub")
    (hub / OLD).unlink()
    done(base, {"seed": 1, "family": "wav2vec2", "source": str(hub)}, tmp_path / "base.json", out=tmp_path / "base")
    assert inputs_of(tmp_path / "base").normalise
    assert f"{hub} has no {OLD} or {NEW}, so samples will be normalised" in capsys.readouterr().err
