"""Ctrl-C that loses nothing: the first asks for a stop between two steps, the second stops at once (chapter 11)."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


class Interrupt:
    """Whether somebody pressed Ctrl-C.

    Attributes:
        requested: a stop was asked for; the loop looks at it after each step.
        at_once: the next Ctrl-C need not wait, because everything is saved; the loop sets it during an evaluation.
    """

    def __init__(self, log: Callable[[str], None]) -> None:
        self.requested = False
        self.at_once = False
        self._log = log

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.requested or self.at_once:
            raise KeyboardInterrupt
        self.requested = True
        with contextlib.suppress(RuntimeError):  # Ctrl-C came in the midst of another line
            self._log("Stopping after this step, then saving. Press Ctrl-C again to stop at once, without saving.")


@contextlib.contextmanager
def interruptible(log: Callable[[str], None]) -> Iterator[Interrupt]:
    """Catch Ctrl-C while the block runs; only the main thread can, others get an `Interrupt` that never comes."""
    interrupt = Interrupt(log)
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before or signal.default_int_handler)
