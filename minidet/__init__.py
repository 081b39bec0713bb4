"""minidet: YOLOF and YOLOX, taken apart and put together again."""
