"""SpecAugment: which frames the masks change, and where in a model they are applied."""

from types import SimpleNamespace

import torch

from lowrank_speech.training.config import SpecAugment
from lowrank_speech.training.data.masks import spec_augment
from tiny_models import member, speech
from tiny_training import setup_of


def masked(seed, config=None, lengths=(40, 15, 28)):
    features = torch.randn(3, 40, 20, generator=torch.Generator().manual_seed(3))
    lengths = torch.tensor(lengths)
    valid = torch.arange(40)[None, :] < lengths[:, None]
    features = features * valid[..., None]
    given = features.clone()
    config = config or SpecAugment(time_width=8, time_share=0.5, feature_width=5)
    found = spec_augment(features, lengths, config=config, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(features, given)  # the input stays
    return SimpleNamespace(found=found, given=given, valid=valid, changed=found != given)


def test_masks_touch_valid_frames_only_and_hold_the_mean():
    touched = 0
    for seed in range(20):
        m = masked(seed)
        assert not m.changed[~m.valid].any()
        for row, given, changed, valid in zip(m.found, m.given, m.changed, m.valid, strict=True):
            if changed.any():
                torch.testing.assert_close(row[changed].unique(), given[valid].mean()[None], atol=1e-6, rtol=1e-5)
                touched += 1
    assert touched > 50


def test_masks_are_whole_frames_and_whole_channels_of_the_given_widths():
    only_time = SpecAugment(time_masks=1, time_width=8, time_share=0.2, feature_masks=0)
    only_channels = SpecAugment(time_masks=0, feature_masks=1, feature_width=5)
    widest = [0, 0]
    for seed in range(50):
        m = masked(seed, only_time)
        frames = m.changed.any(-1)
        assert torch.equal(m.changed, frames[..., None].expand_as(m.changed))
        assert (frames.sum(1) <= torch.tensor([8, 3, 5])).all()
        channels = masked(seed, only_channels).changed.any(1)
        assert (channels.sum(1) <= 5).all()
        widest = [max(widest[0], int(frames.sum(1).max())), max(widest[1], int(channels.sum(1).max()))]
    assert widest == [8, 5]


def test_a_band_of_stacked_frames_is_masked_in_all_of_them():
    config, features = SpecAugment(time_masks=0, feature_masks=1, feature_width=4), torch.randn(30, 20, 16)
    lengths = torch.full((30,), 20)
    found = spec_augment(features, lengths, 2, config=config, generator=torch.Generator().manual_seed(1))
    first, second = (found != features).unflatten(-1, (2, 8)).unbind(2)
    assert first.any() and torch.equal(first, second)


def test_masks_on_w2v_bert_hide_a_band_in_both_frames_of_a_row():
    model, seen = member("w2v-bert").train(), []
    features, lengths = speech(model, 0.5, 0.3)
    model.mask = lambda features, lengths, stacked: seen.append((lengths.tolist(), stacked)) or features
    model.states(features, lengths)
    assert seen == [(lengths.tolist(), 2)]


def test_masks_leave_whispers_padding_as_it_is():
    model, _, _ = setup_of("seq2seq")
    seen = []
    model.body.encoder.conv1.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    features, lengths = torch.full((1, 20, 12), -0.5), torch.tensor([20])
    features[0, 10] = 1.5  # all of the loudest frames are masked
    model.mask = lambda features, *_: features.masked_fill(features > 1.0, -0.4)
    model.train().states(features, lengths)
    model.eval().states(features, lengths)
    masked, plain = seen
    assert torch.equal(masked[..., 20:], plain[..., 20:]) and masked[..., 20:].unique().tolist() == [-0.5]
    assert (masked[..., 10] == -0.4).all() and (plain[..., 10] == 1.5).all()


def test_masks_follow_the_generator_alone():
    first = masked(1)
    torch.manual_seed(0)
    assert torch.equal(first.found, masked(1).found)
    assert not torch.equal(first.found, masked(2).found)
