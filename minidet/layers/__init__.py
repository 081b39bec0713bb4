"""Bricks: layers, backbones, pyramids and heads. None of them knows what detection is."""
