"""Whisper's decoders: beam search, guards, languages, prompts and time stamps of utterances within the window."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from transformers import WhisperTokenizer

from lowrank_speech.decoding.whisper import beam, greedy
from lowrank_speech.decoding.whisper.generate import Options, Steps
from lowrank_speech.decoding.whisper.search import Guards, Window, compression_ratio
from lowrank_speech.decoding.whisper.timestamps import split
from lowrank_speech.errors import UserError
from lowrank_speech.models.text import WhisperTokens
from lowrank_speech.settings import read
from test_whisper_window import SPECIAL, mels, speech
from whisper_decoding import search_of
from whisper_models import LANG, batch_of, decoded, rows_of, source_in

SECONDS = (0.3, 1.9, 0.9, 3.5)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return source_in(tmp_path_factory.mktemp("whisper"))


@pytest.fixture(scope="module")
def english(tmp_path_factory):
    """An English-only model."""
    special = tuple(token for token in SPECIAL if token != "<|transcribe|>")
    return source_in(tmp_path_factory.mktemp("english"), special, 0)


def same(one, other):
    assert (one.ids, one.text, one.stopped, one.language) == (other.ids, other.text, other.stopped, other.language)
    assert one.score == pytest.approx(other.score, abs=1e-3)
    assert [alternative.ids for alternative in one.nbest] == [alternative.ids for alternative in other.nbest]
    assert one.segments == other.segments
    assert [word.text for word in one.words] == [word.text for word in other.words]
    for word, again in zip(one.words, other.words, strict=True):
        assert (word.start, word.end) == pytest.approx((again.start, again.end), abs=0.021)


KEYS = [
    (beam, {"beam": 4, "nbest": 4, "max_new_tokens": 12}),
    (beam, {"beam": 4, "nbest": 2, "timestamps": True, "length_penalty": 0.4, "max_new_tokens": 12}),
    (greedy, {"timestamps": True, "no_speech": True, "word_times": True}),
    (greedy, {"language": "detect", "languages": ("en",), "task": "translate"}),
    (greedy, {"prompt": "ab cd", "max_new_tokens": 9}),
    (
        greedy,
        {
            "temperatures": (0.0, 0.5, 1.0),
            "logprob_threshold": -1.0,
            "no_speech_threshold": 0.001,
            "max_new_tokens": 12,
        },
    ),
    (
        beam,
        {
            "beam": 3,
            "temperatures": (0.0, 1.0),
            "compression_ratio_threshold": 0.5,
            "timestamps": True,
            "max_new_tokens": 12,
        },
    ),
]


@pytest.mark.parametrize(("module", "keys"), KEYS)
def test_results_do_not_depend_on_the_batch(source, module, keys):
    batch = batch_of(source.model, *SECONDS)
    together = decoded(module, source, batch, **keys)
    assert len({row.ids for row in together}) > 1
    for row, again, alone in zip(together, decoded(module, source, batch, **keys), rows_of(batch), strict=True):
        assert row == again  # deterministic
        same(row, decoded(module, source, alone, **keys)[0])
    order = [3, 0, 1, 2]
    shuffled = {"cuts": [batch["cuts"][i] for i in order]} | {n: batch[n][order] for n in ("features", "lengths")}
    for i, row in zip(order, decoded(module, source, shuffled, **keys), strict=True):
        same(row, together[i])


def test_a_beam_of_one_is_greedy(source):
    batch = batch_of(source.model, *SECONDS)
    for keys in ({}, {"timestamps": True}, {"language": "detect"}):
        assert decoded(beam, source, batch, beam=1, **keys) == decoded(greedy, source, batch, **keys)


def exhaustive(source, features, lengths, allowed, most, prompt, penalty):
    """(score, tokens) of every text of ``allowed`` tokens that ends within ``most`` tokens, the best first."""
    eot, found = source.model.config.eos_token_id, []
    vocabulary = [*allowed, eot]
    for length in range(most):
        for tokens in itertools.product(allowed, repeat=length):
            given = torch.tensor([[*prompt, *tokens]])
            logits = source.model.seq2seq_logits(features, lengths, given)[0][0, len(prompt) - 1 :, vocabulary]
            log_probs = logits.log_softmax(-1)
            chosen = [vocabulary.index(token) for token in (*tokens, eot)]
            score = sum(log_probs[i, token].item() for i, token in enumerate(chosen))
            found.append((score / (length + 1) ** penalty, score, tokens))
    return sorted(found, reverse=True)


@torch.inference_mode()
@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_a_wide_beam_finds_the_best_of_all_texts(source, monkeypatch, penalty):
    model, tokens = source.model, WhisperTokens(source.folder)
    allowed = [10, 25, 86, 165]
    others = sorted(set(range(model.config.vocab_size)) - {*allowed, tokens.eot})
    monkeypatch.setattr(model.hf.generation_config, "suppress_tokens", others)
    features, lengths = mels(model, speech(1.9))
    search = search_of(model, tokens, Options(beam=128, nbest=6, length_penalty=penalty, loops=False))
    prompt = tuple(search.codes.start("de", "transcribe", False))
    (found,) = search(search.encode(model.pad_mel(features, lengths)), [Window(prompt, 0, 4, "u")])
    expected = exhaustive(source, features, lengths, allowed, 4, prompt, penalty)
    assert [tuple(row.tokens) for row in found.nbest] == [tokens for _, _, tokens in expected[:6]]
    assert [row.score for row in found.nbest] == pytest.approx([score for _, score, _ in expected[:6]], abs=1e-3)


@torch.inference_mode()
def test_scores_are_log_probabilities_and_alternatives_differ(source, monkeypatch):
    batch = batch_of(source.model, *SECONDS)
    tokens, config = WhisperTokens(source.folder), source.model.config
    silent = range(tokens.eot + 1, config.vocab_size)
    monkeypatch.setattr(source.model.hf.generation_config, "suppress_tokens", list(silent))
    for i, row in enumerate(decoded(beam, source, batch, beam=5, nbest=5, max_new_tokens=12)):
        assert row.nbest[0].ids == row.ids and row.nbest[0].score == row.score
        assert len({other.ids for other in row.nbest}) == len(row.nbest) > 1
        ended = [other.stopped is None for other in row.nbest]
        assert ended == sorted(ended, reverse=True)
        features, lengths = batch["features"][i : i + 1], batch["lengths"][i : i + 1]
        for other in row.nbest:
            given = torch.tensor([[*tokens.prompt("de"), *other.ids]])
            logits = source.model.seq2seq_logits(features, lengths, given)[0][0, 3:]
            logits[:, list(silent)] = -torch.inf
            said = [*other.ids, tokens.eot] if other.stopped is None else list(other.ids)
            log_probs = logits.log_softmax(-1)
            assert other.score == pytest.approx(sum(log_probs[i, t].item() for i, t in enumerate(said)), abs=1e-3)


# -- languages and tasks


def test_detection_keeps_to_the_list(source):
    batch = batch_of(source.model, *SECONDS)
    free = [row.language for row in decoded(greedy, source, batch, language="detect")]
    assert set(free) <= {"de", "en"}
    for language in ("de", "en"):
        rows = decoded(greedy, source, batch, language="detect", languages=(f"{language}-XX", "gsw"))
        assert [row.language for row in rows] == [language] * len(SECONDS)
        told = decoded(greedy, source, batch_of(source.model, *SECONDS, language=language))
        assert [row.ids for row in rows] == [row.ids for row in told]
    # A given language counts more than the list.
    assert all(row.language is None for row in decoded(greedy, source, batch, languages=("en",)))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"languages": ("xx", "yy")}, "knows none of xx, yy; expected some of: de, en"),
        ({"prompt": "a" * 30}, "decoder.prompt has 31 tokens, but .* takes at most 23; shorten it"),
        ({"prompt": "ab <|en|>"}, r"decoder.prompt contains the special token <\|en\|>"),
        ({"long": "chunks", "overlap": 4.0}, "decoder.overlap is 4 s, but the model's window has 4 s"),
    ],
)
def test_what_a_model_cannot_do_is_refused(source, keys, message):
    with pytest.raises(UserError, match=message):
        greedy.open(source, LANG, greedy.Settings(**keys))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"languages": ("de",)}, "English-only Whisper, which does not detect languages"),
        ({"task": "translate"}, "is an English-only Whisper; use task: transcribe"),
        ({"timestamps": True}, "decoder.timestamps needs time stamps, but the vocabulary of .* has none"),
        ({"long": "sequential"}, "decoder.long: sequential needs time stamps"),
        ({"no_speech": True}, r"decoder.no_speech: the vocabulary of .* has no token <\|nospeech\|>"),
        ({"prompt": "ab"}, r"decoder.prompt: the vocabulary of .* has no <\|startofprev\|>"),
    ],
)
def test_what_an_english_model_cannot_do_is_refused(english, keys, message):
    with pytest.raises(UserError, match=message):
        greedy.open(english, LANG, greedy.Settings(**keys))


def test_an_english_model_decodes(english):
    batch = batch_of(english.model, *SECONDS)
    for row in decoded(greedy, english, batch):
        assert row.language is None and row.score is not None
    assert decoded(beam, english, batch, beam=1) == decoded(greedy, english, batch)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"temperatures": [0.0, 0.4, 0.2]}, "each must be above the one before"),
        ({"temperatures": [0.0, 0.4]}, "set compression_ratio_threshold or logprob_threshold too"),
        ({"temperatures": []}, "decoder.temperatures"),
        ({"languages": []}, "decoder.languages"),
        ({"no_speech_threshold": 1.5}, "it must be at most 1"),
        ({"condition": True}, "only with long: sequential"),
        ({"overlap": 1.0, "long": "sequential"}, "only with long: chunks"),
        ({"prompt": " "}, "prompt is empty"),
        ({"beam": 0}, "decoder.beam is 0; it must be at least 1"),
        ({"beam": 2, "nbest": 3}, "nbest is 3, but beam is 2"),
        ({"temperatures": [0.2]}, "the beam would never be used"),
        ({"length_penalty": 11}, "it must be at most 10"),
    ],
)
def test_bad_settings(keys, message):
    with pytest.raises(UserError, match=message):
        read(beam.Settings, keys, "decoder")


# -- prompts and time stamps, as transformers has them


@torch.inference_mode()
def test_prompts_are_those_of_transformers(source):
    tokenizer = WhisperTokenizer.from_pretrained(source.folder)
    ids = tokenizer.get_prompt_ids("ab cd", return_tensors="pt")
    batch = batch_of(source.model, 1.9, 0.9)
    mel = source.model.pad_mel(batch["features"], batch["lengths"])
    options = {"task": "transcribe", "language": ["<|de|>"] * 2, "max_new_tokens": 9, "num_beams": 1}
    own = source.model.hf.generate(input_features=mel, prompt_ids=ids, do_sample=False, **options).tolist()
    plain = source.model.hf.generate(input_features=mel, do_sample=False, **options).tolist()
    assert own != plain
    for row, said in zip(decoded(greedy, source, batch, prompt=" ab cd ", max_new_tokens=9), own, strict=True):
        assert list(row.ids) == written(source, said)


def written(source, ids):
    """``ids`` up to the end of text, without special tokens and time stamps."""
    eot = source.model.config.eos_token_id
    return [i for i in (ids[: ids.index(eot)] if eot in ids else ids) if i < eot]


@torch.inference_mode()
def test_time_stamps_are_those_of_transformers(source):
    batch = batch_of(source.model, *SECONDS)
    mel = source.model.pad_mel(batch["features"], batch["lengths"])
    options = {"task": "transcribe", "language": ["<|de|>"] * len(SECONDS), "max_new_tokens": 12, "num_beams": 1}
    options |= {"force_unique_generate_call": True}  # it would go on after the last pair of time stamps
    # Ours may not lie beyond the window of 4 s.
    begin = source.model.hf.generation_config.no_timestamps_token_id + 1
    beyond = list(range(begin + 201, begin + 1501))
    own = source.model.hf.generate(
        input_features=mel, do_sample=False, return_timestamps=True, suppress_tokens=beyond, **options
    ).tolist()
    rows = decoded(greedy, source, batch, timestamps=True, max_new_tokens=12, stop_loops=False)
    for row, said in zip(rows, own, strict=True):
        assert list(row.ids) == written(source, said)
    assert any(row.segments for row in rows)


def test_splitting_at_time_stamps():
    codes = SimpleNamespace(first_time=1000, is_time=lambda token: token >= 1000)

    def times(tokens, seconds=4.0):
        found, covered = split(tokens, codes, seconds)
        return [(part.tokens, part.start, part.end) for part in found], covered

    pair = [1000, 5, 6, 1050, 1050, 7, 1100, 1100, 8]  # the last text was cut off
    assert times(pair) == ([(pair[:4], 0.0, 1.0), (pair[4:7], 1.0, 2.0)], 2.0)
    closed = [1000, 5, 1050, 1050, 7, 1100]
    assert times(closed) == ([(closed[:3], 0.0, 1.0), (closed[3:], 1.0, 2.0)], 4.0)
    assert times([1010, 5, 1050]) == ([([1010, 5, 1050], 0.2, 1.0)], 4.0)
    assert times([1010, 5, 6]) == ([([1010, 5, 6], 0.2, 0.2)], 4.0)
    assert times([]) == ([([], 0.0, 4.0)], 4.0)
    assert times([1000, 5, 1250], 3.0) == ([([1000, 5, 1250], 0.0, 3.0)], 3.0)  # not beyond the speech


# -- guards


def guards(temperatures=(0.0,), ratio=None, log_prob=None, no_speech=None):
    return Guards(temperatures, ratio, log_prob, no_speech, 1, lambda ids: "".join(chr(97 + i % 26) for i in ids))


def result(score, tokens):
    return SimpleNamespace(score=score, tokens=list(tokens))


def test_guards_decide_as_the_reference():
    talk, loop = result(-9.0, range(9)), result(-0.1, [1] * 200)
    assert not guards().refuses(talk) and not guards().dropped(talk, 1.0)
    assert guards(ratio=2.4).refuses(loop) and not guards(ratio=2.4).refuses(talk)
    assert compression_ratio("a" * 200) > 2.4 > compression_ratio("abcdefgh")
    # -9 / (9 tokens and the end of text) = -0.9
    assert guards(log_prob=-0.8).refuses(talk) and not guards(log_prob=-1.0).refuses(talk)
    assert guards(no_speech=0.6).dropped(talk, 0.7) and not guards(no_speech=0.6).dropped(talk, 0.6)
    assert not guards(no_speech=0.6, log_prob=-1.0).dropped(talk, 0.7)  # it is sure of what it wrote
    assert guards(no_speech=0.6, log_prob=-0.8).dropped(talk, 0.7)


@torch.inference_mode()
def test_the_next_temperature_is_tried_only_where_the_result_is_refused(source):
    model, tokens = source.model, WhisperTokens(source.folder)
    features, lengths = mels(model, speech(*SECONDS))
    states = search_of(model, tokens).encode(model.pad_mel(features, lengths))

    def search(guard):
        searched = search_of(model, tokens, guards=guard)
        prompt = tuple(searched.codes.start("de", "transcribe", False))
        return searched(states, [Window(prompt, 0, 20, f"u{i}") for i in range(len(SECONDS))])

    plain = search(guards())
    means = sorted(found.best.score / (len(found.best.tokens) + 1) for found in plain)
    middle = (means[1] + means[2]) / 2
    several = search(guards((0.0, 0.5, 1.0), log_prob=middle))
    for found, before in zip(several, plain, strict=True):
        fine = before.best.score / (len(before.best.tokens) + 1) >= middle
        assert (found.temperature == 0.0) == fine and (found.best == before.best) == fine
    assert {found.temperature for found in several} > {0.0}


@torch.inference_mode()
def test_the_no_speech_probability_is_that_after_the_start(source):
    batch = batch_of(source.model, *SECONDS)
    start = torch.full((len(SECONDS), 1), source.model.config.decoder_start_token_id)
    logits = source.model.seq2seq_logits(batch["features"], batch["lengths"], start)[0][:, 0]
    token = source.model.hf.generation_config.no_timestamps_token_id - 1
    expected = logits.softmax(-1)[:, token].tolist()
    rows = decoded(greedy, source, batch, no_speech=True)
    assert [row.no_speech for row in rows] == pytest.approx(expected, rel=1e-3) and len(set(expected)) > 1
    middle = sorted(expected)[2]
    for row, value in zip(decoded(greedy, source, batch, no_speech_threshold=middle), expected, strict=True):
        assert (row.stopped == "no_speech") == (value > middle)
        if row.stopped == "no_speech":
            assert (row.ids, row.text, row.score) == ((), "", None) and row.no_speech == pytest.approx(value, rel=1e-3)


def test_samples_have_the_probabilities_of_the_model():
    logits, temperature, number = torch.tensor([2.0, 1.0, 0.0, -1.0]), 0.7, 4000
    steps = Steps(1, temperature, range(number))
    chosen = steps(None, logits.expand(number, -1)).argmax(-1)
    shares = torch.bincount(chosen, minlength=4) / number
    assert torch.allclose(shares, (logits / temperature).softmax(-1), atol=0.025)
    # The score is the model's, without the temperature.
    assert torch.allclose(steps.values[0][:, 0].float(), logits.log_softmax(-1)[chosen])
    assert steps.tokens[0][:, 0].equal(chosen)


# -- shallow fusion


class Bigrams:
    """A word model that knows two words: log10 probabilities, with the last word as the state."""

    unit, folder = "word", "lm"

    def check_lang(self, lang, where):
        pass

    def scorer(self):
        return self

    def start(self):
        return "<s>"

    def score(self, state, word):
        return (-0.2 if word.startswith("w") else -2.5) - (0.5 if state == word else 0.0), word

    def end(self, state):
        return -0.1 if state.startswith("w") else -1.5


def text_score(text):
    model, state, total = Bigrams(), "<s>", 0.0
    for word in text.lower().split():
        score, state = model.score(state, word)
        total += score
    return math.log(10) * (total + model.end(state))


def with_lm(source, model):
    return SimpleNamespace(model=source.model, folder=source.folder, resources={"lm": model})


WORDS = SimpleNamespace(tokens=None, leading_space=False, normalise=lambda text, language=None: text.lower())


@torch.inference_mode()
def test_a_language_model_of_words_joins_the_search(source, monkeypatch):
    """As a search of all texts of a few tokens, one of which is a blank."""
    tokens = WhisperTokens(source.folder)
    allowed = [*tokens.encode("w"), *tokens.encode("x"), *tokens.encode(" ")]
    others = sorted(set(range(source.model.config.vocab_size)) - {*allowed, tokens.eot})
    monkeypatch.setattr(source.model.hf.generation_config, "suppress_tokens", others)
    batch = batch_of(source.model, 1.9)
    keys = {"lm": "lm", "lm_weight": 0.7, "insertion": 0.3, "length_penalty": 0.0, "stop_loops": False}
    keys |= {"beam": 100, "nbest": 5, "max_new_tokens": 4}
    (row,) = decoded(beam, with_lm(source, Bigrams()), batch, WORDS, **keys)
    found = exhaustive(source, batch["features"], batch["lengths"], allowed, 4, tokens.prompt("de"), 0.0)
    total = [
        (score + 0.7 * text_score(text := tokens.decode(list(said))) + 0.3 * len(text.split()), said)
        for _, score, said in found
    ]
    total.sort(reverse=True)
    assert [other.ids for other in row.nbest] == [said for _, said in total[:5]]
    assert [other.score for other in row.nbest] == pytest.approx([score for score, _ in total[:5]], abs=1e-3)
    assert [said for _, _, said in found[:5]] != [said for _, said in total[:5]]


def test_a_language_model_without_weight_changes_nothing(source):
    batch = batch_of(source.model, *SECONDS)
    plain = decoded(beam, source, batch, beam=3)
    assert decoded(beam, with_lm(source, Bigrams()), batch, WORDS, beam=3, lm="lm", lm_weight=0.0) == plain


def test_results_with_a_language_model_do_not_depend_on_the_batch(source):
    batch, keys = batch_of(source.model, *SECONDS), {"lm": "lm", "lm_weight": 1.0, "max_new_tokens": 8}
    fused = with_lm(source, Bigrams())
    for module, more in ((greedy, {}), (beam, {"beam": 3, "timestamps": True})):
        together = decoded(module, fused, batch, WORDS, **keys, **more)
        for row, alone in zip(together, rows_of(batch), strict=True):
            same(row, decoded(module, fused, alone, WORDS, **keys, **more)[0])
    assert decoded(beam, fused, batch, WORDS, beam=1, **keys) == decoded(greedy, fused, batch, WORDS, **keys)


def test_a_language_model_of_tokens_scores_each_of_them(world, systems, monkeypatch):
    """A base from scratch, against a search of all texts."""
    from lowrank_speech.decoding.sources import Network
    from lowrank_speech.lang.load import Lang

    lang = Lang.load(world.lang["whisper"])

    class Model(Bigrams):
        unit = "token"

        def score(self, state, word):
            return (-5.0 if word == "<unk>" else -0.1 * int(word)) - (1.0 if word == state else 0.0), word

        def end(self, state):
            return -0.3 if state == "4" else -2.0

    source = Network(systems["whisper", "asr"].model, "cpu")
    source.resources = {"lm": Model()}
    cut = world.cuts["test"][0]
    (batch,) = source.batches([cut], 10.0)
    allowed = [3, 4, 5]
    others = sorted(set(range(source.model.config.vocab_size)) - {*allowed, lang.tokens.eot})
    monkeypatch.setattr(source.model.hf.generation_config, "suppress_tokens", others)
    keys = {"lm": "lm", "lm_weight": 0.6, "length_penalty": 0.0, "stop_loops": False, "max_new_tokens": 4}
    (row,) = decoded(beam, source, batch, lang, beam=100, nbest=4, **keys)
    with torch.inference_mode():
        found = exhaustive(
            source,
            batch["features"],
            batch["lengths"],
            allowed,
            4,
            lang.tokens.prompt(cut.supervisions[0].language),
            0.0,
        )
    total = []
    for _, score, said in found:
        state, lm = "<s>", 0.0
        for token in said:
            value, state = Model().score(state, str(token))
            lm += value
        total.append((score + 0.6 * math.log(10) * (lm + Model().end(state)), said))
    total.sort(reverse=True)
    assert [other.ids for other in row.nbest] == [said for _, said in total[:4]]
    assert [other.score for other in row.nbest] == pytest.approx([score for score, _ in total[:4]], abs=1e-3)


def test_a_language_model_that_does_not_fit_is_refused(source):
    for unit in ("character", "token"):
        model = Bigrams()
        model.unit = unit
        with pytest.raises(UserError, match=f"is a model of {unit}s; this decoder takes one with unit: word"):
            beam.open(with_lm(source, model), WORDS, beam.Settings(lm="lm"))
