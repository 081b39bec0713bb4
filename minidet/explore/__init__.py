"""Explorers: interactive views over the pictures of `minidet.draw` and the library's own modules (needs anywidget)."""
