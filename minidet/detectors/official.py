"""Published checkpoints become minidet models: one door for YOLOX and YOLOF.

What the files hold is known to `official_yolox` and `official_yolof`; here they are opened, and what comes out is put
into a model, every key of it.

Source: chapters 07 and 11.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minidet.detectors.detector import Detector
from minidet.detectors.official_yolof import translate_yolof
from minidet.detectors.official_yolox import translate_names, translate_yolox
from minidet.detectors.tensor_files import read_tensor_file, state_dict_in
from minidet.detectors.weights import load_state
from minidet.detectors.yolof import YOLOFConfig
from minidet.detectors.zoo import create_model, model_card
from minidet.errors import WeightsError

__all__ = ["COCO_CLASSES", "load_official", "translate_names"]

# The 80 classes of COCO in the order of their category ids, which is the order of the published class predictors.
COCO_CLASSES = (
    "person bicycle car motorcycle airplane bus train truck boat traffic_light fire_hydrant stop_sign "
    "parking_meter bench bird cat dog horse sheep cow elephant bear zebra giraffe backpack umbrella handbag "
    "tie suitcase frisbee skis snowboard sports_ball kite baseball_bat baseball_glove skateboard surfboard "
    "tennis_racket bottle wine_glass cup fork knife spoon bowl banana apple sandwich orange broccoli carrot "
    "hot_dog pizza donut cake chair couch potted_plant bed dining_table toilet tv laptop mouse remote "
    "keyboard cell_phone microwave oven toaster sink refrigerator book clock vase scissors teddy_bear "
    "hair_drier toothbrush"
).split()
COCO_CLASSES = tuple(name.replace("_", " ") for name in COCO_CLASSES)


def load_official(
    name: str, source: str | Path | Mapping[str, Any], legacy: bool = False, class_names: list[str] | None = None
) -> Detector:
    """Build a minidet model from a published checkpoint.

    Args:
        name: the variant, such as "yolox-s" or "yolof-r50-c5".
        source: a file, or what `torch.load` gave: the checkpoint, or its `state_dict` itself. For YOLOX a `.pth` of the
            official code; for YOLOF one of the authors' detectron2 code (`.pth`, or a `.pkl` of numpy arrays) or of
            mmdetection.
        legacy: the weights are of YOLOX's first release (0.1.0, July 2021), trained on normalised RGB. They have the
            same names and shapes as the current ones, so a file cannot tell.
        class_names: C names; for 80 classes COCO's by default, otherwise the model knows numbers only.

    Returns:
        The model in evaluation mode, for RGB pictures; the number of classes is read off the weights.

    Raises:
        WeightsError: the file cannot be read safely, or keys do not fit; each such key is named.
    """
    card = model_card(name)  # an unknown name is the first thing to say
    where = str(source) if isinstance(source, str | Path) else "the state_dict"
    checkpoint = read_tensor_file(Path(source)) if isinstance(source, str | Path) else source
    is_yolof = isinstance(card.config, YOLOFConfig)
    if is_yolof and legacy:
        raise WeightsError(f"{name}: legacy=True is for the first release of YOLOX; YOLOF had only one. Leave it.")
    official = state_dict_in(checkpoint, where, f"a {'YOLOF' if is_yolof else 'YOLOX'} checkpoint")
    try:
        if is_yolof:
            state, num_classes, changes = translate_yolof(official, card.config, where)
        else:
            state, num_classes, changes = translate_yolox(official, where, legacy)
        if class_names is None and num_classes == len(COCO_CLASSES):
            class_names = list(COCO_CLASSES)
        model = create_model(name, num_classes, class_names=class_names, **changes)
    except WeightsError:
        raise
    except (ValueError, TypeError, RuntimeError, IndexError) as error:  # tensors of shapes that nobody would give them
        raise WeightsError(f"{where}: cannot be turned into a {name} ({error}). Is it another variant?") from error
    load_state(model, state, where)
    return model.eval()
