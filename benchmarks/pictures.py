"""Images for the benchmarks that train for real: CIFAR-10's, or random ones of its size."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from networks import Net
from PIL import Image

from torchreaper.lab.recipe import Recipe

SIDE, CLASSES = 32, 10


def random_parquet(folder: Path, count: int) -> Path:
    """A file of ``count`` random images and classes; how fast a network trains does not depend on what they show."""
    import pyarrow as pa
    from pyarrow import parquet

    draw = np.random.default_rng(0)
    rows: dict[str, list[Any]] = {"image": [], "label": [number % CLASSES for number in range(count)]}
    for _ in range(count):
        file = io.BytesIO()
        Image.fromarray(draw.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(file, "png")
        rows["image"].append({"bytes": file.getvalue(), "path": None})
    path = folder / "random.parquet"
    parquet.write_table(pa.table(rows), path)
    return path


def recipe(net: Net, folder: Path, *, parquet: str | None, images: int, batch: int, **changes: Any) -> Recipe:
    """Standard training of a network on ``images`` images of ``parquet``, or on random ones that lie in ``folder``."""
    files = parquet or str(random_parquet(folder, images))
    return Recipe.model_validate(
        {
            "name": net.key,
            "epochs": 1,
            "batch": batch,
            # Judging the network is not what is measured.
            "data": {"name": "parquet", "train": files, "test": files, "limit": images, "test_limit": CLASSES},
            "model": {"name": net.model, "options": dict(net.options)},
            "optim": {"name": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4},
            **changes,
        }
    )
