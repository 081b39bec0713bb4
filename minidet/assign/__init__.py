"""Who learns what: one strategy a module, one contract for all (`minidet.assign.base`)."""

from minidet.assign.base import BACKGROUND, IGNORED, Assigner, Assignment, DensePredictions, Pairs
from minidet.assign.simota import SimOTA

__all__ = ["BACKGROUND", "IGNORED", "Assigner", "Assignment", "DensePredictions", "Pairs", "SimOTA"]
