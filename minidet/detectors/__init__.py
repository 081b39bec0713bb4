"""Whole detectors: backbone, neck, head, assigner and losses put together."""

from minidet.detectors.detector import Detector
from minidet.detectors.imagenet import load_backbone_weights
from minidet.detectors.official import load_official
from minidet.detectors.optimize import optimize
from minidet.detectors.weights import load_model, save_weights
from minidet.detectors.yolof import YOLOF, YOLOFConfig
from minidet.detectors.yolox import YOLOX, YOLOXConfig
from minidet.detectors.zoo import ZOO, ModelCard, create_model, list_models, model_card

__all__ = [
    "YOLOF",
    "YOLOX",
    "ZOO",
    "Detector",
    "ModelCard",
    "YOLOFConfig",
    "YOLOXConfig",
    "create_model",
    "list_models",
    "load_backbone_weights",
    "load_model",
    "load_official",
    "model_card",
    "optimize",
    "save_weights",
]
