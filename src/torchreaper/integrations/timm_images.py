"""The images of a timm training run, by timm's data sets, augmentation, mixup and loaders."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.data import FastCollateMixup, Mixup, create_dataset, create_loader
from torch.utils.data import Dataset

from torchreaper.errors import ReaperError


@dataclass
class Images:
    """Loaders of an epoch, and the mixup to be called on each batch where the loader does not mix itself."""

    training: Any
    validation: Any
    mixup: Mixup | None


@contextmanager
def naming(argument: str, value: Any) -> Iterator[None]:
    """What timm refuses, as a `ReaperError` that names the argument."""
    try:
        yield
    except (RuntimeError, ValueError, AssertionError, LookupError, TypeError, OSError, ImportError) as error:
        raise ReaperError(f"{argument}={value!r}: {str(error) or type(error).__name__}") from error


def datasets(args: Any) -> tuple[Dataset[Any], Dataset[Any]]:
    """Those of training and validation; see `load` for `args`."""
    if not args.dataset and not Path(args.data_dir).exists():
        raise ReaperError(f"data_dir={args.data_dir!r}: there is no such folder")
    found: list[Any] = []
    for split, is_training in ((args.train_split, True), (args.val_split, False)):
        with naming("data_dir", str(args.data_dir)):
            where = {"root": args.data_dir, "split": split, "is_training": is_training}
            found.append(create_dataset(args.dataset, seed=args.seed, batch_size=args.batch_size, **where))
    one, other = (Path(str(getattr(getattr(one, "reader", None), "root", count))) for count, one in enumerate(found))
    inside = one.is_relative_to(other) or other.is_relative_to(one)  # timm takes all there is where it finds no split
    if args.train_split == args.val_split or (inside and not args.dataset):  # those of a named set have one root
        splits = f"train_split={args.train_split!r}, val_split={args.val_split!r}"
        whose = args.dataset or args.data_dir
        raise ReaperError(f"{splits}: are no two parts of {whose}; what it trains on cannot judge it")
    names = [set(getattr(getattr(one, "reader", None), "class_to_idx", ())) for one in found]
    if odd := names[0] ^ names[1]:  # each folder numbers its own
        raise ReaperError(f"data_dir={args.data_dir!r}: {min(odd)} is a class of training or validation alone")
    return found[0], found[1]


def classes_of(args: Any, dataset: Any) -> int | None:
    """How many there are, or refuse too few; None where neither `args` nor a folder's names tell."""
    names = getattr(getattr(dataset, "reader", None), "class_to_idx", None)
    if names and args.num_classes and args.num_classes < len(names):
        there = f"{args.data_dir} has {len(names)} classes; leave --num-classes out, or raise it"
        raise ReaperError(f"num_classes={args.num_classes}: {there}")
    return args.num_classes or (len(names) if names else None)


def load(args: Any, data: dict[str, Any], sets: tuple[Any, Any], classes: int, device: torch.device) -> Images:
    """Make the loaders, or refuse a size of batch.

    Args:
        args: those of timm's ``train.py``, by its names; ``distributed`` is set.
        data: size, mean and so on, as timm's ``resolve_data_config`` gives them.
        sets: those of `datasets`.
        classes: outputs of the model.
        device: where the images go.
    """
    mixed = bool(args.mixup or args.cutmix)
    if mixed and args.batch_size % 2:
        raise ReaperError(f"batch_size={args.batch_size}: mixup and cutmix pair images; use an even number")
    mixup, collate = None, {}
    if mixed:
        mixing = {"mixup_alpha": args.mixup, "cutmix_alpha": args.cutmix, "label_smoothing": args.smoothing}
        mixup = (FastCollateMixup if args.prefetcher else Mixup)(**mixing, num_classes=classes)
        collate = {"collate_fn": mixup} if args.prefetcher else {}
    common = {name: data[name] for name in ("input_size", "mean", "std", "interpolation")}
    common |= {"batch_size": args.batch_size, "num_workers": args.workers, "use_prefetcher": args.prefetcher}
    # Workers that stayed would go on with random numbers that no checkpoint knows.
    common |= {"distributed": args.distributed, "device": device, "persistent_workers": False}
    augment = {"re_mode": "pixel", "re_prob": args.reprob, "auto_augment": args.aa, **collate}
    augment |= {} if args.no_aug else {"interpolation": "random"}  # this and "pixel": as timm's script, unasked
    augment |= {name: getattr(args, name) for name in ("hflip", "color_jitter", "no_aug")}
    with naming("aa", args.aa):
        training = create_loader(sets[0], is_training=True, **{**common, **augment})
    validation = create_loader(sets[1], crop_pct=data["crop_pct"], **common)
    if not len(training):
        raise ReaperError(f"batch_size={args.batch_size}: {len(sets[0])} images do not make one batch; lower it")
    return Images(training, validation, mixup)
