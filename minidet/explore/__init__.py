"""Explorers: interactive views over the pictures of `minidet.draw` and the library's own modules (needs anywidget)."""

from minidet.explore.assignment_view import AssignmentExplorer, explore_assignment
from minidet.explore.detections import DetectionExplorer, explore_detections
from minidet.explore.heads import HeadExplorer, explore_heads
from minidet.explore.receptive_field import ReceptiveFieldExplorer, explore_receptive_fields
from minidet.explore.stages import Stage, load_stages

__all__ = [
    "AssignmentExplorer",
    "DetectionExplorer",
    "HeadExplorer",
    "ReceptiveFieldExplorer",
    "Stage",
    "explore_assignment",
    "explore_detections",
    "explore_heads",
    "explore_receptive_fields",
    "load_stages",
]
