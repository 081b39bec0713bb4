"""Who learns what: one strategy a module, one contract for all (`minidet.assign.base`)."""

from minidet.assign.base import (
    BACKGROUND,
    IGNORED,
    Assigner,
    Assignment,
    DensePredictions,
    Pairs,
    make_assignment,
    matched_targets,
    pairs_of,
)
from minidet.assign.simota import SimOTA

__all__ = [
    "BACKGROUND",
    "IGNORED",
    "Assigner",
    "Assignment",
    "DensePredictions",
    "Pairs",
    "SimOTA",
    "make_assignment",
    "matched_targets",
    "pairs_of",
]
