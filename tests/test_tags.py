"""Tags in transcripts are detected and reported, dropped or mapped, and never silently treated as words."""

import random

import pytest
from lhotse import MonoCut, SupervisionSegment

from lowrank_speech.errors import UserError
from lowrank_speech.lang.load import NOTHING_LEFT, ONLY_TAGS, unusable
from lowrank_speech.lang.normalise import NormaliseConfig, Normaliser, Rules
from lowrank_speech.lang.tags import found_tags, shown
from lowrank_speech.settings import read


def normalised(text, language="en", **config):
    return Normaliser(NormaliseConfig(**config))(text, language)


ALL = {"<*>": None, "[*]": None, "{*}": None, "((*))": None, "***": None}


@pytest.mark.parametrize(
    ("tags", "raw", "expected"),
    [
        ({}, "so <hes> I [laughter] went", "so hes i laughter went"),  # as ever
        ({"<*>": None}, "so <hes> I <no-speech> went", "so i went"),
        ({"[*]": None}, "so [door slams] I [laughter] <hes> went", "so i hes went"),
        ({"<*>": None, "<hes>": "uh"}, "so <hes> I <noise> went", "so uh i went"),
        ({"<n*>": None, "<n?>": "two", "<*>": "any"}, "<nx> <noise> <x>", "two any"),
        ({"<HES>": "Uh"}, "<hes> <HES> <Hes>", "uh uh uh"),
        ({"(laughs)": None}, "well (laughs) yes (no)", "well yes no"),
        ({"((*))": None}, "and ((i think)) so (or so)", "and so or so"),
        ({"*cough*": None, "***": "x"}, "a *cough* b *sneeze* c", "a b x c"),
        ({"[door slams]": None}, "a [door   slams] b [ door slams ] c", "a b c"),
        ({"<*>": None}, "no<hes>blank", "no blank"),
        ({"<*>": None}, "a <b <c> d> e", "a e"),
        ({"<*>": None}, "a < b and c", "a b and c"),
        ({"<|nospeech|>": None}, "a <|nospeech|> b", "a b"),
        ({"<h\u00e9s>": None}, "a <he\u0301s> b <h\u200be\u0301s> c", "a b c"),
        ({"[*]": "noise"}, "[laughter]", "noise"),
    ],
)
def test_what_tags_become(tags, raw, expected):
    assert normalised(raw, tags=tags) == expected


def test_tags_of_one_language():
    config = NormaliseConfig(tags={"<*>": None}, languages={"de": Rules(tags={"[*]": "äh"})})
    assert Normaliser(config)("<a> x [b]", "de") == "a x äh"
    assert Normaliser(config)("<a> x [b]", "en") == "x b"


def test_case_is_kept_where_the_config_keeps_it():
    assert normalised("<HES> <hes> A", case="keep", tags={"<hes>": "uh"}) == "HES uh A"
    assert normalised("<hes> a", case="upper", tags={"<hes>": "uh"}) == "UH A"


@pytest.mark.parametrize(
    "config",
    [
        NormaliseConfig(tags=ALL),
        NormaliseConfig(tags=ALL, punctuation="keep"),
        NormaliseConfig(tags={"<*>": "uh", "(x)": None}, punctuation="keep", case="keep", hyphens="keep"),
        NormaliseConfig(tags={"<*>": None}, punctuation="keep", replace={"{": " <", "}": "> "}),
    ],
)
def test_twice_is_once(config):
    normalise, rng = Normaliser(config), random.Random(11)
    for _ in range(4000):
        text = "".join(rng.choices([*"<>[]{}()*xX -,|\u0301\u200b\u00a0'", "hes", "<hes>"], k=rng.randint(0, 9)))
        once = normalise(text, "en")
        assert normalise(once, "en") == once, ascii(text)


def test_a_transcript_of_tags_has_a_reason_of_its_own():
    normaliser = Normaliser(NormaliseConfig(tags={"<*>": None}))
    assert unusable(normaliser, "<noise> <hes> .", "en") == ONLY_TAGS == "only tags"
    assert unusable(normaliser, "...", "en") == NOTHING_LEFT
    assert unusable(normaliser, "<noise> yes", "en") is None


def test_unknown_tags():
    normaliser = Normaliser(NormaliseConfig(tags={"<*>": None, "[Laughter]": None}))
    assert normaliser.unknown_tags("<HES> [laughter] [Noise  x] (fine) ((what)) and *cough*") == [
        "[Noise x]", "((what))", "*cough*",
    ]  # fmt: skip
    assert normaliser.unknown_tags("plain text") == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("I say (in short) no - 2 * 3 * 4 <3 a > b", []),
        ("a <b> [c d] {e} ((f g)) (( )) *h*", ["<b>", "[c d]", "{e}", "((f g))", "(( ))", "*h*"]),
        ("<" + "x" * 99 + ">", []),
        ("", []),
    ],
)
def test_what_looks_like_a_tag(text, found):
    assert found_tags(text) == found


def test_shown():
    assert shown({"<a>": 2, "[b]": 7}) == "[b] (7), <a> (2)"
    assert shown({f"<{i}>": 1 for i in range(12)}, 2) == "<0> (1), <10> (1) and 10 others"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"tags": {"hes": None}}, "tags: 'hes' is not a pattern; it must start and end with a pair of brackets"),
        ({"tags": {"<hes]": None}}, "tags: '<hes]' is not a pattern"),
        ({"tags": {"<>": None}}, "tags: '<>' is not a pattern"),
        ({"tags": {"<hes>": "[uh]"}}, "tags: '<hes>' becomes '[uh]', which contains the bracket '['; use words"),
        ({"languages": {"de": {"tags": {"x": None}}}}, "languages.de.tags: 'x' is not a pattern"),
        ({"tags": {"<hes>": "uh", "<HES>": "er"}}, "tags: '<HES>' occurs twice in different case"),
        ({"tags": {"<hes>": 5}}, "normalise.tags.<hes>: expected text, got 5"),
    ],
)
def test_settings_that_cannot_work(config, message):
    with pytest.raises(UserError) as caught:
        read(NormaliseConfig, config, "normalise")
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_stored_features_keep_alignments_and_custom_fields():
    """``with_features`` copied a supervision field by field, and lost what it did not name."""
    import numpy as np
    from lhotse.supervision import AlignmentItem

    from lowrank_speech.features.store import with_features

    words = {"word": [AlignmentItem("hello", 0.1, 0.4), AlignmentItem("you", 0.6, 0.2, 0.9)]}
    said = SupervisionSegment(
        "u", "r", 0.0, 1.0, 1, "hello you", "en", "s", "f", custom={"mood": "good"}, alignment=words
    )
    cut = MonoCut("u", 2.0, 1.0, 1, supervisions=[said], custom={"snr": 5.0})
    made = with_features(cut, "k", "x.h5", np.zeros((50, 4), np.float32), 0.02, "conv")
    [kept] = made.supervisions
    assert kept.alignment == words and kept.custom == {"mood": "good"}
    assert (kept.id, kept.text, kept.language, kept.speaker, kept.gender) == ("u", "hello you", "en", "s", "f")
    assert (kept.recording_id, kept.start, kept.duration, kept.channel) == ("u", 0.0, 1.0, 0)
    assert made.custom == {"snr": 5.0, "seconds": 1.0}
