"""Settings that define a graph, in the stage graph and in the decoders that search graphs."""

from typing import Literal

from lowrank_speech.settings import key, settings

KINDS = ("h", "hl", "hg", "hlg")
WITH_LM, WITH_LEXICON = ("hg", "hlg"), ("hl", "hlg")


@settings
class GraphSettings:
    """What defines a graph, apart from the token set."""

    graph: Literal["h", "hl", "hg", "hlg"] = key(
        "hlg",
        "h: any tokens; hl: words of a lexicon; hg: an n-gram over tokens; hlg: an n-gram over words of a lexicon",
    )
    lm: str | None = key(None, "the n-gram of hg and hlg, a name in `lms`")
    lexicon: str | None = key(
        None,
        "hl, hlg: a pronunciation dictionary, Kaldi's lexicon.txt or lexiconp.txt; null: spell words in tokens",
    )

    def __post_init__(self) -> None:
        if (self.graph in WITH_LM) != (self.lm is not None):
            if self.lm is None:
                raise ValueError(f"graph: {self.graph} needs lm, the n-gram; name one, or choose h or hl")
            raise ValueError(f"graph: {self.graph} has no n-gram; remove lm ({self.lm!r}), or choose hg or hlg")
        if self.lexicon is not None and self.graph not in WITH_LEXICON:
            raise ValueError(f"graph: {self.graph} has no words; remove lexicon, or choose hl or hlg")
