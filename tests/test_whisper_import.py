"""Whisper checkpoints as users have them: without tokenizer files, with generation settings of every version."""

import json
import shutil

import pytest
import torch
from transformers import WhisperTokenizer

import whisper_decoding as decoding
from lowrank_speech.lang.load import Lang
from lowrank_speech.models import whisper_vocabulary
from lowrank_speech.models.folder import load_model
from lowrank_speech.models.sources import open_dense
from lowrank_speech.models.text import WhisperTokens, decoder_tokens
from lowrank_speech.stages import base, lang
from lowrank_speech.training.run import identity
from stage_world import done, refused
from test_whisper_window import imported, mels, published, speech
from test_whisper_window import published as published_whisper
from tiny_models import plain


def generate(*given):
    """Token ids of each utterance."""
    return [list(row.ids) for row in decoding.generate(*given)]


CFG = {"seed": 1, "family": "whisper"}
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
STATE = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "trainer_state.json", "README.md")


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    return published(tmp_path_factory.mktemp("hub") / "whisper", init_std=0.7)  # what it writes depends on the prompt


@pytest.fixture
def copy(hub, tmp_path):
    """The checkpoint, to be changed."""
    return shutil.copytree(hub, tmp_path / "run" / "checkpoint-500")


def edit(file, *dropped, **keys):
    raw = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in raw.items() if k not in dropped} | keys))


def test_a_leading_space_as_published_models_write_it(hub, tmp_path):
    out = imported(hub, tmp_path / "base")
    plain, spaced = WhisperTokens(out), WhisperTokens(out, leading_space=True)
    space = plain.encode(" ")
    assert len(space) == 1 and spaced.encode("ab", "en") == [*space, *plain.encode("ab", "en")] == spaced.encode("ab")
    assert spaced.encode("ab", "zh-CN") == plain.encode("ab") and spaced.encode("ab", "ja") == plain.encode("ab")
    assert spaced.decode(spaced.encode("ab", "en")) == " ab"
    folders = {}
    for name, keys in {"without": {}, "with": {"leading_space": True}}.items():
        folder = folders[name] = tmp_path / name
        cfg = {"seed": 1, "lang": {"kind": "whisper", **keys}}
        done(lang, cfg, folder / "lang.json", out=folder)
    model = load_model(out)
    texts = [decoder_tokens(model, out, Lang.load(folder)).encode("ab", "en") for folder in folders.values()]
    assert texts == [plain.encode("ab"), spaced.encode("ab")]
    first, second = (identity({}, None, Lang.load(folder)) for folder in folders.values())
    assert first != second  # a training with other text does not continue the old one


# --- a Trainer's checkpoint


def test_a_checkpoint_without_tokenizer_files_is_refused(copy, tmp_path, capsys):
    for name in TOKENIZER:
        (copy / name).rename(tmp_path / name)
    cfg, paths = CFG | {"source": str(copy)}, {"out": tmp_path / "base"}
    message = f"{copy}: Whisper's tokenizer files (tokenizer.json, or vocab.json and merges.txt) are missing, as in a "
    refused(capsys, message, base, cfg, tmp_path / "base.json", **paths)
    assert not (tmp_path / "base").exists()
    for name in TOKENIZER:  # where the Trainer puts them
        (tmp_path / name).rename(copy.parent / name)
    refused(capsys, f"they are in {copy.parent}: copy them", base, cfg, tmp_path / "base.json", **paths)
    with pytest.raises(Exception, match="tokenizer files"):  # of the command factorise
        open_dense(copy)


def test_a_tokenizer_that_is_not_the_models_is_refused(copy, tmp_path, capsys):
    cfg, paths = CFG | {"source": str(copy)}, {"out": tmp_path / "base"}
    edit(copy / "config.json", vocab_size=100)
    refused(capsys, "but config.json says vocab_size: 100; use the tok", base, cfg, tmp_path / "m.json", **paths)
    size = len(WhisperTokenizer.from_pretrained(copy))
    for more in (1, 100):  # the tokenizer of large-v2 in a folder of large-v3, which has one language more
        edit(copy / "config.json", vocab_size=(size + more) // 8 * 8 + 1)
        refused(capsys, f"has {size} tokens, but config.json", base, cfg, tmp_path / "m.json", **paths)
    edit(copy / "config.json", vocab_size=100_000)
    refused(capsys, "but config.json says vocab_size: 100000", base, cfg, tmp_path / "m.json", **paths)
    WhisperTokenizer(vocab={"a": 0}, merges=[]).save_pretrained(copy)
    refused(capsys, "does not know <|startoftranscript|> and <|notimestamps|>", base, cfg, tmp_path / "m.json", **paths)
    (copy / "tokenizer.json").write_text("{}")
    refused(capsys, "tokenizer files are broken", base, cfg, tmp_path / "m.json", **paths)


@pytest.mark.parametrize("family", ["whisper", "wav2vec2"])
def test_only_files_of_the_model_are_copied(family, tmp_path):
    source = tmp_path / "checkpoint-7"
    if family == "whisper":
        published_whisper(source)
    else:
        plain("wav2vec2", quiet=False).save_pretrained(source)
        (source / "preprocessor_config.json").write_text('{"do_normalize": false}')
        (source / "vocab.json").write_text("{}")
    for name in (*STATE, "model.safetensors.index.json", "flax_model.msgpack", "LICENSE"):
        (source / name).write_text("x")
    (source / "runs").mkdir()
    expected = {p.name for p in source.iterdir()} - {
        *STATE,
        "model.safetensors.index.json",
        "flax_model.msgpack",
        "runs",
    }
    cfg = {"seed": 1, "family": family, "source": str(source)}
    out = tmp_path / "base"
    assert base.main(["--cfg", json.dumps(cfg), "--out", str(out), "--manifest", str(tmp_path / "base.json")]) == 0
    assert {path.name for path in out.iterdir()} == expected
    sources = json.loads((tmp_path / "base.json").read_text())["sources"]
    assert expected <= {*sources, "generation_config.json"} and "training_args.bin" not in sources
    assert {"LICENSE", "preprocessor_config.json", "config.json"} <= expected


# --- generation settings

LANGUAGE_KEYS = ("lang_to_id", "task_to_id", "is_multilingual", "no_timestamps_token_id")
FORCED = [[1, 257], [2, 260], [3, 261]]


def no_languages(folder):
    edit(folder / "generation_config.json", *LANGUAGE_KEYS)


def no_file(folder):
    (folder / "generation_config.json").unlink()


def german_forced(folder):
    edit(folder / "generation_config.json", *LANGUAGE_KEYS, forced_decoder_ids=FORCED)
    edit(folder / "config.json", forced_decoder_ids=FORCED)


def german_forced_without_file(folder):
    no_file(folder)
    edit(folder / "config.json", forced_decoder_ids=FORCED)


def wrong_ids(folder):
    edit(folder / "generation_config.json", lang_to_id={"<|de|>": 3}, is_multilingual=False, no_timestamps_token_id=1)


@torch.no_grad()
@pytest.mark.parametrize("change", [no_languages, no_file, german_forced, german_forced_without_file, wrong_ids])
def test_what_generation_settings_lack_follows_from_the_tokenizer(change, hub, copy, tmp_path):
    whole = load_model(imported(hub, tmp_path / "whole"))
    change(copy)
    out = imported(copy, tmp_path / "base")
    model, settings = load_model(out), json.loads((out / "generation_config.json").read_text())
    assert settings.pop("use_cache", True) and not settings.pop("_from_model_config", False)
    assert settings == json.loads((tmp_path / "whole" / "generation_config.json").read_text())
    assert json.loads((out / "config.json").read_text()).get("forced_decoder_ids") is None
    tokens = WhisperTokens(out)
    ids = [tokens.language_ids[language] for language in ("de", "en")]
    assert [tokens.prompt(language)[1] for language in ("de", "en")] == ids and len(tokens.prompt("de")) == 4
    batch = mels(model, speech(0.7, 1.1))
    for languages in (["de", "en"], ["en", "de"], None):
        assert generate(model, *batch, tokens, languages) == generate(whole, *batch, tokens, languages)
    told = [generate(model, *batch, tokens, [language] * 2) for language in ("de", "en")]
    assert told[0] != told[1]


def test_a_choice_in_the_settings_is_kept(copy, tmp_path):
    edit(copy / "generation_config.json", *LANGUAGE_KEYS, suppress_tokens=[5], begin_suppress_tokens=None, max_length=9)
    out = imported(copy, tmp_path / "base")
    found = json.loads((out / "generation_config.json").read_text())
    assert found["suppress_tokens"] == [5] and found["max_length"] == 9 and not found.get("begin_suppress_tokens")
    again = imported(out, tmp_path / "again")
    assert (again / "generation_config.json").read_bytes() == (out / "generation_config.json").read_bytes()


@torch.no_grad()
@pytest.mark.parametrize("change", [no_languages, no_file, german_forced])
def test_an_english_model_is_told_by_its_vocabulary(change, copy, tmp_path, monkeypatch):
    """Its tokenizer lists the languages as well; its vocabulary has one token less before the end of text."""
    eot = WhisperTokenizer.from_pretrained(copy).eos_token_id
    monkeypatch.setattr(whisper_vocabulary, "ENGLISH_EOT", eot)
    change(copy)
    out = imported(copy, tmp_path / "base")
    found = json.loads((out / "generation_config.json").read_text())
    assert found["is_multilingual"] is False and not found.get("lang_to_id") and not found.get("forced_decoder_ids")
    assert found["suppress_tokens"] or change is not no_file  # the published ones
    tokens, model = WhisperTokens(out), load_model(out)
    assert tokens.language_ids == {} and tokens.prompt("en") == tokens.prompt(None) and len(tokens.prompt("en")) == 2
    assert len(generate(model, *mels(model, speech(0.7)), tokens, ["en"])) == 1


def test_a_folder_of_ours_with_old_settings_is_completed_as_a_source(hub, tmp_path):
    first = imported(hub, tmp_path / "first")
    expected = (first / "generation_config.json").read_bytes()
    edit(first / "generation_config.json", *LANGUAGE_KEYS)
    assert (imported(first, tmp_path / "second") / "generation_config.json").read_bytes() == expected
