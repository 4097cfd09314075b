"""Normalisation of transcripts: idempotent for every character, and it keeps the letters of every script."""

import random
import sys
import unicodedata

import pytest

from lowrank_speech.errors import UserError
from lowrank_speech.lang.normalise import APOSTROPHES, HYPHENS, RESERVED, NormaliseConfig, Normaliser, Rules
from lowrank_speech.settings import read

CONFIGS = {
    "default": NormaliseConfig(),
    "upper": NormaliseConfig(case="upper", hyphens="keep"),
    "keep": NormaliseConfig(case="keep", punctuation="keep"),
    "upper, punctuation": NormaliseConfig(case="upper", punctuation="keep"),
    "sentence": NormaliseConfig(case="sentence", capitals=("Iı", "Kg")),
    "sentence, stop": NormaliseConfig(case="sentence", punctuation="keep", final_stop=True, replace={"&": " and "}),
    "replace": NormaliseConfig(replace={"ß": "ss", "&": " and ", "é": "E", "%": "‐x‐"}, keep="$"),
}
LANGUAGES = (None, "tr", "de", "ca", "en-GB")
NASTY = [
    *"aIißẞİıΣσςŉǰéÉ\u0301\u0307\u0323\u0345 \t\n\u00a0\u2028\u3000\u200d\u00ad\ufeff\ufe0f5²Ⅷ٣",
    *APOSTROPHES,
    *HYPHENS,
    *RESERVED,
    *"\u00b7.,;¿!…—–()<>&%$€°©\u20e3\ufffd\ud800\x00\x1f",
    *"ครั้งकि्षुعَرَ한ᄒ\u1161\u11abﬁＡ😀👩\u200d🚀",
]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_twice_is_once(name, language):
    normalise, rng = Normaliser(CONFIGS[name]), random.Random(7)
    for _ in range(4000):
        text = "".join(rng.choices(NASTY, k=rng.randint(0, 9)))
        once = normalise(text, language)
        assert normalise(once, language) == once, ascii(text)
        assert unicodedata.is_normalized("NFC", once), ascii(text)
        assert once == " ".join(once.split())
        assert not set(once) & set(RESERVED)


def test_every_character_of_unicode():
    normalise = Normaliser()
    codes = [i for i in range(sys.maxunicode + 1) if unicodedata.category(chr(i)) not in ("Cn", "Co", "Cs")]
    text = " ".join(f"x{chr(i)}y" for i in codes)
    once = normalise(text)
    assert normalise(once) == once
    left = {unicodedata.category(c) for c in once} - {"Zs"}
    # Letters without case in what is left: Lt and Lu that lower() knows no partner of.
    assert {category[0] for category in left} <= {"L", "M", "N", "P", "S"}
    assert {c for c in once if unicodedata.category(c)[0] in "PS"} == {"'", "\ufffd"}
    for i in codes:
        if unicodedata.category(chr(i)) == "Nd":
            assert f"x{chr(i)}y" in once


@pytest.mark.parametrize(
    ("raw", "language", "expected"),
    [
        ("Don’t STOP—it’s 5\u00a0%!", "en", "don't stop it's 5"),
        ("‘Twas ’quoted’ 'words' rock 'n' roll", "en", "twas quoted words rock n roll"),
        ("l`eau d´ici O\u02bcNeill", "fr", "l'eau d'ici o'neill"),
        ("well-known, co\u2010op re\u2011do - so", "en", "well known co op re do so"),
        ("1,000.50 и 42%", "ru", "1 000 50 и 42"),
        ("Straße ẞ", "de", "straße ß"),
        ("IĞDIR İSTANBUL I\u0307zmir", "tr", "ığdır istanbul izmir"),
        ("IĞDIR", "tr-TR", "ığdır"),
        ("IĞDIR", "en", "iğdir"),
        ("ΟΔΟΣ.", "el", "οδος"),
        ("col·lecció. paral·lel", "ca", "col·lecció paral·lel"),
        ("a·b", "en", "a b"),
        ("e\u0301tude", None, "étude"),
        ("नमस्ते, दुनिया!", "hi", "नमस्ते दुनिया"),
        ("كِتَابٌ؟ مَرْحَبًا،", "ar", "كِتَابٌ مَرْحَبًا"),
        ("สวัสดีครับ ครั้ง", "th", "สวัสดีครับ ครั้ง"),
        ("你好，世界。", "zh", "你好 世界"),
        ("Ａ\uff07Ｂ ﬁne", "en", "ａ'ｂ ﬁne"),
        ("soft\u00adhyphen zero\u200bwidth \ufeffmark\x07", "en", "softhyphen zerowidth mark"),
        ("a|b ▁c", "en", "a b c"),
        (". \u0301 ...", "en", ""),
        ("[noise] <unk> ❤️ 1️⃣", "en", "noise unk 1"),
    ],
)
def test_default(raw, language, expected):
    assert Normaliser()(raw, language) == expected


@pytest.mark.parametrize(
    ("config", "raw", "language", "expected"),
    [
        ({"case": "upper"}, "Straße", "de", "STRAẞE"),
        ({"case": "upper"}, "Straße", "en", "STRASSE"),
        ({"case": "upper"}, "istanbul ığdır", "tr", "İSTANBUL IĞDIR"),
        ({"case": "keep"}, "Mixed Case.", "en", "Mixed Case"),
        ({"punctuation": "keep"}, "Well-known,  it’s “so”|x", "en", "well-known, it’s “so” x"),
        ({"hyphens": "keep"}, "well-known -- co\u2010op - x-", "en", "well-known co-op x"),
        ({"keep": "%€"}, "5% of 3 €", "en", "5% of 3 €"),
        ({"replace": {"&": " and ", "ß": "ss"}}, "R&D Maẞ", "de", "r and d mass"),
        ({"case": "upper", "replace": {"&": " and "}}, "r&d", "en", "R AND D"),
        ({"languages": {"de": Rules(case="keep", replace={"ß": "ss"})}}, "Große Maß!", "de", "Grosse Mass"),
        ({"languages": {"de": Rules(case="keep")}}, "Große Maß!", "nl", "große maß"),
        ({"languages": {"pt": Rules(case="keep"), "pt-BR": Rules(hyphens="keep")}}, "A-B", "pt-BR", "A-B"),
        ({"languages": {"ca": Rules(keep="")}}, "col·lecció", "ca", "col lecció"),
    ],
)
def test_settings(config, raw, language, expected):
    assert Normaliser(NormaliseConfig(**config))(raw, language) == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"keep": "a|"}, "keep: '|' cannot be kept"),
        ({"keep": "-"}, "keep: '-' cannot be kept"),
        ({"replace": {"ab": "c"}}, "replace: 'ab' is not a single letter"),
        ({"replace": {"\u0301": ""}}, "is not a single letter"),
        ({"replace": {"A": "b"}}, "replace: 'A' never matches, because case is changed first; write 'a' instead"),
        (
            {"replace": {"a": "b", "b": "c"}},
            "replace: 'a' becomes 'b', which contains 'b', another key; change one of them",
        ),
        ({"replace": {"a": "xA"}}, "another key"),
        ({"hyphens": "keep", "replace": {"-": "‐a‐"}}, "another key"),
        ({"languages": {"de": Rules(replace={"ẞ": "ss"})}}, "languages.de.replace: 'ẞ' never matches"),
    ],
)
def test_settings_that_cannot_work(config, message):
    with pytest.raises(ValueError) as caught:
        NormaliseConfig(**config)
    assert message in str(caught.value)


def test_config_from_json():
    given = {"case": "upper", "languages": {"tr": {"punctuation": "keep", "replace": {"&": "VE"}}}}
    config = read(NormaliseConfig, given)
    assert config.rules("tr") == Rules("upper", "keep", "space", "", {}, {"&": "VE"}, False, ())
    assert NormaliseConfig.from_dict(config.to_dict()) == config
    for wrong in ({"case": "title"}, {"languages": {"tr": {"cases": "upper"}}}, {"languages": {"tr": {"case": "x"}}}):
        with pytest.raises(UserError):
            read(NormaliseConfig, wrong)
