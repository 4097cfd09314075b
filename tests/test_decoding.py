"""Decoders: the registry, limits and loop detection for Whisper, unknown languages, real-time factors."""

import contextlib
import itertools
import json
import subprocess
import sys
import types

import pytest
import torch

from lowrank_speech.decoding import registry
from lowrank_speech.decoding.whisper.stopping import LEAST, PERIODS, REPEATS, Stop, looping
from lowrank_speech.errors import UserError
from lowrank_speech.lang.codes import nearest_language
from lowrank_speech.models.folder import load_model
from lowrank_speech.models.text import WhisperTokens
from lowrank_speech.settings import resolved
from lowrank_speech.stages import decode, score
from stage_world import decode_with, done, hypotheses, make_features, refused, utterance
from test_whisper_window import mels, published, speech
from whisper_decoding import generate

EOT = 99


# -- registry


def test_every_kind_says_what_it_serves():
    found = {(kind.name, kind.task): (kind.type, kind.reads) for kind in registry.kinds()}
    assert found[("greedy", "ctc")] == found[("greedy", "seq2seq")] == ("asr", "model")
    assert found[("scores", "classify")] == ("lid", "model")
    assert found[("beam", "ctc")] == found[("align", "ctc")] == ("asr", "emissions")
    assert found[("beam", "seq2seq")] == ("asr", "model")
    # Graphs have a language model by default, and rescoring needs a second one.
    needed = {"hlg": {"lm": "a"}, "nbest": {"lm": "a", "rescore_lm": "b"}, "rescore": {"lm": "a", "rescore_lm": "b"}}
    for kind in registry.kinds():
        assert kind.type == registry.TYPES[kind.task] and kind.reads in ("model", "emissions")
        assert kind.reads == "model" or kind.task == "ctc"  # only CTC models have emissions
        made = resolved(kind.settings(**needed.get(kind.name, {})))
        assert made["kind"] == kind.name and made["batch_seconds"] >= 60.0


def test_settings_of_decoders_import_nothing_heavy():
    code = (
        "import sys; from lowrank_speech.decoding import registry; registry.kinds();"
        "registry.check('asr', {'kind': 'greedy'});"
        "print([name for name in ('torch', 'numpy', 'lhotse', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (
            {"task": {"type": "asr"}, "decoder": {"kind": "gredy"}},
            "(did you mean 'greedy'?)",
        ),
        (
            {"task": {"type": "lid"}, "decoder": {"kind": "greedy"}},
            "'greedy' does not decode language recognition; expected one of: embeddings, scores",
        ),
        ({"task": {"type": "asr"}, "decoder": {"max_new_token": 3}}, "unknown key 'max_new_token' (did you mean"),
        ({"task": {"type": "asr"}, "decoder": {"batch_seconds": 0}}, "decoder.batch_seconds is 0; it must be above 0"),
        ({"task": {"type": "asr"}, "decoder": {"max_tokens_per_second": -1}}, "must be above 0"),
        ({"task": {"type": "asr"}, "decoder": {"priors": True}}, "decoder: unknown key 'priors'"),
        ({"task": {"type": "asr", "segment": {"seconds": 2.0}}}, "but not the transcript"),
        ({"task": {"type": "tts"}}, "'tts' is not valid; expected one of: asr, lid"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_read(tmp_path, capsys, cfg, message):
    paths = {"model": tmp_path / "none", "cuts": tmp_path / "none", "out": tmp_path / "out"}
    refused(capsys, message, decode, cfg, tmp_path / "m.json", **paths)


def test_a_key_of_the_other_family_is_refused_by_this_one(world, systems, tmp_path, capsys):
    """Whisper's keys pass the check of the config, which does not know the model, and not the CTC decoder's."""
    cfg = {"task": {"type": "asr"}, "decoder": {"language": "detect"}}
    paths = {"cuts": world.features["wav2vec2"] / "test.jsonl.gz", "lang": world.lang["wav2vec2"]}
    paths |= {"model": systems["wav2vec2", "asr"].model, "out": tmp_path / "out"}
    refused(capsys, "decoder: unknown key 'language'", decode, cfg, tmp_path / "m.json", **paths)


def test_a_kind_that_does_not_serve_the_model_is_named():
    with pytest.raises(UserError, match=r"'scores' does not decode ctc models; expected one of: .*greedy"):
        registry.module("scores", "ctc")


# -- Whisper: bounds and loops


def brute_force(row):
    """Whether the end of a list is one n-gram said so often that it counts as a loop."""
    for period in range(1, PERIODS + 1):
        n = max(REPEATS * period, LEAST)
        tail = row[-n:]
        if len(row) >= n and all(tail[i] == tail[i - period] for i in range(period, n)):
            return True
    return False


def test_loops_are_found_as_by_brute_force():
    generator = torch.Generator().manual_seed(1)
    rows = []
    for period, length, symbols in itertools.product(range(1, PERIODS + 4), range(28, 80, 3), (2, 50)):
        gram = torch.randint(symbols, (period,), generator=generator).tolist()
        text = torch.randint(symbols, (80,), generator=generator).tolist()
        said = (gram * 80)[:length]
        rows.append((text + said)[-80:])
    found = looping(torch.tensor(rows)).tolist()
    assert found == [brute_force(row) for row in rows] and 0 < sum(found) < len(rows)


def test_a_loop_needs_its_whole_length():
    for n in range(1, 70):
        assert looping(torch.full((1, n), 7)).item() == (n >= LEAST)
        assert looping(torch.arange(n)[None] % PERIODS).item() == (n >= REPEATS * PERIODS)
        assert not looping(torch.arange(n)[None]).item()


def run_stop(rows, bounds, loops=True):
    """Feed the rows token by token, as ``generate`` does; what each row came to and why it was stopped."""
    stop = Stop(bounds, EOT, loops, 3)
    lengths, looped = [0] * len(rows), [False] * len(rows)
    made, going = torch.zeros(len(rows), 3, dtype=torch.long), torch.ones(len(rows), dtype=torch.bool)
    for step in range(max(map(len, rows))):
        if not going.any():
            break
        tokens = [row[step] if step < len(row) else EOT for row in rows]
        made = torch.cat([made, torch.where(going, torch.tensor(tokens), EOT)[:, None]], dim=1)
        going &= ~stop(made, None) & (made[:, -1] != EOT)
    for i, row in enumerate(made[:, 3:].tolist()):
        said = row[: row.index(EOT)] if EOT in row else row
        why = stop.reason(said, EOT in row, i)
        lengths[i], looped[i] = len(said) if why else 0, why == "loop"
    return lengths, looped


def test_rows_stop_at_their_own_bound_and_know_nothing_of_each_other():
    talk = list(range(60))
    rows, bounds = [[5] * 60, talk, [*talk[:10], EOT], [1, 2] * 30, talk], [60, 60, 60, 20, 25]
    lengths, looped = run_stop(rows, bounds)
    assert lengths == [LEAST, 60, 0, 20, 25] and looped == [True, False, False, False, False]
    for i, row in enumerate(rows):
        assert run_stop([row], bounds[i : i + 1]) == ([lengths[i]], [looped[i]])
    assert run_stop(rows, bounds, loops=False) == ([60, 60, 0, 20, 25], [False] * 5)


def test_padding_behind_the_end_of_text_is_no_loop():
    lengths, looped = run_stop([[1, 2, EOT], list(range(60))], [60, 60])
    assert lengths == [0, 60] and not any(looped)


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    """A tiny Whisper with random weights: it says one token for ever, as a model that was badly factorised."""
    hub = published(tmp_path_factory.mktemp("hub"), max_target_positions=120)
    from lowrank_speech.models.folder import save_model
    from lowrank_speech.models.sources import Source, import_model

    model = import_model(Source(hub, None), "whisper")
    out = tmp_path_factory.mktemp("model") / "model"
    save_model(model, out, copy_from=hub)
    return load_model(out), out


@torch.no_grad()
def test_a_long_utterance_lends_its_bound_to_no_other(whisper):
    model, folder = whisper
    tokens, waves = WhisperTokens(folder), speech(0.3, 1.9, 0.9)
    features, lengths = mels(model, waves)
    bounds = [20 + int(20 * n / 100) for n in lengths.tolist()]
    together = generate(model, features, lengths, tokens, ["de"] * 3, None, bounds)
    assert [len(row.ids) for row in together] == bounds and {row.stopped for row in together} == {"bound"}
    for wave, bound, row in zip(waves, bounds, together, strict=True):
        (alone,) = generate(model, *mels(model, [wave]), tokens, ["de"], None, [bound])
        assert (alone.ids, alone.stopped) == (row.ids, row.stopped) and alone.score == pytest.approx(
            row.score, abs=1e-3
        )
    capped = generate(model, features, lengths, tokens, ["de"] * 3, 25, bounds)
    assert [len(row.ids) for row in capped] == [min(25, bound) for bound in bounds]


@torch.no_grad()
def test_a_row_that_loops_ends_and_keeps_what_it_said(whisper):
    model, folder = whisper
    tokens, (features, lengths) = WhisperTokens(folder), mels(model, speech(0.3, 1.9))
    free = generate(model, features, lengths, tokens, ["de", "en"])
    assert [len(row.ids) for row in free] == [116, 116] and {row.stopped for row in free} == {"bound"}
    ended = generate(model, features, lengths, tokens, ["de", "en"], loops=True)
    for row, whole in zip(ended, free, strict=True):
        assert row.stopped == "loop" and row.ids == whole.ids[: len(row.ids)] and LEAST <= len(row.ids) < 80
        assert looping(torch.tensor([row.ids])).item() and not looping(torch.tensor([row.ids[:-1]])).item()


@torch.no_grad()
def test_score_is_the_log_probability_of_the_tokens(whisper):
    model, folder = whisper
    tokens, (features, lengths) = WhisperTokens(folder), mels(model, speech(0.7))
    (row,) = generate(model, features, lengths, tokens, ["de"], 12)
    given = torch.tensor([tokens.prompt("de") + row.ids])
    log_probs = model.seq2seq_logits(features, lengths, given)[0].log_softmax(-1)
    expected = sum(log_probs[0, 3 + i, token].item() for i, token in enumerate(row.ids))
    assert row.score == pytest.approx(expected, abs=1e-3)


@contextlib.contextmanager
def saying(model, *texts):
    """Within, the rows of a batch say these tokens, one after the other."""
    steps = itertools.count()

    def say(module, inputs, logits):
        step = next(steps)
        logits = torch.full_like(logits, -100.0)
        for row, text in enumerate(texts):
            logits[row, :, text[min(step, len(text) - 1)]] = 0.0
        return logits

    hook = model.hf.proj_out.register_forward_hook(say)
    try:
        yield
    finally:
        hook.remove()


@torch.no_grad()
def test_rows_that_end_by_themselves_are_those_of_plain_generate(whisper):
    model, folder = whisper
    tokens, (features, lengths) = WhisperTokens(folder), mels(model, speech(0.3, 1.9, 0.9))
    talk = [*range(100, 150), *([7] * 20), *([1, 2] * 12), tokens.eot]  # what is said often, and not too often
    texts = [talk, [*range(40), 9, 9, 9, tokens.eot], [3, *[5] * 115]]
    options = {"input_features": model.pad_mel(features, lengths), "num_beams": 1, "do_sample": False}
    with saying(model, *texts):
        own = model.hf.generate(**options, max_new_tokens=116, language=["<|de|>"] * 3, task="transcribe").tolist()
    with saying(model, *texts):
        found = generate(model, features, lengths, tokens, ["de"] * 3, None, [116, 50, 116], True)
    for row, ids in zip(found[:2], own[:2], strict=True):
        assert row.stopped is None and row.ids == ids[: ids.index(tokens.eot)]
    assert [row.ids for row in found[:2]] == [talk[:-1], texts[1][:-1]]
    # The row that loops is ended, and no other waits for it.
    assert found[2].stopped == "loop" and found[2].ids == [3, *[5] * LEAST] == own[2][: LEAST + 1]


def test_ended_hypotheses_are_warned_of(world, systems, tmp_path, capsys):
    decode_with(world, systems, "whisper", "asr", tmp_path / "out", max_new_tokens=1)
    assert "hypotheses that reached their token limit" in capsys.readouterr().err


# -- languages


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("zh", "zh"),
        ("zh-CN", "zh"),
        ("ZH_cn", "zh"),
        ("zh-Hans-CN", "zh-Hans"),
        ("pt_BR", "pt-BR"),
        ("pt-PT", None),
        ("en-x-twain", "en"),
        ("eng", None),
        ("gsw", None),
        ("", None),
        (None, None),
    ],
)
def test_a_code_stands_for_the_language_that_it_begins_with(code, found):
    assert nearest_language(code, ["en", "zh", "zh-Hans", "pt-BR"]) == found


def test_utterances_in_a_language_that_whisper_does_not_know_lose_nothing(world, systems, tmp_path):
    new = [utterance(tmp_path, "n-fr", "ab", "fr"), utterance(tmp_path, "n-none", "ab", None)]
    new += [utterance(tmp_path, "n-de", "ab", "de-AT")]
    cuts = make_features(world, "whisper", [*world.cuts["test"], *new], tmp_path, "test")
    record = decode_with(world, systems, "whisper", "asr", tmp_path / "out", cuts=cuts)
    assert record["metrics"]["utterances"] == 11 and record["metrics"]["set_aside"] == {}
    assert sum(record["metrics"]["language_detected"].values()) == 2
    rows = {row["id"]: row for row in hypotheses(tmp_path / "out")}
    assert {name for name, row in rows.items() if "language" in row} == {"n-fr", "n-none"}
    assert all(rows[name]["language"] in ("de", "en") for name in ("n-fr", "n-none"))
    # The others are what they are without them.
    decode_with(world, systems, "whisper", "asr", tmp_path / "alone")
    alone = (tmp_path / "alone" / "hyp.txt").read_text().splitlines()
    assert [line for line in (tmp_path / "out" / "hyp.txt").read_text().splitlines() if line[0] != "n"] == alone


@torch.no_grad()
def test_detection_of_one_row_is_that_of_generate(whisper):
    model, folder = whisper
    tokens, (features, lengths) = WhisperTokens(folder), mels(model, speech(0.3, 1.9, 0.9))
    found = generate(model, features, lengths, tokens, None, 12)
    mel = model.pad_mel(features, lengths)
    own = model.hf.generate(input_features=mel, task="transcribe", num_beams=1, do_sample=False, max_new_tokens=12)
    for row, ids in zip(found, own.tolist(), strict=True):
        assert row.ids == [i for i in ids if i not in {tokens.sot, *tokens.language_ids.values()}]
    languages = [row.language for row in found]
    some = generate(model, features, lengths, tokens, [None, languages[1], None], 12)
    assert [row.ids for row in some] == [row.ids for row in found]
    assert [row.language for row in some] == [languages[0], None, languages[2]]


@torch.no_grad()
def test_codes_with_capitals_can_be_given(whisper, monkeypatch):
    """transformers looks up the lower-case code."""
    model, folder = whisper
    tokens, (features, lengths) = WhisperTokens(folder), mels(model, speech(0.7))
    expected = generate(model, features, lengths, tokens, ["en"], 12)
    monkeypatch.setattr(tokens, "language_ids", {"pt-BR": tokens.language_ids["en"]})
    lang_to_id = {"<|pt-BR|>": tokens.language_ids["pt-BR"]}
    monkeypatch.setattr(model.hf.generation_config, "lang_to_id", lang_to_id)
    assert generate(model, features, lengths, tokens, ["pt-BR"], 12) == expected


def test_detect_tells_whisper_nothing(world, systems, tmp_path):
    record = decode_with(world, systems, "whisper", "asr", tmp_path / "out", language="detect")
    assert sum(record["metrics"]["language_detected"].values()) == 8
    assert all(row["language"] in ("de", "en") for row in hypotheses(tmp_path / "out"))


# -- cost


def test_both_real_time_factors_divide_by_the_same_seconds(world, systems, tmp_path):
    """A stored cut lasts its frames; its cost is divided by the seconds of its recording, as in the stage features."""
    from lowrank_speech.decoding.sources import spoken_seconds
    from lowrank_speech.features.batches import segment
    from lowrank_speech.features.store import load_cuts

    stored = load_cuts(world.features["wav2vec2"] / "test.jsonl.gz")
    raw = {cut.id: cut.duration for cut in world.cuts["test"]}
    assert {cut.id: spoken_seconds(cut) for cut in stored} == raw
    assert any(abs(cut.duration - raw[cut.id]) > 1e-3 for cut in stored)
    for cut in segment(stored, 0.1):  # a part of an utterance lasts as long as the part
        assert spoken_seconds(cut) == cut.duration < raw[cut.id]
    record = decode_with(world, systems, "wav2vec2", "asr", tmp_path / "out")["metrics"]
    front = json.loads((world.features["wav2vec2"] / "test.json").read_text())["metrics"]
    assert record["speech_seconds"] == front["speech_seconds"]


# -- tokens, for scoring


@pytest.mark.parametrize("family", ["wav2vec2", "whisper"])
def test_tokens_spell_what_was_decoded_and_said(world, systems, family, tmp_path):
    decode_with(world, systems, family, "asr", tmp_path, **({"max_new_tokens": 8} if family == "whisper" else {}))
    for side in ("hyp", "ref"):
        texts, spelt = (
            dict(line.partition(" ")[::2] for line in (tmp_path / f"{side}{end}.txt").read_text().splitlines())
            for end in ("", "_tokens")
        )
        assert list(texts) == list(spelt) and (side == "hyp" or all(spelt.values()))
        # The characters of these token sets, with their word boundary.
        assert {u: " ".join(s.replace(" ", "").replace("|", " ").split()) for u, s in spelt.items()} == texts
    seconds = dict(line.split("\t") for line in (tmp_path / "seconds.tsv").read_text().splitlines()[1:])
    assert {cut.id: cut.duration for cut in world.cuts["test"]} == {u: float(s) for u, s in seconds.items()}
    cfg = {"seed": 1, "type": "asr", "score": {"bootstrap": 50}}
    metrics = done(score, cfg, tmp_path / "scored/score.json", decoded=tmp_path)["metrics"]
    spelt = [line.split()[1:] for line in (tmp_path / "ref_tokens.txt").read_text().splitlines()]
    assert metrics["tokens"] == sum(map(len, spelt)) and metrics["ter"] > 0
    assert sum(group["utterances"] for group in metrics["by_length"]["seconds"].values()) == len(seconds)
    assert (tmp_path / "scored/tokens.pra").is_file() and "oracle" not in metrics


def test_tokens_of_a_published_whisper_are_its_pieces(tmp_path):
    from lowrank_speech.decoding.symbols import symbols_of

    folder = published(tmp_path)
    tokens = WhisperTokens(folder)
    symbols = symbols_of(types.SimpleNamespace(folder=folder), types.SimpleNamespace(tokens=None, leading_space=False))
    ids = tokens.encode("hello there")
    assert symbols.of_text("hello there", "en") == symbols.of_ids([tokens.sot, *ids, tokens.eot])
    assert len(symbols.of_ids(ids)) == len(ids) and not any(" " in symbol for symbol in symbols.of_ids(ids))
