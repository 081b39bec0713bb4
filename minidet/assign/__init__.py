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
    labels_of,
    make_assignment,
    pad_targets,
    pairs_of,
)
from minidet.assign.best_anchor import BestAnchor
from minidet.assign.centre import CentreSampling
from minidet.assign.max_iou import MaxIoU
from minidet.assign.one_to_one import OneToOne
from minidet.assign.ota import OTA
from minidet.assign.poto import POTO
from minidet.assign.simota import SimOTA
from minidet.assign.uniform import UniformMatching

# Every strategy, in the order in which explorers offer them.
STRATEGIES = (SimOTA, UniformMatching, MaxIoU, ATSS, CentreSampling, OneToOne, OTA, BestAnchor, POTO)

__all__ = [
    "ATSS",
    "BACKGROUND",
    "IGNORED",
    "OTA",
    "POTO",
    "STRATEGIES",
    "Assigner",
    "Assignment",
    "BestAnchor",
    "CentreSampling",
    "DensePredictions",
    "GroundTruth",
    "MaxIoU",
    "OneToOne",
    "Pairs",
    "SimOTA",
    "Targets",
    "UniformMatching",
    "labels_of",
    "make_assignment",
    "pad_targets",
    "pairs_of",
]
