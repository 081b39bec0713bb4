"""What all explorers share: the way from a hand on the picture to the kernel and back, and a picture without a kernel.

The view (one small JavaScript module an explorer) knows what a person sees and does; every number that it shows was
computed here by the library. It sends its whole state; the explorer computes from it and answers by setting traits. At
most one request is under way: while it is, the view keeps only its newest state, so a slow kernel skips states and
never lags behind. Each request has a sequence number, and the answer repeats it.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets

from minidet.draw import Drawing
from minidet.errors import MinidetError

HERE = Path(__file__).parent
ALIGNMENT = 4  # bytes; typed arrays of the browser begin at multiples of the size of their numbers


def script(name: str) -> str:
    """The JavaScript of one explorer: what all share, and its own. A front end loads one text for each widget."""
    return _text("base.js") + _text(name)


def style(name: str) -> str:
    """The style sheet of one explorer, the same way."""
    return _text("base.css") + _text(name)


def _text(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def pack(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, list], bytes]:
    """Named arrays as one piece of bytes, and where each of them lies; `unpack` in base.js reads them.

    Args:
        arrays: one-dimensional, of uint8, uint16, int16, uint32, int32 or float32.

    Returns:
        For each name [dtype, offset in bytes, number of elements], and the bytes.
    """
    layout, pieces, offset = {}, [], 0
    for name, array in arrays.items():
        data = np.ascontiguousarray(array).tobytes()
        layout[name] = [str(array.dtype), offset, array.size]
        pieces.append(data + bytes(-len(data) % ALIGNMENT))
        offset += len(pieces[-1])
    return layout, b"".join(pieces)


class Explorer(anywidget.AnyWidget):
    """Base of the explorers. A subclass implements `compute` and `figure`, and names its script and style sheet.

    It sets its traits *before* it calls `super().__init__()`, which opens the way to the front end: so no view begins
    empty.

    Traits, all read by the view:
        scene: what stays while people play, as plain JSON values: choices, ranges, names.
        picture: what `answer` is drawn on, as PNG.
        answer: the numbers of the newest state, as plain JSON values; `numbers`: the long ones among them, packed.
        status: which request was answered last ("client", "seq"), and "error": None, or what went wrong in words.
    """

    scene = traitlets.Dict().tag(sync=True)
    picture = traitlets.Bytes().tag(sync=True)
    answer = traitlets.Dict().tag(sync=True)
    numbers = traitlets.Bytes().tag(sync=True)
    status = traitlets.Dict().tag(sync=True)

    def __init__(self) -> None:
        super().__init__()
        self.on_msg(self._on_message)

    def compute(self, state: dict[str, Any], buffers: Sequence[memoryview]) -> None:
        """Read a state of the view and set the traits that follow from it.

        Raises:
            MinidetError: the state makes no sense. Whatever is raised is shown in the view, and the picture stays.
        """
        raise NotImplementedError

    def figure(self) -> Drawing:
        """The present state as a picture, with its alternative text: what a reader without a kernel sees."""
        raise NotImplementedError

    def _on_message(self, _widget: anywidget.AnyWidget, message: dict[str, Any], buffers: Sequence[memoryview]) -> None:
        error = None
        with self.hold_sync():  # everything in one message
            try:
                self.compute(message["state"], buffers)
            except Exception as problem:  # in a callback it would end in a log that nobody reads
                error = describe(problem)
            self.status = {"client": message["client"], "seq": message["seq"], "error": error}

    def refresh(self) -> None:
        """Tell the views that traits were changed from Python; they take over the state in `answer`."""
        self.status = {"client": "kernel", "seq": self.status.get("seq", 0) + 1, "error": None}

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        data, metadata = super()._repr_mimebundle_(**kwargs)
        picture, about_picture = self.figure()._repr_mimebundle_()
        return {**data, **picture}, {**metadata, **about_picture}


def describe(problem: Exception) -> dict[str, str]:
    """An exception for people: what went wrong, and where, unless the message alone says it all."""
    if isinstance(problem, MinidetError):
        return {"text": str(problem), "details": ""}
    details = "".join(traceback.format_exception(type(problem), problem, problem.__traceback__))
    return {"text": f"{type(problem).__name__}: {problem}", "details": details}
