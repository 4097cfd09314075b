"""A frozen front end computed in pieces gives the same output as in one go, for every length, with less memory."""

import pytest
import torch

from lowrank_speech.models.families.wav2vec2 import through
from tiny_models import member

CLOSE = {"atol": 1e-5, "rtol": 1e-4}


def whole(model, waveforms):
    return through(model.body.feature_extractor.conv_layers, waveforms[:, None]).transpose(1, 2)


def calls(model):
    """Inputs' lengths of the first layer, as they come."""
    found = []
    layer = model.body.feature_extractor.conv_layers[0]
    layer.register_forward_pre_hook(lambda _, args: found.append(args[0].shape[2]))
    return found


@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("name", ["wav2vec2", "data2vec-audio"])
@torch.no_grad()
def test_pieces_give_what_the_whole_gives(name, rows):
    model = member(name)
    for samples in (80, 400, 7_999, 8_010, 8_080, 8_081, 8_160, 33_333):
        waveforms = torch.randn(rows, samples, generator=torch.Generator().manual_seed(samples))
        found = model.conv_features(waveforms, torch.full((rows,), samples))
        assert found.shape[1] == model.conv_lengths(torch.tensor(samples))
        torch.testing.assert_close(found, whole(model, waveforms), **CLOSE)


@torch.no_grad()
def test_a_piece_is_half_a_second_at_most_and_nothing_is_left_out():
    model = member("wav2vec2")
    lengths = calls(model)
    model.conv_features(torch.randn(1, 160_000), torch.tensor([160_000]))
    assert len(lengths) > 15 and max(lengths) < 9_000 and sum(lengths) >= 160_000 - 400


def test_what_trains_or_normalises_over_time_is_computed_whole():
    model = member("wav2vec2")
    lengths = calls(model)
    wave, n = torch.randn(1, 40_000), torch.tensor([40_000])
    for parameter in model.front_end():
        parameter.requires_grad_(True)
    assert model.conv_features(wave, n).requires_grad and lengths == [40_000]
    with torch.no_grad():
        group = member("wav2vec2-group")
        lengths = calls(group)
        torch.testing.assert_close(group.conv_features(wave, n), whole(group, wave))
    assert lengths == [40_000, 40_000]
