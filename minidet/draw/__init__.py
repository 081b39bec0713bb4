"""Pictures of detections and curves of training: pure functions, data in, matplotlib `Figure` out (chapter 00)."""

from __future__ import annotations

from minidet.draw.ablation import AblationPanel, AblationRow, draw_ablation
from minidet.draw.agreement import AgreementPanel, draw_agreement
from minidet.draw.anchors import draw_anchors
from minidet.draw.curves import draw_curves
from minidet.draw.encoders import draw_encoders
from minidet.draw.figure import Drawing, figure_png, save_figure
from minidet.draw.heads import HeadView, draw_heads
from minidet.draw.look import DARK, LIGHT, Look
from minidet.draw.palette import MARKS, PALETTE, colour, mark, text_colour
from minidet.draw.pictures import draw_detections, draw_gallery
from minidet.draw.receptive_field import FieldView, draw_receptive_field
from minidet.draw.scaling import ScalingPanel, draw_scaling
from minidet.draw.scene import Scene, describe_detections
from minidet.draw.thresholds import ThresholdView, draw_thresholds

__all__ = [
    "DARK",
    "LIGHT",
    "MARKS",
    "PALETTE",
    "AblationPanel",
    "AblationRow",
    "AgreementPanel",
    "Drawing",
    "FieldView",
    "HeadView",
    "Look",
    "ScalingPanel",
    "Scene",
    "ThresholdView",
    "colour",
    "describe_detections",
    "draw_ablation",
    "draw_agreement",
    "draw_anchors",
    "draw_curves",
    "draw_detections",
    "draw_encoders",
    "draw_gallery",
    "draw_heads",
    "draw_receptive_field",
    "draw_scaling",
    "draw_thresholds",
    "figure_png",
    "mark",
    "save_figure",
    "text_colour",
]
