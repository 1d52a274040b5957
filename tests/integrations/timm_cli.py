"""The command `reaper` where torchvision may be of another build than torch; a real kill at a batch that is told.

    python -m tests.integrations.timm_cli timm-train ...

With ``KILLED=FILE`` the process of the last rank kills itself at the update ``BATCH``, once: FILE says that it has.
With ``SECOND_DISK=FOLDER`` the second of two processes has another ``--output``.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from tests.zoo import torchvision_importable


def _kill_once(mark: Path, batch: int) -> None:
    from timm.utils import ModelEmaV3

    update, count = ModelEmaV3.update, iter(range(1, 10**9))

    def counted(self, *args, **kwargs):
        update(self, *args, **kwargs)
        last = int(os.environ.get("WORLD_SIZE", "1")) - 1
        if next(count) == batch and int(os.environ.get("RANK", "0")) == last and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    ModelEmaV3.update = counted


if __name__ == "__main__":
    torchvision_importable()
    if "SECOND_DISK" in os.environ and os.environ.get("RANK") == "1":
        sys.argv = [f"--output={os.environ['SECOND_DISK']}" if "--output=" in one else one for one in sys.argv]
    if "KILLED" in os.environ:
        _kill_once(Path(os.environ["KILLED"]), int(os.environ["BATCH"]))
    from torchreaper.lab.cli import main

    main()
