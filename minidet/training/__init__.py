"""Training: recipes, averaged weights, checkpoints, the loop."""
