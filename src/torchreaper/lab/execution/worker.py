"""A worker process: does one job after the other, and ends when it is told to or its parent is gone."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from multiprocessing.connection import Connection
from typing import Any

from torchreaper.lab.execution.telling import attempt


def main(pipe: Connection, threads: int, at_once: int, gpu: str | None) -> None:
    """Take jobs from `pipe` until a None comes; answer each with what it tells and then its outcome.

    Args:
        threads: CPU threads of torch.
        at_once: How many workers there are.
        gpu: The only one to be seen here, as CUDA_VISIBLE_DEVICES names it; None: as in the parent.
    """
    # Ctrl-C reaches every process of the terminal; what it means is the parent's to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    # As in a process of its own: what starts processes here starts them as it would there, and the locks that
    # libraries make at import are not left to the tracker of leaks, which would tell of them.
    multiprocessing.set_start_method(None, force=True)
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def send(message: Any) -> None:
        # Plain pickle: the one of multiprocessing would share the memory of tensors, and their file handles.
        data = pickle.dumps(message)
        try:
            pipe.send_bytes(data)
        except OSError:
            os._exit(1)  # the parent is gone

    try:
        while (job := pickle.loads(pipe.recv_bytes())) is not None:
            send(attempt(job, send, threads=threads, at_once=at_once))
    except (EOFError, OSError):
        os._exit(1)  # the parent is gone


def _end_with_parent() -> None:
    """A run can be taken up again wherever it is cut off, so that nothing has to be done first."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
