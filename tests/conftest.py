"""Fixtures that several test files share."""

import os
import signal
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
HANDLERS = {
    number: signal.getsignal(number)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
}


@pytest.fixture(autouse=True)
def handlers():
    """The signal handlers of before: a stage that has finished ignores signals, because its process is about to end."""
    yield
    for number, handler in HANDLERS.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def speech_data() -> Path:
    """The folder of the real corpora: $SPEECH_DATA, else ../shared/data beside the repository; skips where absent."""
    root = Path(os.environ.get("SPEECH_DATA") or REPOSITORY.parent / "shared" / "data")
    if not root.is_dir():
        pytest.skip(
            f"no real speech: {root} is absent; set SPEECH_DATA to the folder of digits, speechocean762, voices"
        )
    return root.resolve()


@pytest.fixture(scope="session")
def speech_models() -> Path:
    """The folder of published models, $SPEECH_MODELS; skips where it is not set."""
    root = os.environ.get("SPEECH_MODELS")
    if not root:
        pytest.skip("no published models: set SPEECH_MODELS to the folder of whisper-tiny.en")
    return Path(root).resolve()


# Imported where they are used: tests/with_k2 runs where the package is not installed.


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Corpus, token sets, and for both families a base and its features."""
    import stage_world

    return stage_world.make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def systems(world):
    """A trained system of each family and task on ``world``."""
    import stage_world

    return stage_world.make_systems(world)
