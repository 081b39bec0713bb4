"""How good a detector is, and how much work."""
