"""Tasks: what networks are trained to do."""

from torchreaper.lab.tasks.base import Judged as Judged
from torchreaper.lab.tasks.base import Loaded as Loaded
from torchreaper.lab.tasks.base import Task as Task
from torchreaper.lab.tasks.classification import Classification as Classification
from torchreaper.lab.tasks.detection import Detection as Detection
from torchreaper.lab.tasks.vqa import VQA as VQA

#: By the name that a recipe gives in `task`.
TASKS: dict[str, Task] = {task.name: task for task in (Classification(), Detection(), VQA())}
