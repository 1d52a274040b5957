"""RePr on a detector: torchvision's Faster R-CNN, or a small one, on photographs with boxes in COCO's format.

    python examples/detection.py --train train.json --train-images train --test val.json --test-images val

trains Faster R-CNN (ResNet-50, FPN) the standard way; --repr: with RePr on all of it, --scope backbone: on its
backbone. From huggingface.co, with a small detector and a short schedule:

    python examples/detection.py --hub cppe-5 --model detector --size 240 320 --repr --full 4 --sub 2 --epochs 15

Needs the lab (pip install 'torchreaper[lab]') for reading pictures and COCO's average precision; the loop is plain
PyTorch.
"""

from __future__ import annotations

import argparse
import time

import torch

import torchreaper as tr
from torchreaper.lab import data, models
from torchreaper.lab.average_precision import average_precision
from torchreaper.lab.errors import UserError
from torchreaper.lab.settings import parse


def main(asked: argparse.Namespace) -> None:
    """Train, judge after every epoch, print a line for each."""
    device = torch.device(asked.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    found = data.load_boxes(spec_of(asked))
    train, test = found.train.to(device), found.test.to(device)
    mean, std = found.mean.to(device), found.std.to(device)
    model = models.build(
        asked.model,
        {} if asked.model == "detector" else {"backbone": asked.backbone, "weights": asked.weights},
        in_channels=3,
        classes=len(found.classes),
        image_size=(asked.size[0], asked.size[1]),
        generator_seed=asked.seed,
        task="detection",
    ).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=asked.lr, weight_decay=1e-4)
    # The rate stays until the last filters are back, then it falls to 0; the same for standard training.
    fall = max(1, asked.epochs - asked.cycles * (asked.full + asked.sub))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: min(1.0, (asked.epochs - epoch) / fall))
    print(f"{len(train)} photographs to train on, {len(test)} to be judged by: {', '.join(found.classes)}")

    scheme = None
    if asked.repr:
        images = data.first(train, 2, mean, std)
        # The whole loop below knows nothing of it but `scheme.step()`.
        scheme = tr.RePr(
            model, optimizer, images, full=asked.full, sub=asked.sub, cycles=asked.cycles, fraction=asked.fraction,
            skip=None if asked.weights else "first", scope=asked.scope, seed=asked.seed,
        )  # fmt: skip
        print(scheme)

    for epoch in range(1, asked.epochs + 1):
        start, model = time.perf_counter(), model.train()
        how = {"batch": asked.batch, "augment": "flip", "seed": asked.seed, "epoch": epoch}
        for images, boxes in data.training(train, mean, std, **how):
            optimizer.zero_grad()
            outputs = model(images, boxes) if model.takes_targets else model(images)
            loss = model.loss(outputs, boxes)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 35.0)
            optimizer.step()
        if not loss.isfinite():
            raise SystemExit(f"epoch {epoch}: the loss is {loss.item()}; lower --lr={asked.lr:g}")
        schedule.step()
        seconds = time.perf_counter() - start
        figures = judge(model, test, found.classes, mean, std, asked.batch)
        phase = scheme.phase if scheme else "full"
        scores = ", ".join(f"{name} {100 * figures.get(name, 0.0):.1f}" for name in ("mAP", "AP50", "AP75"))
        print(f"epoch {epoch}: {phase}, loss {loss.item():.3f}, {scores}, {seconds:.1f} s", flush=True)
        if scheme:
            scheme.step()  # like a learning rate scheduler, after the epoch was judged
    if scheme:
        scheme.remove()


@torch.no_grad()
def judge(model, split, classes, mean, std, batch) -> dict[str, float]:
    """COCO's average precision, in pixels of the photographs."""
    model.eval()
    found = []
    for images, _ in data.judging(split, mean, std, batch=batch):
        found += [one.cpu() for one in model.detections(model(images))]
    for one, scale in zip(found, split.scale.tolist()):
        one[:, :4] /= scale
    return average_precision(found, split.truths(), classes, crowd=split.crowds())


def spec_of(asked: argparse.Namespace) -> data.BoxesSpec:
    """Where the photographs are."""
    keys = ("train", "test", "train_images", "test_images", "hub", "box")
    where = {key: getattr(asked, key) for key in keys} | {"size": tuple(asked.size), "memory": not asked.stream}
    return parse(data.BoxesSpec, {"name": "hub" if asked.hub else "parquet" if asked.parquet else "coco", **where})


def check(parser: argparse.ArgumentParser, asked: argparse.Namespace) -> None:
    """Refuse what cannot be trained or would have no effect, before anything is loaded."""
    idle = {
        "without --repr": () if asked.repr else ("scope", "full", "sub", "cycles", "fraction"),
        "with --model detector": ("backbone", "weights") if asked.model == "detector" else (),
        "with --hub": ("parquet",) if asked.hub else (),
    }
    for name, where in ((name, where) for where, names in idle.items() for name in names):
        if getattr(asked, name) != parser.get_default(name):
            parser.error(f"--{name}={getattr(asked, name)}: has no effect {where}; leave it out")
    for name in ("epochs", "batch", "full", "sub", "cycles"):
        if getattr(asked, name) < 1:
            parser.error(f"--{name}={getattr(asked, name)}: must be 1 or more")
    if asked.repr and asked.epochs <= (need := asked.cycles * (asked.full + asked.sub)):
        parser.error(f"--epochs={asked.epochs}: --full, --sub and --cycles need {need} and at least one more")
    try:
        torch.zeros(1, device=asked.device).item()
    except (RuntimeError, AssertionError):  # the latter where torch was built without it
        parser.error(f"--device={asked.device}: is no device of this machine; use cpu or cuda")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s [options], see --help",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--train", help="annotations in COCO's JSON; --parquet: files; --hub: a split")
    parser.add_argument("--train-images", help="the folder of their pictures")
    parser.add_argument("--test", help="likewise")
    parser.add_argument("--test-images")
    parser.add_argument("--hub", help="a data set of huggingface.co instead, such as cppe-5")
    parser.add_argument("--parquet", action="store_true", help="--train and --test are parquet files, as on the hub")
    parser.add_argument("--box", choices=("xywh", "xyxy"), default="xywh", help="what four numbers mean (%(default)s)")
    parser.add_argument("--size", nargs=2, type=int, default=(480, 640), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--stream", action="store_true", help="read photographs when they are needed, not into memory")
    parser.add_argument("--model", choices=("faster-rcnn-fpn", "faster-rcnn-c4", "detector"), default="faster-rcnn-fpn")
    parser.add_argument("--backbone", default="resnet50", help="of Faster R-CNN (%(default)s)")
    parser.add_argument("--weights", choices=("imagenet",), help="start from torchvision's; they are downloaded")
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--repr", action="store_true", help="train with RePr")
    parser.add_argument("--scope", help="the part that RePr may touch, such as backbone; else all of it")
    parser.add_argument("--full", type=int, default=6, help="epochs with the whole network (%(default)s)")
    parser.add_argument("--sub", type=int, default=3, help="epochs without the dropped filters (%(default)s)")
    parser.add_argument("--cycles", type=int, default=2)
    parser.add_argument("--fraction", type=float, default=0.3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device")
    asked = parser.parse_args()
    check(parser, asked)
    return asked


if __name__ == "__main__":
    try:
        main(arguments())
    except (UserError, tr.ReaperError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
