"""Transcripts in Whisper's own style: sentence case and a full stop, where the reference has neither."""

import json

import pytest

from lowrank_speech.errors import UserError
from lowrank_speech.lang.config import read as read_lang
from lowrank_speech.lang.normalise import NormaliseConfig, Normaliser

STYLE = {"case": "sentence", "punctuation": "keep", "final_stop": True}


@pytest.mark.parametrize(
    ("raw", "language", "expected"),
    [
        ("SEND MY LUGGAGE", "en", "Send my luggage."),
        ("send my luggage", "en-GB", "Send my luggage."),
        ("WELL I'M SURE I'LL GO ON MONDAY", "en", "Well I'm sure I'll go on Monday."),
        ("IT IS I’M I", "en", "It is I’m I."),
        ("I", "en", "I."),
        ("5 O'CLOCK IN MAY", "en", "5 o'clock in may."),
        # Text that has case and punctuation already stays.
        ("He said: I go!", "en", "He said: I go!"),
        ("did you see McDonald", "en", "did you see McDonald."),
        ('He said "yes."', "en", 'He said "yes."'),
        ('He said "yes"', "en", 'He said "yes".'),
        ("Wait, ", "en", "Wait."),
        ("Really?", "en", "Really?"),
        ("SEND MY LUGGAGE", None, "Send my luggage."),
        # I is a word of English only; the dotless i; other full stops, or none.
        ("I GATTI", "it", "I gatti."),
        ("İYİ GÜNLER ISPARTA", "tr", "İyi günler ısparta."),
        ("你好", "zh", "你好。"),
        ("नमस्ते", "hi", "नमस्ते।"),
        ("สวัสดี", "th", "สวัสดี"),
        ("—", "en", "—"),
        ("ß", "de", "ß."),
    ],
)
def test_a_sentence(raw, language, expected):
    normalise = Normaliser(NormaliseConfig(**STYLE))
    assert normalise(raw, language) == expected
    assert normalise(expected, language) == expected


def test_the_other_way_is_the_default():
    assert Normaliser()("Send my luggage. I'm late!", "en") == "send my luggage i'm late"


def test_capitals_and_tags():
    config = NormaliseConfig(**STYLE, capitals=("Beijing", "NASA"), tags={"<HES>": None, "[noise]": None})
    assert Normaliser(config)("<hes> TOM OF NASA WENT TO BEIJING [NOISE]", "en") == "Tom of NASA went to Beijing."
    loaded = NormaliseConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert loaded == config


def test_one_language_only():
    config = NormaliseConfig(languages={"en": {**STYLE}})
    assert Normaliser(config)("SEND IT!", "en") == "Send it!" and Normaliser(config)("SENDE ES!", "de") == "sende es"


def test_text_as_written_has_its_tags_replaced():
    normalise = Normaliser(NormaliseConfig(tags={"<*>": None, "<hes>": "uh"}))
    assert normalise.with_tags("Well,  <HES> It's $20.50\u00a0<noise>", "en") == "Well, uh It's $20.50"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"final_stop": True}, "final_stop: punctuation: strip would remove the full stop; set punctuation: keep"),
        ({"capitals": ["Beijing"]}, "capitals: 'Beijing' has an effect only with case: sentence"),
        ({**STYLE, "capitals": ["beijing"]}, "capitals: 'beijing' is not a word of letters with a capital"),
        ({**STYLE, "capitals": ["New York"]}, "capitals: 'New York' is not a word"),
        ({**STYLE, "capitals": ["Nasa", "NASA"]}, "capitals: 'NASA' is also spelt 'Nasa'"),
        ({**STYLE, "tags": {"<a>": "x", "<A>": "y"}}, "'<A>' occurs twice in different case"),
        ({"case": "title"}, "expected one of: lower, upper, keep, sentence"),
    ],
)
def test_bad_settings(keys, message):
    with pytest.raises(UserError, match=r"langs\.own") as refused:
        read_lang({"kind": "whisper", "normalise": keys}, "langs.own")
    assert message in str(refused.value) and str(refused.value).startswith("langs.own.normalise")
