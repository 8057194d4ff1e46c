"""Tasks: sequences made by rule, with answers, for trying what a system can remember and compute.

In: a name with options, a seed. Out: tokens and targets. Knows no model and no training loop.
"""

from nlc.lab.tasks import groups, languages, recall, stream
from nlc.lab.tasks.base import NOTHING, TASKS, Examples, Task, find_task

__all__ = [
    "NOTHING",
    "TASKS",
    "Examples",
    "Task",
    "find_task",
    "groups",
    "languages",
    "recall",
    "stream",
]
