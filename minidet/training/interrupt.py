"""Ctrl-C and a scheduler's SIGTERM lose nothing: the first asks for a stop between two steps, the second stops at once.

Chapter 11.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

# A killed program's exit code is 128 + the number of the signal: 130 after Ctrl-C, 143 after SIGTERM.
EXIT_CODE = 128
WORDS = {
    signal.SIGINT: "Stopping after this step, then saving. Press Ctrl-C again to stop at once, without saving.",
    signal.SIGTERM: "Asked to end (SIGTERM): stopping after this step, then saving.",
}


class StopNow(KeyboardInterrupt):
    """Stop at once, without saving; `number` is that of the signal that asked for it."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class Interrupt:
    """Whether somebody wants the run to stop.

    Attributes:
        requested: the number of the signal that asked for it, 0 while none has; the loop looks at it after each step.
        at_once: the next signal need not wait, because everything is saved; the loop sets it during an evaluation.
    """

    def __init__(self, log: Callable[[str], None]) -> None:
        self.requested = 0
        self.at_once = False
        self._log = log

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.requested or self.at_once:
            raise StopNow(number)
        self.requested = number
        with contextlib.suppress(RuntimeError):  # the signal came in the midst of another line
            self._log(WORDS[number])


@contextlib.contextmanager
def interruptible(log: Callable[[str], None]) -> Iterator[Interrupt]:
    """Catch both signals while the block runs; only the main thread can, others get an `Interrupt` that never comes."""
    interrupt = Interrupt(log)
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    before = {number: signal.signal(number, interrupt) for number in WORDS}
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
