"""A base's ``window``: a published Whisper padded to less than its 30 s (here: less than 4 s)."""

import json

import numpy as np
import pytest
import torch
from lhotse import CutSet
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForAudioClassification,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
    pipeline,
)

from lowrank_speech import cli
from lowrank_speech.errors import UserError
from lowrank_speech.features.logmel import log_mel
from lowrank_speech.models.folder import load_model
from lowrank_speech.models.sources import Source, import_model
from lowrank_speech.models.text import WhisperTokens
from lowrank_speech.models.window import preprocessor, shorten
from lowrank_speech.stages import base, calibrate, decode, export, factorise, features, lang, train
from stage_world import TEXTS, done, refused, table, utterance
from tiny_models import WHISPER, member
from whisper_decoding import generate

LONG, SHORT = 4.0, 2.0  # seconds
LANGUAGES = ("<|de|>", "<|en|>")
SPECIAL = ("<|startoftranscript|>", *LANGUAGES, "<|translate|>", "<|transcribe|>", "<|notimestamps|>")
CONFIG = WHISPER | {
    "num_mel_bins": 20,
    "max_source_positions": int(50 * LONG),
    "init_std": 0.2,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}
RECIPE = {"epochs": 1, "batch_seconds": 20.0, "lr": 0.001, "head_lr": 0.01, "dropout": 0.0}


def published(folder, nested=False, cls=WhisperForConditionalGeneration, special_tokens=SPECIAL, times=0, **changed):
    """A checkpoint as it lies on the hub; ``nested``: as transformers 5 writes the processor.

    ``times``: number of time stamps, which follow the tokenizer's last token.
    """
    tokenizer = WhisperTokenizer(vocab={c: i for i, c in enumerate(sorted(ByteLevel.alphabet()))}, merges=[])
    tokenizer.add_tokens(list(special_tokens), special_tokens=True)
    ids = dict(zip(special_tokens, tokenizer.convert_tokens_to_ids(special_tokens), strict=True))
    eot = tokenizer.eos_token_id
    special = {"pad_token_id": eot, "bos_token_id": eot, "eos_token_id": eot}
    special |= {"decoder_start_token_id": ids["<|startoftranscript|>"]}
    torch.manual_seed(0)
    hf = cls(WhisperConfig(**CONFIG | special | {"vocab_size": len(tokenizer) + times} | changed))
    if cls is WhisperForConditionalGeneration:
        hf.generation_config = GenerationConfig(
            **special,
            is_multilingual=True,
            lang_to_id={language: ids[language] for language in LANGUAGES},
            task_to_id={"translate": ids["<|translate|>"], "transcribe": ids.get("<|transcribe|>")},
            no_timestamps_token_id=ids["<|notimestamps|>"],
            max_initial_timestamp_index=50,
            suppress_tokens=[],
            begin_suppress_tokens=[],
            max_length=CONFIG["max_target_positions"],
        )
    hf.save_pretrained(folder)
    extractor = WhisperFeatureExtractor(feature_size=CONFIG["num_mel_bins"], chunk_length=int(LONG))
    if nested:
        WhisperProcessor(extractor, tokenizer).save_pretrained(folder)
    else:
        extractor.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def imported(source, out, **keys):
    """The folder that the stage base makes of ``source``."""
    done(base, {"seed": 1, "family": "whisper", "source": str(source), **keys}, out.with_suffix(".json"), out=out)
    return out


@pytest.fixture(scope="module", params=["legacy", "nested"])
def hub(request, tmp_path_factory):
    return published(tmp_path_factory.mktemp("hub") / "whisper", request.param == "nested")


@pytest.fixture(scope="module")
def short(hub):
    return imported(hub, hub.parent / "short", window=SHORT)


def speech(*seconds):
    generator = torch.Generator().manual_seed(1)
    return [0.1 * torch.randn(int(16_000 * s), generator=generator) for s in seconds]


def mels(model, waves):
    """Log-mels of ``waves`` as a batch, and their lengths."""
    found = [log_mel(wave, model.config.num_mel_bins) for wave in waves]
    return torch.nn.utils.rnn.pad_sequence(found, batch_first=True), torch.tensor([len(m) for m in found])


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- what the model computes


@torch.no_grad()
@pytest.mark.parametrize("seconds", [0.5, 1.27, SHORT])
def test_states_are_those_of_the_long_model_with_its_table_cut(hub, short, seconds):
    model, plain = load_model(short), WhisperForConditionalGeneration.from_pretrained(hub).model.encoder.eval()
    features, lengths = mels(model, speech(seconds))
    hidden = plain.conv1(model.pad_mel(features, lengths))
    hidden = plain.conv2(torch.nn.functional.gelu(hidden))
    hidden = torch.nn.functional.gelu(hidden).transpose(1, 2)
    hidden = hidden + plain.embed_positions.weight[: hidden.shape[1]]
    for layer in plain.layers:
        hidden = layer(hidden, None)
    found, _ = model.states(features, lengths)
    assert found.shape[1] == 50 * SHORT and torch.equal(found, plain.layer_norm(hidden))


@torch.no_grad()
def test_it_is_another_function_than_that_of_the_long_window(hub, short, tmp_path):
    """Both attend to their padding: what a window costs before fine-tuning is not nothing."""
    long, cut = load_model(imported(hub, tmp_path / "long")), load_model(short)
    features, lengths = mels(cut, speech(1.0))
    (a, frames), (b, same) = long.states(features, lengths), cut.states(features, lengths)
    assert torch.equal(frames, same)
    assert not torch.allclose(a[:, : frames[0]], b[:, : frames[0]], atol=1e-2)


def test_table_is_that_of_a_model_built_with_the_short_window(short, tmp_path):
    made = published(tmp_path / "made", max_source_positions=int(50 * SHORT))
    rows = [
        WhisperForConditionalGeneration.from_pretrained(folder).model.encoder.embed_positions.weight
        for folder in (short, made)
    ]
    assert torch.equal(*rows) and not any(
        p.requires_grad for p in load_model(short).body.encoder.embed_positions.parameters()
    )


@torch.no_grad()
def test_a_batch_gives_what_single_utterances_give(short):
    model = load_model(short)
    tokens = WhisperTokens(short)
    waves, given = speech(0.3, SHORT, 1.1), torch.tensor([[tokens.sot, 64, 65]])
    both = model.seq2seq_logits(*mels(model, waves), given.expand(3, -1))
    ids = [row.ids for row in generate(model, *mels(model, waves), tokens, ["de", "en", "de"])]
    for i, wave in enumerate(waves):
        alone = model.seq2seq_logits(*mels(model, [wave]), given)
        for a, b in zip(alone, both, strict=True):
            torch.testing.assert_close(a[0], b[i], atol=1e-5, rtol=1e-5)
        (row,) = generate(model, *mels(model, [wave]), tokens, [["de", "en", "de"][i]])
        assert row.ids == ids[i]


@torch.no_grad()
def test_a_classifier_is_cut_as_well(tmp_path):
    hub = published(tmp_path / "hub", cls=WhisperForAudioClassification, num_labels=3)
    model = load_model(imported(hub, tmp_path / "short", window=SHORT))
    assert model.task == "classify" and model.class_logits(*mels(model, speech(1.0))).shape == (1, 3)


# --- the folder


@pytest.mark.parametrize("window", [LONG, None])
def test_the_models_own_window_changes_nothing(hub, tmp_path, window):
    files = contents(imported(hub, tmp_path / "same", window=window))
    assert files == contents(imported(hub, tmp_path / "without"))


def test_only_table_config_and_preprocessor_differ(hub, short, tmp_path):
    long = imported(hub, tmp_path / "long")
    before, after = contents(long), contents(short)
    differ = {name for name in before if before[name] != after[name]}
    extractor = {"preprocessor_config.json", "processor_config.json"} & set(before)
    assert before.keys() == after.keys() and len(extractor) == 1
    assert differ == {"config.json", "model.safetensors"} | extractor
    old, new = (json.loads(files["config.json"]) for files in (before, after))
    assert {key for key in old if old[key] != new[key]} == {"max_source_positions"}
    states = [load_model(folder).hf.state_dict() for folder in (long, short)]
    changed = {key for key in states[0] if not torch.equal(states[0][key], states[1][key])}
    assert changed == {"model.encoder.embed_positions.weight"}


@torch.no_grad()
@pytest.mark.parametrize("seconds", [0.2, 1.234, SHORT - 0.02])
def test_log_mels_are_those_of_the_folders_processor(short, seconds):
    model, processor = load_model(short), WhisperProcessor.from_pretrained(short)
    extractor = processor.feature_extractor
    assert (extractor.chunk_length, extractor.n_samples, extractor.nb_max_frames) == (2, 32_000, 200)
    wave = speech(seconds)[0]
    expected = processor(wave.numpy(), sampling_rate=16_000, return_tensors="pt").input_features
    torch.testing.assert_close(model.pad_mel(*mels(model, [wave])), expected, atol=2e-4, rtol=0)


@torch.no_grad()
def test_plain_transformers_generates_from_the_folder(short):
    plain, processor = WhisperForConditionalGeneration.from_pretrained(short), WhisperProcessor.from_pretrained(short)
    model, waves = load_model(short), speech(0.7, 1.6)
    tokens = WhisperTokens(short)
    ours = [tokens.decode(row.ids) for row in generate(model, *mels(model, waves), tokens, ["de", "en"], 12)]
    inputs = processor([wave.numpy() for wave in waves], sampling_rate=16_000, return_tensors="pt")
    options = {"language": list(LANGUAGES), "task": "transcribe", "num_beams": 1, "max_new_tokens": 12}
    ids = plain.generate(inputs.input_features, **options)
    assert processor.batch_decode(ids, skip_special_tokens=True) == ours and len(ours[0]) > 0
    recogniser = pipeline("automatic-speech-recognition", model=str(short))
    told = options | {"language": "<|de|>"}
    assert recogniser(waves[0].numpy(), generate_kwargs=told)["text"] == ours[0]


def test_a_window_of_no_whole_seconds_wants_to_be_told_to_the_extractor(hub, tmp_path):
    short = imported(hub, tmp_path / "short", window=1.5)
    plain, processor = WhisperForConditionalGeneration.from_pretrained(short), WhisperProcessor.from_pretrained(short)
    assert processor.feature_extractor.chunk_length == 2
    wave = speech(1.0)[0].numpy()
    inputs = processor(wave, sampling_rate=16_000, return_tensors="pt", max_length=24_000)
    assert plain.generate(inputs.input_features, language="<|de|>", max_new_tokens=4).shape[0] == 1


def test_a_window_of_no_whole_seconds_is_warned_of(hub, caplog):
    model = import_model(Source(hub, None), "whisper")
    shorten(model, 1.5)
    preprocessor(model, hub)
    assert "max_length=24000" in caplog.text


def test_a_folder_without_preprocessor_gets_one(hub, tmp_path):
    model = import_model(Source(hub, None), "whisper")
    shorten(model, SHORT)
    (tmp_path / "processor_config.json").write_text('{"processor_class": "WhisperProcessor"}')
    files = preprocessor(model, tmp_path)
    assert list(files) == ["preprocessor_config.json"]
    said = json.loads(files["preprocessor_config.json"])
    assert (said["chunk_length"], said["feature_size"], said["n_samples"]) == (2, 20, 32_000)


# --- the stages below


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpus")
    for split in ("train", "dev", "test"):
        cuts = [
            utterance(root, f"{split}-{language}{i}", text, language)
            for language, texts in TEXTS.items()
            for i, text in enumerate(texts)
        ]
        # The long model would take both: it has 4 s.
        cuts += [utterance(root, f"{split}-{s}", "ab", "de", seconds=s) for s in (2.0, 2.5)]
        CutSet.from_cuts(cuts).to_file(root / f"{split}.jsonl.gz")
    done(lang, {"seed": 1, "lang": {"kind": "whisper"}}, root / "lang" / "lang.json", out=root / "lang")
    return root


@pytest.mark.parametrize("kind", ["logmel", "waveform"])
def test_the_chain_of_stages(short, corpus, tmp_path, kind):
    """Features, calibration, low-rank factors, both tasks, export: all know the window from the folder alone."""
    for split in ("train", "dev", "test"):
        paths = {"cuts": corpus / f"{split}.jsonl.gz", "base": short, "out": tmp_path / f"{split}.jsonl.gz"}
        done(features, {"kind": kind}, tmp_path / f"{split}.json", **paths)
    paths = {"model": short, "cuts": tmp_path / "train.jsonl.gz", "out": tmp_path / "moments.safetensors"}
    done(calibrate, {"seed": 1, "layers": "ffn", "utterances": 3}, tmp_path / "calibrate.json", **paths)
    cfg = {"seed": 1, "factorise": {"layers": "ffn", "rank": 8, "init": "activation"}}
    paths = {"model": short, "moments": tmp_path / "moments.safetensors", "out": tmp_path / "low"}
    done(factorise, cfg, tmp_path / "factorise.json", **paths)
    told = "2.50 s, window 2.00 s" if kind == "waveform" else "2.52 s, window 2.02 s"  # stored frames see 20 ms more
    for task, adapt, model in (("asr", "full", "low"), ("lid", "full", "low"), ("asr", "lora", "short")):
        out, words = tmp_path / task / adapt, {"lang": corpus / "lang"} if task == "asr" else {}
        model = short if model == "short" else tmp_path / model
        cfg = {"seed": 1, "task": {"type": task}, "adapt": adapt, "training": RECIPE}
        cfg |= {"lora": {"rank": 2}} if adapt == "lora" else {}
        paths = {f"{split}_cuts": tmp_path / f"{split}.jsonl.gz" for split in ("train", "dev")} | words
        record = done(train, cfg, out / "train.json", model=model, out=out, scratch=out / "scratch", **paths)
        assert record["metrics"]["utterances_train"] == 9
        rows = table(out / "set_aside.tsv")
        assert [row["id"] for row in rows] == ["train-2.5", "dev-2.5"]
        assert {(row["reason"], row["detail"]) for row in rows} == {("longer than the model's window", told)}
        trained = load_model(out / "model")
        assert trained.window == 100 * SHORT
        assert WhisperFeatureExtractor.from_pretrained(out / "model").chunk_length == SHORT
        paths = {"model": out / "model", "cuts": tmp_path / "test.jsonl.gz", "out": out / "decoded"} | words
        numbers = done(decode, {"task": {"type": task}}, out / "decode.json", **paths)["metrics"]
        assert numbers["utterances"] == 9 and numbers["set_aside"] == {"longer than the model's window": 1}
        assert [row["id"] for row in table(out / "decoded" / "set_aside.tsv")] == ["test-2.5"]
    paths = {"model": tmp_path / "asr" / "full" / "model", "out": tmp_path / "dense"}
    done(export, {"format": "dense"}, tmp_path / "export.json", **paths)
    plain = WhisperForConditionalGeneration.from_pretrained(tmp_path / "dense")
    inputs = WhisperProcessor.from_pretrained(tmp_path / "dense")(np.zeros(16_000), sampling_rate=16_000)
    assert plain.model.encoder(torch.tensor(np.array(inputs.input_features))).last_hidden_state.shape[1] == 100


def test_a_system_is_a_source_that_can_be_cut(short, tmp_path):
    cfg = {"seed": 1, "factorise": {"layers": "ffn", "rank": 8}}
    done(factorise, cfg, tmp_path / "low.json", model=short, out=tmp_path / "low")
    again = load_model(imported(tmp_path / "low", tmp_path / "again", window=1.0))
    assert again.window == 100 and again.plan == load_model(tmp_path / "low").plan
    assert WhisperFeatureExtractor.from_pretrained(tmp_path / "again").chunk_length == 1


def test_the_command_factorise_keeps_the_window(short, tmp_path):
    with pytest.raises(SystemExit) as left:
        cli.main(["factorise", str(short), str(tmp_path / "low"), "--rank", "8"])
    assert not left.value.code and load_model(tmp_path / "low").window == 100 * SHORT
    assert WhisperFeatureExtractor.from_pretrained(tmp_path / "low").chunk_length == SHORT


# --- what is refused


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"window": 5}, "window is 5 s, but the model's is 4 s"),
        ({"window": 1.01}, "window is 1.01; it must be a multiple of 0.02 s"),
        ({"window": 0}, "window is 0; it must be above 0"),
        ({"window": -2}, "window is -2; it must be above 0"),
        ({"window": 2, "source": "scratch"}, "set model.max_source_positions"),
        ({"window": 2, "family": "wav2vec2"}, "wav2vec2 models have no window"),
        ({"window": 2, "family": "w2v-bert"}, "w2v-bert models have no window"),
    ],
)
def test_what_cannot_be_cut(hub, tmp_path, capsys, keys, message):
    cfg = {"seed": 1, "family": "whisper", "source": str(hub)} | keys
    refused(capsys, message, base, cfg, tmp_path / "base.json", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_familys_model_is_not_cut():
    with pytest.raises(UserError, match="wav2vec2 models have no window"):
        shorten(member("wav2vec2"), 1.0)
