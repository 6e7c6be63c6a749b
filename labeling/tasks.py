"""What the worker does for this app, by subject."""

from labeling import delivery_tasks, evaluation_tasks, figure_tasks

__all__ = ["delivery_tasks", "evaluation_tasks", "figure_tasks"]
