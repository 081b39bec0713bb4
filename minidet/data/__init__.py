"""Data sets: drawn, fetched, checked, augmented and brought to the network in batches."""
