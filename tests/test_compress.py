"""``lowrank-speech compress``: a smaller model, its report and its card, and error rates before and after."""

# ruff: noqa: F811  (fixtures of another test file)

import json
import logging
import shutil

import kaldialign
import pytest
import torch
from lhotse import CutSet
from lhotse.utils import fastcopy
from transformers import AutoTokenizer, Wav2Vec2ForCTC

from lowrank_speech import cli
from lowrank_speech.compressing.compress import verdict
from lowrank_speech.compressing.evaluation import TestSet, normaliser_for
from lowrank_speech.factorising.speech import transcribed
from lowrank_speech.models.build import unwrap
from lowrank_speech.models.folder import load_model, save_model
from test_factorise_command import save_tokenizer
from test_factorise_stage import MODELS, cuts  # noqa: F401

TEXTS = ("ab cd", "dc", "abc d", "b")


@pytest.fixture
def call(capsys, monkeypatch):
    """Run the command: exit code, stdout, the lines of stderr."""
    monkeypatch.setattr(logging.root, "handlers", [])

    def call(*argv):
        with pytest.raises(SystemExit) as left:
            cli.main(["compress", *map(str, argv)])
        captured = capsys.readouterr()
        return left.value.code or 0, captured.out, captured.err.strip().splitlines()

    return call


@pytest.fixture
def table(tmp_path, cuts):
    """The recordings of ``cuts``, and copies of them, as a table with transcripts."""
    for i in range(4):
        shutil.copy(tmp_path / f"u{i}.wav", tmp_path / f"t{i}.wav")
    rows = [f"t{i}\tt{i}.wav\ten\ts{i}\t{text}" for i, text in enumerate(TEXTS)]
    (tmp_path / "test.tsv").write_text("\n".join(["id\taudio\tlanguage\tspeaker\ttext", *rows, ""]))
    return tmp_path / "test.tsv"


def published_ctc(folder, blank=0):
    """A folder in the hub's layout: a CTC model, and its characters, of which the symbol ``blank`` is the blank."""
    model = unwrap(MODELS["wav2vec2"]())
    model.config.pad_token_id = blank
    with torch.no_grad():  # so that it does not only write blanks
        model.lm_head.weight.mul_(20)
    model.save_pretrained(folder)
    letters = iter("|abcdefghij<")
    vocabulary = {"<pad>" if i == blank else next(letters): i for i in range(12)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    said = {"tokenizer_class": "Wav2Vec2CTCTokenizer", "pad_token": "<pad>", "unk_token": "<pad>", "bos_token": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(said | {"eos_token": None, "word_delimiter_token": "|"}))
    (folder / "preprocessor_config.json").write_text('{"do_normalize": true, "feature_extractor_type": "x"}')
    return folder


def transformers_rate(model, folder, table):
    """WER of greedy decoding with transformers' own model class and tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    errors = words = 0
    for cut in transcribed(table):
        wave = torch.from_numpy(cut.load_audio())
        wave = (wave - wave.mean()) / torch.sqrt(wave.var(unbiased=False) + 1e-7)
        with torch.no_grad():
            ids = model(wave).logits.argmax(-1)[0]
        ref, hyp = cut.supervisions[0].text.split(), tokenizer.decode(ids).split()
        errors += kaldialign.edit_distance(ref, hyp)["total"]
        words += len(ref)
    return errors / words


@pytest.mark.parametrize("blank", [0, 11])
def test_error_rates_are_those_of_transformers(tmp_path, cuts, table, call, blank):
    source, out = published_ctc(tmp_path / "hub", blank), tmp_path / "small"
    words = ("--calibrate", cuts, "--evaluate", table, "--keep", 0.6, "--utterances", 2, "--trial", 2)
    code, shown, errors = call(source, out, *words, "--normaliser", "none", "--json")
    assert code == 0, errors
    result = json.loads(shown)
    assert result == json.loads((out / "compress.json").read_text())
    evaluation = result["evaluation"]
    dense = Wav2Vec2ForCTC.from_pretrained(source).eval()
    assert evaluation["before"]["wer"] == pytest.approx(transformers_rate(dense, source, table))
    small = load_model(out)
    assert small.parameters_total() == result["parameters_after"] < result["parameters_before"]
    after = unwrap(small.densified()).eval()
    assert evaluation["after"]["wer"] == pytest.approx(transformers_rate(after, source, table))
    difference = evaluation["difference"]["wer"]
    assert difference["difference"] == pytest.approx(evaluation["after"]["wer"] - evaluation["before"]["wer"])
    assert (evaluation["utterances"], difference["unit"], difference["units"]) == (4, "speakers", 4)
    assert result["recipe"]["layers"] == ["ffn"] and result["recipe"]["allocate"]


def test_whisper_layers_text_and_card(tmp_path, cuts, table, call):
    source, out = tmp_path / "hub", tmp_path / "small"
    unwrap(MODELS["whisper"]()).save_pretrained(source)
    (source / "preprocessor_config.json").write_text("{}")
    save_tokenizer(source)
    report = tmp_path / "report.json"
    words = ("--calibrate", cuts, "--reduction", 0.1, "--trial", 2, "--utterances", 2, "--exact-rows", 4)
    code, shown, errors = call(source, out, *words, "--evaluate", table, "--report", report)
    assert code == 0, errors
    result = json.loads(report.read_text())
    assert result["recipe"]["layers"] == ["ffn", "embedding"]
    assert result["evaluation"]["normaliser"] == "whisper-english"
    assert result["reduction"] >= 0.1
    lines = shown.splitlines()
    assert lines[0].startswith(f"{result['parameters_before']:,} -> ")
    for name in ("wer", "cer"):
        row = next(line.split() for line in lines if line.startswith(f"%{name.upper()}"))
        assert row[1] == f"{100 * result['evaluation']['before'][name]:.2f}"
        assert row[2] == f"{100 * result['evaluation']['after'][name]:.2f}"
    assert all(sentence in lines for sentence in result["verdict"])
    assert lines[-1] == f"written: {out} (model, compress.json, README.md)"
    card = (out / "README.md").read_text()
    assert f"{result['parameters_after']:,}" in card and "pipeline_tag: automatic-speech-recognition" in card
    assert "import lowrank_speech.hf" in card and 'model="."' in card and "| test.tsv, before compression |" in card


def test_without_a_table_the_loss_is_measured(tmp_path, cuts, call):
    out = tmp_path / "small"
    source, words = published_ctc(tmp_path / "hub"), ("--calibrate", cuts, "--keep", 0.3, "--trial", 2, "--json")
    code, shown, _ = call(source, out, *words, "--utterances", 2)
    result = json.loads(shown)
    assert code == 0 and result["evaluation"] is None
    assert result["divergence"]["loss"] > 0 and 0 <= result["divergence"]["agreement"] <= 1
    assert any("needs fine-tuning" in sentence for sentence in result["verdict"])
    assert f"divergence from the model | {result['divergence']['loss']:.2g} nats" in (out / "README.md").read_text()
    assert result["calibration"]["held_out"] == 2 and "seen" not in result["divergence"]
    # Calibration takes all there is, so nothing is left that it has not seen.
    again = json.loads(call(source, tmp_path / "other", *words)[1])
    assert again["calibration"]["held_out"] == 0 and again["divergence"]["seen"] == 2
    assert any("2 of the 2 utterances that measured the loss had also been" in line for line in again["verdict"])


def test_what_calibration_has_seen_is_not_evaluated(tmp_path, cuts, table, call):
    source = published_ctc(tmp_path / "hub")
    table.write_text(table.read_text().replace("\tt0.wav", "\tu0.wav").replace("\tt1.wav", "\tu1.wav"))
    words = ("--calibrate", cuts, "--keep", 0.6, "--trial", 1, "--evaluate", table)
    code, shown, _ = call(source, tmp_path / "a", *words, "--json")
    evaluation = json.loads(shown)["evaluation"]
    assert code == 0 and evaluation["utterances"] == 2
    assert {(row[0].partition(":")[2], row[1]) for row in evaluation["set_aside"]} == {
        (f"u{i}.wav", "calibration has seen it") for i in (0, 1)
    }
    assert "not evaluated: 2 x calibration has seen it" in call(source, tmp_path / "b", *words)[1]
    code, _, errors = call(source, tmp_path / "c", *words[:-1], cuts)
    assert code == 2 and "no utterance is left; set aside: 4 x calibration has seen it" in errors[-1]
    assert (tmp_path / "c" / "README.md").is_file()  # what was made stays


def test_a_trained_system_is_named_as_in_an_experiment(tmp_path, cuts, call):
    folder = tmp_path / "exp" / "mine" / "train" / "w" / "asr" / "full" / "model"
    save_model(MODELS["wav2vec2"](), folder, copy_from=published_ctc(tmp_path / "hub"))
    words = ("--calibrate", cuts, "--rank", 6, "--no-allocate", "--trial", 1, "--json")
    code, shown, errors = call(f"{tmp_path}/exp/mine:w/asr/full", tmp_path / "small", *words)
    assert code == 0, errors
    assert json.loads(shown)["source"] == f"{tmp_path}/exp/mine:w/asr/full"
    code, _, errors = call(tmp_path / "small", tmp_path / "again", *words)
    assert code == 2 and "is already factorised" in errors[-1]


def test_transcripts_are_read_as_they_are(tmp_path, cuts, table):
    table.write_text(table.read_text().replace("\tdc\n", '\t"dc said\n').replace("\tb\n", "\t\n"))
    found = {cut.supervisions[0].speaker: cut.supervisions[0].text for cut in transcribed(table)}
    assert found == {"s0": "ab cd", "s1": '"dc said', "s2": "abc d"}  # a quote swallows no row; no text, no utterance
    assert len(TestSet.read(table, most=2).cuts) == 2
    folder = tmp_path / "data" / "test"
    folder.mkdir(parents=True)
    (folder / "wav.scp").write_text(f"r {tmp_path / 'u0.wav'}\n")
    (folder / "segments").write_text("a r 0.0 0.4\nb r 0.4 0.9\n")
    (folder / "text").write_text("a ab cd\nb dc\n")
    (folder / "utt2spk").write_text("a s\nb s\n")
    read = transcribed(folder)
    assert [(cut.id, cut.start, cut.supervisions[0].text) for cut in read] == [("a", 0.0, "ab cd"), ("b", 0.4, "dc")]


def test_one_recording_is_enough_to_calibrate(tmp_path, cuts, call):
    source, words = published_ctc(tmp_path / "hub"), ("--no-allocate", "--keep", 0.5, "--trial", 0)
    assert call(source, tmp_path / "small", "--calibrate", tmp_path / "u0.wav", *words)[0] == 0
    code, _, errors = call(
        source, tmp_path / "x", "--calibrate", tmp_path / "u0.wav", *words, "--evaluate", tmp_path / "u1.wav"
    )
    assert code == 2 and "u1.wav is audio without transcripts" in errors[-1]


def test_only_known_english_is_normalised_as_english(cuts):
    known = list(CutSet.from_file(cuts))
    unknown = [cut.map_supervisions(lambda s: fastcopy(s, language=None)) for cut in known]
    whisper, ctc = MODELS["whisper"](), MODELS["wav2vec2"]()
    assert [normaliser_for(whisper, known), normaliser_for(whisper, unknown)] == ["whisper-english", "whisper-basic"]
    assert normaliser_for(ctc, unknown) == "house"
    whisper.hf.generation_config.lang_to_id = {}
    assert normaliser_for(whisper, unknown) == "whisper-english"  # it knows nothing else


def test_verdicts():
    def report(low, high, p=0.01, warnings=()):
        wer = {"first": 0.2, "second": 0.1, "difference": (low + high) / 2, "interval": [low, high], "p": p}
        return {"warnings": warnings, "evaluation": {"utterances": 9, "difference": {"wer": wer}}}

    assert "fine-tune" in verdict(report(0.01, 0.2))[0] and "worse" in verdict(report(0.01, 0.2))[0]
    assert "not told apart" in verdict(report(-0.1, 0.2, 0.4))[0]
    assert "better" in verdict(report(-0.2, -0.1))[0]
    assert verdict({"warnings": [], "evaluation": None})[0].startswith("No sign that this cut needs fine-tuning")
    assert verdict(report(-0.1, 0.2, 0.4, ["this cut needs fine-tuning: x"]))[0] == "This cut needs fine-tuning: x."


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "exactly one of rank, fraction, keep, energy, reduction; given: none"),
        (("--reduction", 24), "reduction is 24.0; it must be below 1"),
        (("--reduction", 0.2, "--evaluate", "no.tsv"), "no.tsv does not exist"),
        (("--reduction", 0.2, "--evaluate", "."), "is audio without transcripts"),
        (("--reduction", 0.2, "--trial", 0), "--trial is 0, but choosing ranks needs some utterances"),
        (("--reduction", 0.2, "--bootstrap", 1), "it must be 0 (no intervals) or at least 2"),
        (("--energy", 0.9, "--allocate"), "cannot be combined with allocate"),
        (("--reduction", 0.2, "--layers", "embedding"), "embedding"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(tmp_path, cuts, call, words, message):
    source = published_ctc(tmp_path / "hub")
    before = sorted(tmp_path.iterdir())
    code, shown, errors = call(source, tmp_path / "small", "--calibrate", cuts, *words)
    assert (code, shown) == (2, "") and message in errors[-1] and errors[-1].startswith("error: "), errors
    assert sorted(tmp_path.iterdir()) == before


def test_a_model_without_text_and_a_table_without_texts(tmp_path, cuts, table, call):
    source = published_ctc(tmp_path / "hub")
    words = ("--calibrate", cuts, "--keep", 0.6)
    (tmp_path / "bare.tsv").write_text("audio\tlanguage\nt0.wav\ten\n")
    code, _, errors = call(source, tmp_path / "small", *words, "--evaluate", tmp_path / "bare.tsv")
    assert code == 2 and "has no transcripts to compare with; call the column of transcripts text" in errors[-1]
    bare = CutSet.from_cuts(CutSet.from_file(cuts))
    bare.to_file(tmp_path / "again.jsonl.gz")
    unwrap(MODELS["wav2vec2"]()).wav2vec2.save_pretrained(tmp_path / "body")
    (tmp_path / "body" / "preprocessor_config.json").write_text('{"do_normalize": true}')
    code, _, errors = call(tmp_path / "body", tmp_path / "small", *words, "--evaluate", table)
    assert code == 2 and "so it writes no text to compare; leave out --evaluate" in errors[-1]
    (source / "vocab.json").unlink()
    code, _, errors = call(source, tmp_path / "small", *words, "--evaluate", table)
    assert (
        code == 2
        and "has no tokenizer (vocab.json or tokenizer.json)" in errors[-1]
        and not (tmp_path / "small").exists()
    )
