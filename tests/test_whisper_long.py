"""Whisper's decoders: recordings over the window, stitching, times of words, utterances without a frame."""

import copy
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import WhisperForConditionalGeneration
from transformers.models.whisper import generation_whisper, tokenization_whisper

from lowrank_speech.decoding.whisper import beam, greedy
from lowrank_speech.decoding.whisper.alignment import Timed, align, warp, words
from lowrank_speech.decoding.whisper.recordings import Recording, starts
from lowrank_speech.decoding.whisper.stitch import stitch
from lowrank_speech.models.text import WhisperTokens
from lowrank_speech.models.window import shorten
from lowrank_speech.stages import decode
from stage_world import decode_with, done, hypotheses, make_features, table, utterance
from test_whisper_search import same
from test_whisper_window import mels, speech
from whisper_models import batch_of, decoded, rows_of, source_in

SECONDS = (9.3, 0.9, 5.1, 3.5)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return source_in(tmp_path_factory.mktemp("whisper"))


# -- recordings


@torch.inference_mode()
def test_sequential_decoding_is_that_of_transformers(source, monkeypatch):
    """Of one recording. transformers pads the last window with zeros, which are not silence; here it does as we do."""
    batch = batch_of(source.model, 9.3)
    recording = Recording.of("u", batch["features"][0], [])
    size, model = source.model.window, source.model.hf

    def segment(input_features, seek, seek_num_frames, num_segment_frames, cur_bsz, batch_idx_map):
        return torch.stack([recording.window(int(seek[0]), size)])

    monkeypatch.setattr(WhisperForConditionalGeneration, "_get_input_segment", staticmethod(segment))
    begin = model.generation_config.no_timestamps_token_id + 1
    own = model.generate(
        input_features=batch["features"][:, : recording.end].transpose(1, 2),
        language="<|de|>",
        task="transcribe",
        return_timestamps=True,
        suppress_tokens=list(range(begin + 201, begin + 1501)),
        max_new_tokens=12,
        num_beams=1,
        do_sample=False,
        return_segments=True,
    )
    (row,) = decoded(greedy, source, batch, long="sequential", max_new_tokens=12, stop_loops=False)
    assert list(row.ids) == [i for i in own["sequences"][0].tolist() if i < model.config.eos_token_id]
    # Without a pair of time stamps, their segment begins with the window, and ours at its first time stamp.
    theirs = [min(float(segment["end"]), 9.31) for segment in own["segments"][0]]
    assert len(row.segments) > 2
    assert all(any(abs(segment.end - end) < 0.03 for end in theirs) for segment in row.segments)
    assert all(a.start <= a.end <= b.start <= b.end for a, b in itertools.pairwise(row.segments))


@pytest.mark.parametrize(
    ("module", "keys"),
    [
        (greedy, {"long": "sequential", "word_times": True}),
        (greedy, {"long": "sequential", "condition": True, "prompt": "ba", "language": "detect"}),
        (greedy, {"long": "sequential", "temperatures": (0.0, 1.0), "logprob_threshold": -1.0}),
        (greedy, {"long": "chunks", "word_times": True, "language": "detect"}),
        (beam, {"long": "chunks", "beam": 3, "overlap": 1.0}),
    ],
)
def test_results_do_not_depend_on_the_batch(source, module, keys):
    batch, keys = batch_of(source.model, *SECONDS), {"max_new_tokens": 8} | keys
    together = decoded(module, source, batch, **keys)
    assert len({row.ids for row in together}) > 1
    assert module is beam or len(together[0].ids) > len(together[1].ids)
    for row, alone in zip(together, rows_of(batch), strict=True):
        same(row, decoded(module, source, alone, **keys)[0])
        starts = [word.start for word in row.words]
        assert starts == sorted(starts) or keys["long"] == "chunks"
    # Utterances that fit the window are decoded as ever.
    if "condition" not in keys:
        short = {name: value for name, value in keys.items() if name not in ("long", "overlap")}
        (plain,) = decoded(module, source, batch_of(source.model, waves=[speech(*SECONDS)[1]]), **short)
        same(together[1], plain)


def test_the_last_word_of_a_recording_is_heard(source):
    """Whatever the recording's end is made of changes the result."""
    waves = speech(9.3)
    changed = waves[0].clone()
    changed[-12_000:] = 0.3 * torch.sin(torch.arange(12_000) * 0.3)
    for long in ("sequential", "chunks"):
        rows = [decoded(greedy, source, batch_of(source.model, waves=[w]), long=long)[0] for w in (waves[0], changed)]
        assert rows[0].ids != rows[1].ids


def test_chunks_cover_a_recording():
    for end, size, overlap in [(1, 100, 30), (100, 100, 30), (101, 100, 30), (170, 100, 30), (171, 100, 30), (5, 3, 1)]:
        found = starts(end, size, overlap)
        assert found[0] == 0 and found[-1] + size >= end and all(start < end for start in found)
        assert {later - first for first, later in itertools.pairwise(found)} <= {size - overlap}
        assert len(found) == 1 or found[-2] + size < end


def tokens_at(chunks, runs):
    return [chunks[chunk][place] for run in runs for chunk, place in run]


def test_stitching_is_that_of_transformers():
    generator = np.random.default_rng(1)
    for _ in range(200):
        chunks = [generator.integers(0, 5, generator.integers(1, 15)).tolist() for _ in range(generator.integers(1, 5))]
        assert tokens_at(chunks, stitch(chunks)) == tokenization_whisper._find_longest_common_sequence(chunks)


def test_stitching_gives_back_what_was_cut():
    text = np.random.default_rng(1).integers(0, 500, 90).tolist()
    chunks = [text[first : first + 30] for first in range(0, 80, 20)]
    runs = stitch(chunks)
    assert tokens_at(chunks, runs) == text and len(runs) == 1
    assert [len(run) for run in stitch([[1, 2, 3], [4, 5], [4, 5, 6]])] == [3, 3]  # nothing in common: two runs
    assert stitch([]) == [] and stitch([[], []]) == [] and tokens_at([[], [7]], stitch([[], [7]])) == [7]


# -- times of words


def test_warping_is_that_of_transformers():
    generator = np.random.default_rng(1)
    for _ in range(60):
        cost = generator.standard_normal(generator.integers(1, 12, 2))
        cost = cost.round(1) if generator.random() < 0.3 else cost  # with ties
        for ours, theirs in zip(warp(cost), generation_whisper._dynamic_time_warping(cost), strict=True):
            assert ours.tolist() == theirs.tolist()


@torch.inference_mode()
def test_times_are_those_of_transformers(source):
    """``_extract_token_timestamps`` from the attention of generate(), but that of the text alone, as OpenAI has it."""
    model, text = source.model, [86, 25, 10, 165, 23]
    tokens = WhisperTokens(source.folder)
    features, lengths = mels(model, speech(2.0))
    states, start = model.body.encoder(model.pad_mel(features, lengths)).last_hidden_state, tokens.prompt("de")
    found = align(model, states, 100, start, text)
    assert model.config._attn_implementation == "sdpa"
    heads = [[layer, head] for layer in range(model.config.decoder_layers) for head in range(2)]
    hf = copy.deepcopy(model.hf)
    hf.set_attn_implementation("eager")
    given = torch.tensor([[*start, *text]])
    attention = hf.model.decoder(input_ids=given, encoder_hidden_states=states, output_attentions=True).cross_attentions
    outputs = type("Outputs", (dict,), {"cross_attentions": [attention], "sequences": given})()
    times = hf._extract_token_timestamps(outputs, heads, num_frames=200, num_input_ids=0)
    weights = torch.stack([attention[layer][0, head, :, :100] for layer, head in heads])
    assert torch.isfinite(weights).all() and times.shape == (1, len(start) + len(text) + 1)
    # Theirs warp the prompt as well: the text begins no earlier there, and ours begins at the first frame.
    assert found[0].start == 0.0 and all(a.end == b.start for a, b in itertools.pairwise(found))
    assert all(time.start <= time.end <= 2.0 for time in found)
    log_probs = model.seq2seq_logits(features, lengths, given)[0][0, 3:].log_softmax(-1)
    assert [time.log_prob for time in found] == pytest.approx(
        [log_probs[i, token].item() for i, token in enumerate(text)], abs=1e-3
    )


def test_alignment_heads_are_those_of_the_generation_settings(source, monkeypatch):
    batch = batch_of(source.model, 3.5)
    found = []
    for heads in (None, [[0, 0]], [[0, 1]], [[0, 0], [0, 1]], [[7, 0]]):
        monkeypatch.setattr(source.model.hf.generation_config, "alignment_heads", heads, raising=False)
        found.append([(word.start, word.end) for word in decoded(greedy, source, batch, word_times=True)[0].words])
    every, first, second, both, outside = found
    assert every == both == outside and first != second  # the model has one layer


@torch.inference_mode()
def test_times_follow_the_attention(source, monkeypatch):
    """A decoder whose tokens attend to one stretch each gets the times of these stretches."""
    model, text, start = source.model, [86, 25, 10], WhisperTokens(source.folder).prompt("de")
    states = torch.zeros(1, 200, model.config.d_model)
    attention = torch.full((1, 2, 7, 200), 1e-4)
    for row, (first, last) in zip((3, 4, 5, 6), ((0, 30), (30, 80), (80, 120), (120, 150)), strict=True):
        attention[..., row, first:last] = 1.0
    real = model.body.decoder.forward

    def forward(*args, **kwargs):
        out = real(*args, **kwargs)
        out["cross_attentions"] = (attention,)
        return out

    monkeypatch.setattr(model.body.decoder, "forward", forward)
    found = align(model, states, 150, start, text, offset=10.0)
    times = [(time.start, time.end) for time in found]
    expected = [(10.0, 10.6), (10.6, 11.6), (11.6, 12.4)]
    assert np.allclose(times, expected, atol=0.041), times


def test_words_are_what_blanks_separate():
    times = [Timed(i / 10, (i + 1) / 10, -1.0) for i in range(12)]

    def of(pieces, language="en"):
        found = words(range(len(pieces)), times, lambda ids: "".join(pieces[i] for i in ids), language)
        assert all(word.score == pytest.approx(-10 * (word.end - word.start)) for word in found)
        return [(word.text, round(word.start, 1), round(word.end, 1)) for word in found]

    assert of([" He", " s", "aid", ",", " no"]) == [("He", 0.0, 0.1), ("said,", 0.1, 0.4), ("no", 0.4, 0.5)]
    assert of(["a", "b", " ", "c"]) == [("ab", 0.0, 0.2), ("c", 0.3, 0.4)]
    assert of(["你", "好", "。"], "zh") == [("你", 0.0, 0.1), ("好。", 0.1, 0.3)]
    assert of([]) == []
    # A character of two tokens: the first alone decodes to U+FFFD.
    text = {(): "", (0,): " \ufffd", (0, 1): " ä", (0, 1, 2): " äu"}
    found = words([0, 1, 2], times, lambda ids: text[tuple(ids)], "de")
    assert [(word.text, word.start, word.end) for word in found] == [("äu", 0.0, pytest.approx(0.3))]
    # Token sets whose texts have no blanks at their ends.
    stripped = words(range(4), times, lambda ids: "".join("ab c"[i] for i in ids).strip(), "de")
    assert [(word.text, word.end) for word in stripped] == [("ab", 0.2), ("c", pytest.approx(0.4))]


@pytest.mark.parametrize("rank", [None, 8])
def test_factorised_models_and_short_windows_have_all_of_it(source, rank):
    """The window of 2 s instead of 4 s; the feed-forward layers as factors."""
    model = copy.deepcopy(source.model)
    if rank is not None:
        names = [name for name, _ in model.body.named_modules() if name.endswith((".fc1", ".fc2"))]
        model = model.factorised(dict.fromkeys(names, rank))
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if any(part in name for part in ("fc1", "fc2")):
                torch.nn.init.normal_(parameter, std=0.3)
    shorten(model, 2.0)
    short = SimpleNamespace(model=model, folder=source.folder)
    batch = batch_of(model, 5.3, 0.9)
    for long in ("sequential", "chunks"):
        rows = decoded(greedy, short, batch, long=long, word_times=True, max_new_tokens=8)
        for row, seconds in zip(rows, (5.3, 0.9), strict=True):
            times = [time for word in row.words for time in (word.start, word.end)]
            assert min(times, default=0) >= 0 and max(times, default=0) <= seconds + 0.03
            assert all(word.start <= word.end for word in row.words)
        assert max(word.end for word in rows[0].words) > 2.0


# -- the stage


def test_long_cuts_are_decoded_instead_of_set_aside(world, systems, tmp_path):
    """A base from scratch, with a window of one second and characters."""
    long = utterance(tmp_path, "x-long", "abcdabcd", "en", seconds=2.6)
    cuts = make_features(world, "whisper", [*world.cuts["test"], long], tmp_path, "test")
    aside = decode_with(world, systems, "whisper", "asr", tmp_path / "aside", cuts=cuts)
    assert aside["metrics"]["set_aside"] == {"longer than the model's window": 1}
    record = decode_with(world, systems, "whisper", "asr", tmp_path / "all", cuts=cuts, long="chunks", word_times=True)
    assert record["metrics"]["set_aside"] == {} and record["metrics"]["utterances"] == 9
    found = {row["id"]: row for row in hypotheses(tmp_path / "all")}
    for row in hypotheses(tmp_path / "aside"):
        assert {name: found[row["id"]][name] for name in ("id", "text", "score")} == {
            name: row[name] for name in ("id", "text", "score")
        }
    assert found["x-long"]["text"]
    assert all(0 <= word["start"] <= word["end"] <= 2.62 for word in found["x-long"].get("words", []))


def test_an_utterance_without_a_frame_is_an_empty_hypothesis(source):
    batch = batch_of(source.model, 0.9, 0.3)
    batch["lengths"] = torch.tensor([int(batch["lengths"][0]), 0])
    for keys in ({}, {"long": "chunks"}, {"timestamps": True, "word_times": True}):
        row, empty = decoded(greedy, source, batch, **keys)
        assert (empty.ids, empty.text, empty.stopped) == ((), "", "empty") and row.stopped != "empty"
    batch["lengths"] = torch.tensor([0, 0])
    assert [row.stopped for row in decoded(beam, source, batch)] == ["empty", "empty"]


@pytest.mark.parametrize("samples", [1, 79, 160, 400])
def test_audio_shorter_than_a_frame_is_decoded(source, samples):
    waves = [torch.zeros(samples), 0.1 * torch.ones(samples)]
    for keys in ({"word_times": True}, {"timestamps": True}, {"no_speech_threshold": 0.0}):
        rows = decoded(greedy, source, batch_of(source.model, waves=waves), **keys)
        assert len(rows) == 2 and all(word.end <= 0.041 for row in rows for word in row.words)


def test_dropped_utterances_are_counted_and_reported(source, world, tmp_path, capsys):
    """A published model that hears no speech anywhere."""
    from lowrank_speech.stages import lang

    folder, cuts = tmp_path / "lang", world.corpus / "test.jsonl.gz"
    done(lang, {"seed": 1, "lang": {"kind": "whisper"}}, folder / "lang.json", cuts=cuts, out=folder)
    cfg = {"task": {"type": "asr"}, "decoder": {"no_speech_threshold": 0.0, "timestamps": True}}
    paths = {"model": source.folder, "cuts": cuts, "lang": folder, "out": tmp_path / "out"}
    record = done(decode, cfg, tmp_path / "out" / "decode.json", **paths)
    assert record["metrics"]["stopped"] == {"no_speech": 8}
    assert "stopped 8 hypotheses that have no speech, by its no-speech probability" in capsys.readouterr().err
    rows = hypotheses(tmp_path / "out")
    assert {row["text"] for row in rows} == {""} and all("no_speech" in row for row in rows)
    assert table(tmp_path / "out" / "set_aside.tsv") == []
