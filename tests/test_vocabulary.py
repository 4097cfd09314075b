"""A CTC head stays consistent with its vocabulary: transformers gives the same text as the program."""

import itertools
import json
import random
import shutil

import numpy as np
import pytest
import torch
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    pipeline,
)

from lowrank_speech.decoding.ctc.greedy import best_paths
from lowrank_speech.features.inputs import inputs_of
from lowrank_speech.lang.load import Lang
from lowrank_speech.lang.pieces import train_pieces
from lowrank_speech.lang.tokenizer_files import tokenizer_files
from lowrank_speech.lang.tokens import CharTokens, PieceTokens
from lowrank_speech.models.folder import load_model, save_model
from lowrank_speech.models.tasks import to_task
from lowrank_speech.stages import base, export, factorise, train
from stage_world import done, train_cfg, train_paths
from tiny_models import BANDS, member, plain

SENTENCES = ["the cat sat on the mat", "a dog and a cat", "die katze saß auf der matte", "äpfel und birnen"]
NEW = {"vocab.json", "tokenizer_config.json", "special_tokens_map.json"}


def pieces(kind, fallback=False):
    size = {("unigram", False): 28, ("bpe", False): 45, ("unigram", True): 284, ("bpe", True): 300}[kind, fallback]
    return PieceTokens(train_pieces(SENTENCES, size, kind, fallback))


TOKENS = {
    "characters": lambda: CharTokens.build("abcdäöß'"),
    "unigram": lambda: pieces("unigram"),
    "bpe": lambda: pieces("bpe"),
    "unigram with bytes": lambda: pieces("unigram", True),
    "bpe with bytes": lambda: pieces("bpe", True),
}


def write(folder, tokens):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "wav2vec2"}')
    for name, text in tokenizer_files(tokens).items():
        (folder / name).write_text(text, encoding="utf-8")
    return AutoTokenizer.from_pretrained(folder)


def spaced(text):
    return " ".join(text.split())


@pytest.mark.parametrize("kind", TOKENS)
def test_paths_of_symbols_become_the_same_text(kind, tmp_path):
    tokens, rng = TOKENS[kind](), random.Random(1)
    read = write(tmp_path, tokens)
    assert len(read) == tokens.size and (read.pad_token_id, read.unk_token_id) == (tokens.blank, tokens.unk)
    with_bytes = kind.endswith("bytes")
    for _ in range(200):
        if with_bytes:  # bytes that are not UTF-8 may become more or fewer U+FFFD
            ids = tokens.encode("".join(rng.choices("abcdeä 漢字x", k=12)))
            path = [
                i for n, i in enumerate(ids) for i in ([i] * rng.randrange(1, 3) + [0] * (ids[n + 1 : n + 2] == [i]))
            ]
        else:
            path = [rng.choice([0, rng.randrange(tokens.size), rng.randrange(tokens.size)]) for _ in range(30)]
        collapsed = [i for i, _ in itertools.groupby(path) if i]
        assert spaced(read.decode(path, skip_special_tokens=False)) == tokens.decode(collapsed)


@pytest.mark.parametrize("kind", TOKENS)
def test_texts_become_the_same_symbols(kind, tmp_path):
    tokens = TOKENS[kind]()
    read = write(tmp_path, tokens)
    texts = ["a", "ab cd", "dä öb'"] if kind == "characters" else ["the cat", "katze auf", "a dog xyz", "äpfel 漢字"]
    for text in texts:
        assert read(text, add_special_tokens=False)["input_ids"] == tokens.encode(text)


@pytest.mark.parametrize("kind", ["characters", "unigram", "bpe"])
@pytest.mark.parametrize("name", ["wav2vec2", "hubert", "w2v-bert"])
@torch.no_grad()
def test_transformers_pipeline_prints_what_the_program_prints(kind, name, tmp_path):
    tokens = TOKENS[kind]()
    model, _ = to_task(member(name, "body"), "ctc", tokens.size, lang_sha256="x", seed=1)
    torch.nn.init.normal_(model.head.linear.weight, std=2.0, generator=torch.Generator().manual_seed(3))
    save_model(model, tmp_path / "model", files=tokenizer_files(tokens))
    if name == "w2v-bert":
        SeamlessM4TFeatureExtractor(feature_size=BANDS, num_mel_bins=BANDS).save_pretrained(tmp_path / "model")
    else:
        Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True).save_pretrained(tmp_path / "model")
    inputs = inputs_of(tmp_path / "model")
    recognise = pipeline("automatic-speech-recognition", model=str(tmp_path / "model"))
    printed = set()
    for seed in range(6):
        wave = torch.randn(8_000, generator=torch.Generator().manual_seed(seed)).cumsum(0) / 100
        read = inputs.of(wave)
        ((ids, _),) = best_paths(model, read[None], torch.tensor([len(read)]))
        found = recognise(np.array(wave))["text"]
        assert spaced(found) == tokens.decode(ids)
        printed.add(found)
    assert len(printed) > 3 and any(" " in text for text in printed)


# --- through the stages


def published(folder):
    """A CTC checkpoint with a vocabulary of its own, an n-gram, and the names of both."""
    plain("wav2vec2", "ctc", quiet=False, pad_token_id=3).save_pretrained(folder)
    symbols = ["E", "N", "I", "<pad>", "|", "<unk>", "S", "R", "A", "T", "D", "H"]
    vocabulary = {symbol: i for i, symbol in enumerate(symbols)}
    (folder / "v.json").write_text(json.dumps(vocabulary))
    Wav2Vec2CTCTokenizer(folder / "v.json", bos_token=None, eos_token=None).save_pretrained(folder)
    (folder / "v.json").unlink()
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"processor_class": "Wav2Vec2ProcessorWithLM"}))
    (folder / "language_model").mkdir()
    return folder


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    root = tmp_path_factory.mktemp("published")
    hub = published(root / "hub")
    done(base, {"seed": 1, "family": "wav2vec2", "source": str(hub)}, root / "base.json", out=root / "base")
    return root / "base"


def test_an_import_keeps_head_and_vocabulary_together(imported):
    vocabulary = json.loads((imported / "vocab.json").read_text())
    assert vocabulary["E"] == 0 and len(vocabulary) == load_model(imported).head.linear.out_features
    assert AutoTokenizer.from_pretrained(imported).decode([0, 3, 0, 1]) == "EEN"
    # The n-gram is not copied, so nothing may look for it.
    assert json.loads((imported / "preprocessor_config.json").read_text())["processor_class"] == "Wav2Vec2Processor"


@pytest.mark.parametrize("adapt", ["full", "none"])
def test_a_new_token_set_replaces_the_vocabulary_in_the_model_and_in_exports(adapt, imported, world, tmp_path, capsys):
    paths = train_paths(world, "wav2vec2", tmp_path, model=imported)
    paths |= {f"{split}_cuts": world.corpus / f"{split}.jsonl.gz" for split in ("train", "dev")}
    done(train, train_cfg("asr", adapt, training={"epochs": 1}), tmp_path / "train.json", **paths)
    assert "replacing the base's head (ctc, 12 outputs): its outputs stand for other" in capsys.readouterr().err
    lang = Lang.load(world.lang["wav2vec2"])
    expected = tokenizer_files(lang.tokens)
    done(export, {"format": "dense"}, tmp_path / "e.json", model=tmp_path / "model", out=tmp_path / "dense")
    cfg = {"seed": 1, "factorise": {"rank": 4}}
    done(factorise, cfg, tmp_path / "f.json", model=tmp_path / "model", out=tmp_path / "low")
    done(export, {"format": "lowrank"}, tmp_path / "l.json", model=tmp_path / "low", out=tmp_path / "lowrank")
    again = {"seed": 1, "family": "wav2vec2", "source": str(tmp_path / "low")}
    done(base, again, tmp_path / "b.json", out=tmp_path / "again")
    for name in ("model", "dense", "low", "lowrank", "again"):
        folder = tmp_path / name
        assert {file: (folder / file).read_text(encoding="utf-8") for file in NEW} == expected, name
        assert json.loads((folder / "config.json").read_text())["pad_token_id"] == 0
    tokenizer = AutoProcessor.from_pretrained(tmp_path / "dense").tokenizer
    assert tokenizer.decode(lang.tokens.encode("ab cd")) == "ab cd"

    # A classifier has no vocabulary.
    paths = train_paths(world, "wav2vec2", tmp_path / "lid", "lid", model=tmp_path / "model")
    paths |= {f"{split}_cuts": world.corpus / f"{split}.jsonl.gz" for split in ("train", "dev")}
    done(train, train_cfg("lid", "none", training={"epochs": 1}), tmp_path / "lid" / "train.json", **paths)
    assert not NEW & {path.name for path in (tmp_path / "lid" / "model").iterdir()}


def test_a_base_from_scratch_and_its_systems_have_their_vocabulary(world, systems):
    expected = tokenizer_files(Lang.load(world.lang["wav2vec2"]).tokens)
    for folder in (world.base["wav2vec2"], systems["wav2vec2", "asr"].model):
        assert {name: (folder / name).read_text(encoding="utf-8") for name in expected} == expected
    assert not NEW & {path.name for path in systems["wav2vec2", "lid"].model.iterdir()}


def test_without_new_files_the_old_ones_of_another_token_set_are_not_copied(imported, tmp_path):
    model, _ = to_task(load_model(imported), "ctc", 7, lang_sha256="other")
    save_model(model, tmp_path / "model", copy_from=imported)
    assert not NEW & {path.name for path in (tmp_path / "model").iterdir()}
    shutil.rmtree(tmp_path / "model")
    save_model(load_model(imported), tmp_path / "model", copy_from=imported)
    assert {"vocab.json", "tokenizer_config.json"} <= {path.name for path in (tmp_path / "model").iterdir()}
