"""Parameter counts: published models have their published sizes, and a folder has the same count as its preset."""

import json

import pytest
from transformers import Wav2Vec2Config, WhisperConfig

from lowrank_speech.errors import UserError
from lowrank_speech.models.counting import count
from lowrank_speech.models.layers import dense_layers
from lowrank_speech.models.presets import PRESETS, build_meta
from lowrank_speech.models.registry import family_class

# Millions: total, feed-forward, attention, embeddings, convolutions (shared/reference/methods.md, 1). XLS-R with a CTC
# head on 32 symbols.
TABLE = {
    "xls-r-300m": (315.47, 201.45, 100.76, None, 12.60),
    "xls-r-1b": (962.54, 629.45, 314.82, None, 17.32),
    "xls-r-2b": (2159.32, 1416.04, 708.16, None, 33.70),
    "whisper-tiny": (37.76, 9.45, 7.09, 20.66, 0.54),
    "whisper-base": (72.59, 25.20, 18.90, 27.55, 0.91),
    "whisper-small": (241.73, 113.34, 85.02, 41.33, 1.96),
    "whisper-medium": (763.86, 402.90, 302.21, 55.10, 3.39),
    "whisper-large-v3": (1543.49, 839.27, 629.51, 68.88, 5.41),
}


def millions(n):
    return round(n / 1e6, 2)


@pytest.mark.parametrize("preset", TABLE)
def test_the_table_of_published_models(preset):
    total, ffn, attention, embeddings, conv = TABLE[preset]
    model = build_meta(preset, "ctc" if preset.startswith("xls-r") else None)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    assert all(p.is_meta for p in model.parameters())
    assert millions(model.parameters_total()) == total
    for layers, expected in (("ffn", ffn), ("attention", attention)):
        assert millions(sum(row["before"] for row in count(preset=preset, layers=layers)["layers"])) == expected
    if embeddings is not None:
        assert millions(sum(n for name, n in sizes.items() if "embed_" in name)) == pytest.approx(embeddings, abs=0.015)
    # with their norms and biases
    parts = ("feature_extractor", "pos_conv_embed", "encoder.conv")
    assert millions(sum(n for name, n in sizes.items() if any(p in name for p in parts))) == conv


def test_the_papers_quarter():
    found = count(preset="xls-r-300m", layers="ffn", rank=512)
    assert (found["total_before"], found["total_after"]) == (315_438_720, 239_941_248)
    assert found["class"] == "Wav2Vec2Model" and found["reduction"] == pytest.approx(0.2393, abs=1e-4)
    assert len(found["layers"]) == 48 and not found["left_dense"]
    row = found["layers"][0]
    assert row == {
        "name": "encoder.layers.0.feed_forward.intermediate_dense",
        "d_out": 4096,
        "d_in": 1024,
        "rank": 512,
        "before": 4096 * 1024 + 4096,
        "after": 512 * 5120 + 4096,
    }
    assert sum(r["before"] - r["after"] for r in found["layers"]) == 315_438_720 - 239_941_248
    assert sum(found["groups"].values()) == found["total_before"]
    assert build_meta("xls-r-300m", "ctc").parameters_total() == 315_438_720 + 32_800


def test_the_relatives_of_xls_r_differ_from_it_by_their_own_parts():
    total = {name: count(preset=name)["total_before"] for name in PRESETS}
    large, width = total["xls-r-300m"], 1024
    assert total["mms-300m"] == total["hubert-large"] == large and total["mms-1b"] == total["xls-r-1b"]
    biases = 7 * 512  # of the front end, which WavLM and data2vec lack
    gates = 24 * (64 * 8 + 8 + 16) + 320 * 16  # of WavLM's relative positions, and their embedding
    assert total["wavlm-large"] == large - biases + gates
    positions, stacked = width * 64 * 128 + 128 + width, 5 * (width * 64 * 19 + width)  # with weight norm; without
    assert total["data2vec-audio-large"] == large - biases - positions + stacked

    ffn, attention = 2 * width * 4096 + 4096 + width, 4 * (width**2 + width) + 73 * 64
    convolution = 3 * width**2 + 31 * width + 2 * 2 * width
    block = 2 * ffn + attention + convolution + 4 * 2 * width
    assert total["w2v-bert-2.0"] == 24 * block + 2 * 160 + 160 * width + width + width  # and masked_spec_embed


@pytest.mark.parametrize(
    ("preset", "rank", "share"),
    [
        ("xls-r-1b", 640, 0.245),
        ("whisper-small", 384, 0.176),
        ("whisper-medium", 512, 0.198),
        ("whisper-large-v3", 640, 0.204),
    ],
)
def test_half_the_width_as_rank(preset, rank, share):
    assert count(preset=preset, layers="ffn", rank=rank)["reduction"] == pytest.approx(share, abs=5e-4)


@pytest.mark.parametrize(
    ("preset", "rank"),
    [("xls-r-300m", 511), ("whisper-small", 299), ("whisper-medium", 446), ("whisper-large-v3", 571)],
)
def test_ranks_for_24_percent(preset, rank):
    found = count(preset=preset, layers="ffn", reduction=0.24)
    assert {row["rank"] for row in found["layers"]} == {rank}
    assert 0.24 <= found["reduction"] <= 0.242


def test_encoder_and_decoder_apart_and_squares_that_save_nothing():
    both = [row["name"] for row in count(preset="whisper-tiny", layers="all")["layers"]]
    encoder = [row["name"] for row in count(preset="whisper-tiny", layers="all:encoder")["layers"]]
    decoder = [row["name"] for row in count(preset="whisper-tiny", layers="all:decoder")["layers"]]
    assert sorted(encoder + decoder) == sorted(both) and len(both) == 4 * (4 + 2) + 4 * (8 + 2)
    assert all(n.startswith("encoder.layers.") for n in encoder) and all(
        n.startswith("decoder.layers.") for n in decoder
    )
    found = count(preset="whisper-tiny", layers="attention", rank=192)
    assert found["total_before"] == found["total_after"] and len(found["left_dense"]) == 4 * 4 + 4 * 8


TINY_WAV2VEC2 = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 12,
}
TINY_WHISPER = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "vocab_size": 60,
    "pad_token_id": 1,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "decoder_start_token_id": 2,
}


@pytest.mark.parametrize(
    ("config", "architecture", "prefix", "family", "task"),
    [
        (Wav2Vec2Config(**TINY_WAV2VEC2), "Wav2Vec2ForCTC", "wav2vec2.", "wav2vec2", "ctc"),
        (Wav2Vec2Config(**TINY_WAV2VEC2), "Wav2Vec2ForPreTraining", "", "wav2vec2", "body"),
        (WhisperConfig(**TINY_WHISPER), "WhisperForConditionalGeneration", "model.", "whisper", "seq2seq"),
    ],
    ids=["ctc", "pretraining", "whisper"],
)
def test_plain_and_factorised_folders(config, architecture, prefix, family, task, tmp_path):
    raw = config.to_dict() | {"architectures": [architecture]}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    plain = count(model=str(tmp_path), layers="ffn", rank=4)
    names = [row["name"] for row in plain["layers"]]
    assert all(name.startswith(("encoder.layers.", "decoder.layers.")) for name in names)
    assert count(model=str(tmp_path))["total_after"] == plain["total_before"]

    # Plans of before, whose names were those of transformers' class, are read as well.
    for before in ("", prefix):
        raw["lowrank_speech"] = {"family": family, "task": task, "plan": {before + names[0]: 4, before + names[3]: 3}}
        (tmp_path / "config.json").write_text(json.dumps(raw))
        own = count(model=str(tmp_path))
        assert own["total_before"] == plain["total_before"]
        assert [(row["name"], row["rank"]) for row in own["layers"]] == [(names[0], 4), (names[3], 3)]
        assert own["total_after"] == own["total_before"] - sum(r["before"] - r["after"] for r in own["layers"])
    with pytest.raises(UserError, match="already factorised"):
        count(model=str(tmp_path), rank=4)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({}, "either a model or a preset"),
        ({"preset": "xls-r-9b"}, "'xls-r-9b' is not a preset; expected one of: xls-r-300m"),
        ({"model": "/nowhere"}, "/nowhere is not a model folder, a hub name of the form owner/name, or a preset"),
        (
            {"preset": "whisper-tiny", "layers": "fnn"},
            "'fnn' is not a layer group of the family 'whisper'; expected one of",
        ),
        ({"preset": "whisper-tiny", "layers": "*.fc9"}, "'*.fc9' matches no linear layer; names"),
        ({"preset": "whisper-tiny", "layers": "proj_*"}, "matches no linear layer"),
        ({"preset": "whisper-tiny", "rank": 999}, "rank 999 is above the full rank 384"),
        ({"preset": "whisper-tiny", "reduction": 0.9}, "out of reach"),
        ({"preset": "whisper-tiny", "reduction": 0.1, "rank": 3}, "exactly one"),
    ],
)
def test_messages(request_, message):
    with pytest.raises(UserError) as caught:
        count(**request_)
    assert message in str(caught.value)


def test_every_preset_builds_and_every_group_matches():
    for preset in ("xls-r-300m", "hubert-large", "wavlm-large", "data2vec-audio-large", "w2v-bert-2.0", "whisper-tiny"):
        for task in ("seq2seq",) if preset.startswith("whisper") else ("ctc", "classify", "body"):
            model = build_meta(preset, task)
            for group in model.LAYERS:
                assert dense_layers(model, group)
            assert dense_layers(model, model.LORA)
    classifier = build_meta("whisper-tiny", "classify")
    assert len(dense_layers(classifier, "all")) == 4 * 6
    assert dense_layers(classifier, classifier.LORA)


def test_layers_take_groups_patterns_and_lists():
    whisper = family_class("whisper")
    assert whisper.layer_patterns(["ffn", "*.q_proj", "ffn"]) == ("*coder.layers.*.fc[12]", "*.q_proj")
    with pytest.raises(UserError, match="empty"):
        whisper.layer_patterns([])
    with pytest.raises(UserError, match="'conformer' is not a known model family; expected one of: wav2vec2, w2v-"):
        family_class("conformer")
