"""Show the progress of a training: a bar or log lines, and curves for TensorBoard."""

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 60.0


class Progress:
    """A bar on a terminal; elsewhere a log line every minute. ``done`` of ``steps`` are already done.

    ``shown``: whether to show a bar at all.
    """

    def __init__(self, steps: int, done: int, shown: bool = True):
        self.steps, self.done, self.first = steps, done, done
        self.speech = 0.0
        self.start = self.last_line = time.monotonic()
        self.bar = tqdm(total=steps, initial=done, disable=None if shown else True, unit="step")

    def step(self, epoch: int, loss: float | None, speech: float) -> None:
        """Count a step of ``speech`` seconds in ``epoch`` (from 1); ``loss``: the epoch's mean so far."""
        self.done += 1
        self.speech += speech
        now = time.monotonic()
        rate = self.speech / max(now - self.start, 1e-9)
        shown = "-" if loss is None else f"{loss:.3f}"
        self.bar.set_postfix_str(f"epoch {epoch}, loss {shown}, {rate:.0f} s of speech/s", refresh=False)
        self.bar.update()
        if self.bar.disable and now - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = now
            left = (now - self.start) / (self.done - self.first) * (self.steps - self.done)
            log.info(
                "step %d of %d, epoch %d, loss %s, %.0f s of speech per second, %s left",
                *(self.done, self.steps, epoch, shown, rate, tqdm.format_interval(left)),
            )

    def close(self) -> None:
        self.bar.close()


class Curves:
    """Writes event files for TensorBoard to ``folder``; with None, does nothing.

    ``step``: the step from which the run continues. TensorBoard hides what a killed run wrote after it. At 0, the event
    files of earlier runs are removed.
    """

    def __init__(self, folder: Path | None, step: int):
        self.writer = None
        if folder is None:
            return
        # Imported here, because the import is slow.
        from torch.utils.tensorboard import SummaryWriter

        if step == 0:
            for old in folder.glob("events.out.tfevents.*"):
                old.unlink()
        self.writer = SummaryWriter(str(folder), purge_step=step + 1)

    def add(self, step: int, group: str, values: Mapping[str, Any]) -> None:
        """Add ``values`` at ``step`` to the curves ``group/name``; skips None."""
        if self.writer is None:
            return
        with self._without_room():
            for name, value in values.items():
                if value is not None and name not in ("step", "epoch"):
                    self.writer.add_scalar(f"{group}/{name}", value, step)

    def close(self) -> None:
        if self.writer is not None:
            with self._without_room():
                self.writer.close()

    @contextlib.contextmanager
    def _without_room(self) -> Iterator[None]:
        """If the curves cannot be written, stop writing them and let the training continue."""
        try:
            yield
        except OSError as error:
            log.warning("the curves for TensorBoard cannot be written and end here: %s", error)
            self.writer = None
