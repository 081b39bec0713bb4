"""Explorers: interactive views over the pictures of `minidet.draw` and the library's own modules (needs anywidget)."""

from minidet.explore.assignment_view import AssignmentExplorer, explore_assignment

__all__ = ["AssignmentExplorer", "explore_assignment"]
