"""Who learns what: one strategy a module, one contract for all (`minidet.assign.base`)."""

from minidet.assign.atss import ATSS
from minidet.assign.base import (
    BACKGROUND,
    IGNORED,
    Assigner,
    Assignment,
    DensePredictions,
    GroundTruth,
    Pairs,
    Targets,
    make_assignment,
    pad_targets,
    pairs_of,
)
from minidet.assign.centre import CentreSampling
from minidet.assign.max_iou import MaxIoU
from minidet.assign.one_to_one import OneToOne
from minidet.assign.ota import OTA
from minidet.assign.simota import SimOTA
from minidet.assign.uniform import UniformMatching

__all__ = [
    "ATSS",
    "BACKGROUND",
    "IGNORED",
    "OTA",
    "Assigner",
    "Assignment",
    "CentreSampling",
    "DensePredictions",
    "GroundTruth",
    "MaxIoU",
    "OneToOne",
    "Pairs",
    "SimOTA",
    "Targets",
    "UniformMatching",
    "make_assignment",
    "pad_targets",
    "pairs_of",
]
