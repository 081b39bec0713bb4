"""minidet: YOLOF and YOLOX, taken apart and put together again.

>>> model = minidet.create_model("yolox-nano", num_classes=8)
>>> losses = model(images, targets)  # in training
>>> predictions = model.eval()(images)  # afterwards
"""

from minidet.detectors import create_model, list_models, load_model, load_official, optimize, save_weights
from minidet.errors import MinidetError

__version__ = "0.1.0"

__all__ = ["MinidetError", "create_model", "list_models", "load_model", "load_official", "optimize", "save_weights"]
