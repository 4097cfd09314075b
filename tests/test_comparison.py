"""Normalisers of scoring: what they make of text, that numbers compare fairly, and that nothing vanishes unsaid."""

import json
import subprocess
import sys

import pytest

from lowrank_speech.artefact import read_manifest
from lowrank_speech.cli import main
from lowrank_speech.errors import UserError
from lowrank_speech.lang import numerals
from lowrank_speech.lang.comparison import Comparison
from lowrank_speech.lang.english_spelling import american
from lowrank_speech.scoring import asr
from lowrank_speech.stages import score


@pytest.mark.parametrize(
    ("kind", "language", "written", "same"),
    [
        ("house", "en", "Don’t stop, it's 5.", "DON'T STOP IT'S 5"),
        ("whisper-basic", "de", "Straße — [Lachen] gut!", "STRAßE GUT"),
        ("whisper-english", "en", "I have 25 bags.", "I HAVE TWENTY FIVE BAGS"),
        ("whisper-english", "en", "I have 25 bags.", "I HAVE TWENTY-FIVE BAGS"),
        ("whisper-english", "en", "On May 3rd, 1999.", "ON MAY THIRD NINETEEN NINETY NINE"),
        ("whisper-english", "en-GB", "The colour won't change, Mr. Smith.", "THE COLOR WILL NOT CHANGE MISTER SMITH"),
        ("whisper-english", None, "Um, 1,000 times", "ONE THOUSAND TIMES"),
        ("whisper-english", "fr", "Où est l'école ?", "OÙ EST L'ÉCOLE"),
    ],
)
def test_both_sides_become_the_same(kind, language, written, same):
    comparison = Comparison(kind)
    assert comparison(written, language) == comparison(same, language) != ""


def test_other_languages_do_not_get_english_rules():
    comparison = Comparison("whisper-english")
    assert comparison("um eins", "de") == "um eins"  # um is a filler only in English
    assert comparison("um two", "en") == "2"


def test_the_spelling_table_is_the_published_one():
    table = american()
    assert len(table) == 1739 and table["colour"] == "color" and all(key == key.lower() for key in table)


@pytest.mark.parametrize(
    ("language", "written", "said"),
    [
        ("en", "25 bags", "twenty-five bags"),
        ("en", "the 3rd of May 1999.", "the third of May nineteen ninety-nine."),
        ("en-GB", "1,000 or 2.5%", "one thousand or two point five%"),
        ("en", "at 5:30, room 007", "at five:thirty, room zero zero seven"),
        ("en", "MP3, B12, 2x and 1990s", "MP3, B12, 2x and 1990s"),
        ("de", "21 oder 1.000", "einundzwanzig oder eintausend"),
        ("de", "2,5 Liter", "zwei Komma fünf Liter"),
        ("fr", "21 sacs", "vingt et un sacs"),
        ("pt-BR", "16 malas", "dezesseis malas"),
        ("xx", "25 bags", "25 bags"),
        ("en", "1234567890123456", "one two three four five six seven eight nine zero one two three four five six"),
        ("en", "no digits", "no digits"),
    ],
)
def test_numbers_in_words(language, written, said):
    pytest.importorskip("num2words", reason="numbers: words needs num2words")
    assert numerals.spelt(written, language) == said


def test_every_language_has_words_or_is_reported():
    num2words = pytest.importorskip("num2words", reason="numbers: words needs num2words")
    lacking = set()
    for language in (code.replace("_", "-") for code in num2words.CONVERTER_CLASSES):
        for number in (0, 7, 21, 105, 1999, 2024, 123456):
            said = numerals.spelt(f"x {number} y", language)
            assert said.startswith("x ") and said.endswith(" y")
            assert any(c.isdecimal() for c in said) == numerals.has_numbers(said, language)
            lacking |= {language} if numerals.has_numbers(said, language) else set()
    assert not lacking & {
        "ar",
        "cs",
        "de",
        "en",
        "es",
        "fr",
        "it",
        "ja",
        "ko",
        "nl",
        "pl",
        "pt",
        "ru",
        "sv",
        "tr",
        "vi",
    }


def test_numbers_in_words_need_a_language():
    pytest.importorskip("num2words", reason="numbers: words needs num2words")
    with pytest.raises(UserError, match="needs the language of each utterance"):
        Comparison("house", "words")("25")
    comparison = Comparison("house", "words")
    assert comparison("25 bags", "xx") == "25 bags" and comparison.unspelt == {"xx"}


def test_a_missing_package_is_an_error_that_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "num2words", None)
    numerals._code.cache_clear()
    with pytest.raises(UserError, match="pip install num2words"):
        Comparison("house", "words")("25", "en")
    numerals._code.cache_clear()


def test_emptied_references_stay_and_are_named():
    pairs = {"a": (["UM"], ["so"]), "b": (["TWO", "BAGS"], ["2", "bags."]), "c": ([], [])}
    found, emptied = asr.normalised(pairs, Comparison("whisper-english"), {"a": "en", "b": "en"})
    assert found == {"a": ([], ["so"]), "b": (["2", "bags"], ["2", "bags"]), "c": ([], [])}
    assert emptied == {"a": "UM"}  # c was empty before
    with pytest.raises(ValueError, match=r"nothing of all 1 references, such as 'UM' of 'a'"):
        asr.normalised({"a": (["UM"], ["so"])}, Comparison("whisper-english"))


def test_no_normaliser_loads_torch():
    code = (
        "import sys\nfrom lowrank_speech.lang.comparison import Comparison\n"
        "for kind in ('house', 'whisper-basic', 'whisper-english'): Comparison(kind)('x', 'en')\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# -- the stage and the command -----------------------------------------------------------------------------------------


@pytest.fixture
def decoded(tmp_path):
    texts = {
        "ref": "a i have twenty five bags\nb um\n",
        "hyp": "a i have 25 bags\nb so\n",
        "ref_raw": "a I HAVE TWENTY FIVE BAGS\nb UM\n",
        "hyp_raw": "a I have 25 bags.\nb So.\n",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.txt").write_text(text)
    (tmp_path / "languages.tsv").write_text("id\tlanguage\na\ten\nb\ten\n")
    return tmp_path


def run(folder, **options):
    cfg = {"seed": 1, "type": "asr", "score": {"bootstrap": 20, **options}}
    manifest = folder / "score.json"
    code = score.main(["--cfg", json.dumps(cfg), "--decoded", str(folder), "--manifest", str(manifest)])
    return read_manifest(manifest)["metrics"] if code == 0 else code


def test_the_stage_normalises_the_raw_text(decoded):
    plain, english = run(decoded), run(decoded, normaliser="whisper-english")
    assert (plain["wer"], plain["normaliser"], plain["emptied_references"]) == (3 / 6, "none", [])
    assert english["words"] == 4 and english["insertions"] == 1 and english["wer"] == 1 / 4
    assert english["normaliser"] == "whisper-english" and english["empty_references"] == 1
    assert english["emptied_references"] == [{"id": "b", "ref": "UM"}]
    assert english["worst"][0] | {"id": "b", "ref": "", "hyp": "so"} == english["worst"][0]
    assert english["confusions"]["insertions"] == [["so", 1]]


def test_the_stage_spells_numbers(decoded):
    pytest.importorskip("num2words", reason="numbers: words needs num2words")
    found = run(decoded, normaliser="house", numbers="words")
    assert found["wer"] == 1 / 6 and found["numbers"] == "words"


def test_a_folder_without_raw_text_is_refused(decoded, capsys):
    (decoded / "hyp_raw.txt").unlink()
    assert run(decoded, normaliser="house") == 2
    assert "hyp_raw.txt does not exist, but score.normaliser: house needs it" in capsys.readouterr().err


def test_settings_that_contradict_each_other(decoded, capsys):
    assert run(decoded, numbers="words") == 2
    assert "numbers is words, but normaliser is none" in capsys.readouterr().err


def command(*argv):
    with pytest.raises(SystemExit) as end:
        main(["score", "asr", *map(str, argv)])
    return end.value.code


def test_the_command(decoded, capsys):
    files = decoded / "ref_raw.txt", decoded / "hyp_raw.txt"
    assert command(*files, "--normaliser", "whisper-english") == 0
    shown = capsys.readouterr().out
    assert "%WER 25.00 [ 1 / 4, 1 ins" in shown and "Text normalised by whisper-english." in shown
    assert "References that normalise to nothing (all words of their hypotheses are insertions): b ('UM')" in shown
    assert command(*files) == 0 and "normalised" not in capsys.readouterr().out
    assert command(*files, "--language", "en") == 2 and "for --normaliser" in capsys.readouterr().err


def test_the_command_with_languages(decoded, capsys):
    pytest.importorskip("num2words", reason="numbers: words needs num2words")
    files = decoded / "ref_raw.txt", decoded / "hyp_raw.txt"
    for spoken in (["--language", "en"], ["--utt2lang", decoded / "languages.tsv"]):
        assert command(*files, "--normaliser", "house", "--numbers", "words", "--json", *spoken) == 0
        assert json.loads(capsys.readouterr().out)["wer"] == 1 / 6
    assert command(*files, "--normaliser", "house", "--numbers", "words") == 2
    assert "--language or --utt2lang" in capsys.readouterr().err
