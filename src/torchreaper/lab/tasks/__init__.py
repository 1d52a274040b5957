"""Tasks: what networks are trained to do."""

from torchreaper.lab.tasks.base import Judged as Judged
from torchreaper.lab.tasks.base import Task as Task
from torchreaper.lab.tasks.classification import Classification as Classification

#: By the name that a recipe gives in `task`.
TASKS: dict[str, Task] = {"classification": Classification()}
