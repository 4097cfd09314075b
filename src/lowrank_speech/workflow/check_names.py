"""Shared by the checks of ``workflow.checks``: names that must exist, and the roles of splits."""

from collections.abc import Iterable, Mapping

from lowrank_speech.workflow.config import (
    Config,
    ConfigError,
    Split,
    task_splits,
    tests,
)
from lowrank_speech.workflow.schema import nearest


def known(where: str, value: str, legal: Iterable[str], what: str = "") -> None:
    """Raise ConfigError unless ``value`` is one of ``legal``; ``what``: their kind, for the message."""
    if value not in legal:
        shown = f"expected one of {what}{', '.join(legal)}" if legal else "none is defined"
        raise ConfigError(f"{where}: {value!r} does not exist; {shown}{nearest(value, legal)}")


def known_split(config: Config, where: str, split: Split, key: str) -> None:
    """Raise ConfigError unless the corpus and the split exist."""
    known(f"{where}.corpus", split.corpus, config["corpora"])
    legal = config["corpora"][split.corpus]["splits"]
    known(f"{where}.{key}", split.split, legal, f"the splits of corpora.{split.corpus}: ")


def roles_of(config: Config) -> dict[Split, str]:
    """Split -> its role in the first task that uses it as dev or test split."""
    found: dict[Split, str] = {}
    for task in config["tasks"]:
        for split in tests(config, task).values():
            found[split] = f"the test split of tasks.{task}"
        found.setdefault(task_splits(config, task)["dev"], f"the dev split of tasks.{task}")
    return found


def check_apart(where: str, splits: Mapping[str, Split]) -> None:
    """Raise ConfigError if two of ``splits`` (key of the config -> split) are the same."""
    keys = list(splits)
    for i, key in enumerate(keys):
        for other in keys[:i]:
            if splits[key] == splits[other]:
                raise ConfigError(
                    f"{where}.{key}: {splits[key].split!r} is already the {other} split; choose another split"
                )
