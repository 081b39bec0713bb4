"""Who learns what: one strategy a module, one contract for all (`minidet.assign.base`)."""

from minidet.assign.atss import ATSS
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
from minidet.assign.centre import CentreSampling
from minidet.assign.max_iou import MaxIoU
from minidet.assign.one_to_one import OneToOne
from minidet.assign.simota import SimOTA
from minidet.assign.uniform import UniformMatching

__all__ = [
    "ATSS",
    "BACKGROUND",
    "IGNORED",
    "Assigner",
    "Assignment",
    "CentreSampling",
    "DensePredictions",
    "MaxIoU",
    "OneToOne",
    "Pairs",
    "SimOTA",
    "UniformMatching",
    "make_assignment",
    "matched_targets",
    "pairs_of",
]
