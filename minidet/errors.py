"""Every error that a user can cause, as one small family: the text says what was wrong, where, and what to do."""

from __future__ import annotations


class MinidetError(ValueError):
    """Base of all errors that input, files or options can cause; the command line prints it and exits with code 2."""


class DataError(MinidetError):
    """A data set, an annotation file or an image cannot be used as it is."""


class FetchError(MinidetError):
    """A download failed, did not verify, or an archive is not safe to unpack."""


class WeightsError(MinidetError):
    """A weights file or checkpoint cannot be read, or does not fit the model."""


class RunError(MinidetError):
    """A training run cannot start, go on, or be written down."""
