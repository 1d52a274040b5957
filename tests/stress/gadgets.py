"""Files that run code, or unpack without end, where a careless program reads them."""

from __future__ import annotations

import builtins
import codeop
import functools
import io
import operator
import os
import pathlib
import pickle
import runpy
import shutil
import subprocess
import tarfile
import timeit
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.utils.collect_env


class Gadget:
    """Unpickled, it is what ``function(*args)`` gives; where there is a state, that is given to it."""

    def __init__(self, function: Any, *args: Any, state: Any = None) -> None:
        self.how = function, args, state

    def __reduce__(self) -> tuple[Any, ...]:
        function, args, state = self.how
        return (function, args) if state is None else (function, args, state)


def gadgets(canary: Path) -> dict[str, Gadget]:
    """Each makes the file `canary` where it is unpickled by ``pickle.load``."""
    path, code = str(canary), f"open({str(canary)!r}, 'w').close()"
    script, inner = canary.with_name("script.py"), canary.with_name("inner.pt")
    script.write_text(code)
    torch.save(Gadget(builtins.eval, code), inner)
    return {
        "os.system": Gadget(os.system, f"touch {path}"),
        "os.mkdir": Gadget(os.mkdir, path),
        "subprocess.run": Gadget(subprocess.run, ["touch", path]),
        "os.open": Gadget(os.open, path, os.O_CREAT | os.O_WRONLY),
        "os.symlink": Gadget(os.symlink, "/dev/null", path),
        "subprocess.call": Gadget(subprocess.call, ["touch", path]),
        "subprocess.check_output": Gadget(subprocess.check_output, ["touch", path]),
        "subprocess.getoutput": Gadget(subprocess.getoutput, f"touch {path}"),
        "builtins.eval": Gadget(builtins.eval, code),
        "builtins.exec": Gadget(builtins.exec, code),
        "builtins.open": Gadget(builtins.open, path, "w"),
        "io.FileIO": Gadget(io.FileIO, path, "w"),
        "pathlib.Path.touch": Gadget(pathlib.Path.touch, Path(path)),
        "operator.methodcaller": Gadget(operator.methodcaller("touch"), Path(path)),
        "shutil.copy": Gadget(shutil.copy, str(script), path),
        "runpy.run_path": Gadget(runpy.run_path, str(script)),
        "timeit.timeit": Gadget(timeit.timeit, "pass", code),
        "functools.partial": Gadget(functools.partial(builtins.exec, code)),
        "pickle.loads": Gadget(pickle.loads, pickle.dumps(Gadget(builtins.eval, code))),
        "torch.load": Gadget(functools.partial(torch.load, str(inner), weights_only=False)),
        "torch.utils.collect_env.run": Gadget(torch.utils.collect_env.run, f"touch {path}"),
        "numpy.ndarray.tofile": Gadget(np.ndarray.tofile, np.zeros(1), path),
        "the state of an object": Gadget(codeop.Compile, state={"flags": Gadget(builtins.eval, code)}),
    }


def plain(value: Any) -> bytes:
    """A bare pickle."""
    return pickle.dumps(value, protocol=2)


def archive(value: Any) -> bytes:
    """As torch.save writes today."""
    return _saved(value)


def legacy(value: Any) -> bytes:
    """As torch.save wrote before 1.6: one pickle after the other."""
    return _saved(value, _use_new_zipfile_serialization=False)


def tar(value: Any) -> bytes:
    """As torch.save wrote before 0.2: a tar of pickles."""
    buffer = io.BytesIO()
    parts = {"sys_info": pickle.dumps({}, 2), "pickle": plain(value), "storages": plain(0), "tensors": plain(0)}
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for name, data in parts.items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            file.addfile(about, io.BytesIO(data))
    return buffer.getvalue()


def script(value: Any) -> bytes:
    """An archive that says of itself that it is TorchScript, which holds code by its nature."""
    buffer = io.BytesIO(archive(value))
    with zipfile.ZipFile(buffer, "a") as file:
        prefix = file.namelist()[0].split("/")[0]
        file.writestr(f"{prefix}/constants.pkl", plain(value))
        file.writestr(f"{prefix}/code/__torch__.py", "raise SystemExit")
    return buffer.getvalue()


def numpy_array(value: Any) -> bytes:
    """An array of objects, as numpy.save writes it."""
    buffer = io.BytesIO()
    np.save(buffer, np.array([value], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def compressed(value: Any) -> bytes:
    """As `archive`, its records deflated."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive(value))) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return buffer.getvalue()


FORMATS: tuple[Callable[[Any], bytes], ...] = (plain, archive, legacy, tar, script, numpy_array, compressed)


def bomb(size: int) -> bytes:
    """An archive of a few kilobytes, a record of which unpacks to so many bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive({"model": torch.zeros(1)}))) as old:
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
            for name in old.namelist():
                if name.endswith("data.pkl"):
                    with new.open(name, "w", force_zip64=True) as file:
                        for _ in range(0, size, 2**20):
                            file.write(bytes(2**20))
                else:
                    new.writestr(name, old.read(name))
    return buffer.getvalue()


def _saved(value: Any, **how: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **how)
    return buffer.getvalue()
