"""RePr beyond classification: a U-Net that names every pixel of small scenes of handwritten digits.

The scenes are made of scikit-learn's 1,797 real digits of 8x8 pixels: four on a canvas of 32x32, each at a random
place of its quarter, on noise. A pixel's class is the digit that is drawn there, or background.

python examples/segmentation.py           # standard training
python examples/segmentation.py --repr    # with RePr: the three marked lines are all that differs
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from statistics import median

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import torchreaper as tr

CLASSES = 11  # ten digits; 10 is background
TRAIN_DIGITS, TRAIN_SCENES, TEST_SCENES = 1000, 320, 100


def scenes(digits: Tensor, labels: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pictures [count, 1, 32, 32] and the class of every pixel [count, 32, 32], from digits [n, 8, 8] in [0, 1]."""
    pictures = 0.3 * torch.rand(count, 1, 32, 32, generator=generator)
    classes = torch.full((count, 32, 32), CLASSES - 1)
    chosen = torch.randint(len(digits), (count, 4), generator=generator)
    shifts = torch.randint(9, (count, 4, 2), generator=generator)
    for k in range(count):
        for quarter in range(4):
            digit, label = digits[chosen[k, quarter]], labels[chosen[k, quarter]]
            top, left = (shifts[k, quarter] + 16 * torch.tensor(divmod(quarter, 2))).tolist()
            place = (k, slice(top, top + 8), slice(left, left + 8))
            pictures[:, 0][place] = torch.maximum(pictures[:, 0][place], digit)
            classes[place] = torch.where(digit > 0.25, label, classes[place])
    return pictures, classes


class Double(nn.Sequential):
    """Two 3x3 convolutions, each with BatchNorm and ReLU."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__(
            *(nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
        )


class UNet(nn.Module):
    """Two levels down, two up by transposed convolutions; each way up also reads what the way down saw there."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down1, self.down2 = Double(1, width), Double(width, 2 * width)
        self.bottom = Double(2 * width, 4 * width)
        self.up2, self.join2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2), Double(4 * width, 2 * width)
        self.up1, self.join1 = nn.ConvTranspose2d(2 * width, width, 2, stride=2), Double(2 * width, width)
        self.out = nn.Conv2d(width, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures [n, 1, h, w], both sides multiples of 4, to scores [n, classes, h, w]."""
        fine = self.down1(x)
        coarse = self.down2(F.max_pool2d(fine, 2))
        x = self.bottom(F.max_pool2d(coarse, 2))
        x = self.join2(torch.cat([coarse, self.up2(x)], 1))
        return self.out(self.join1(torch.cat([fine, self.up1(x)], 1)))


@torch.no_grad()
def overlaps(model: nn.Module, pictures: Tensor, classes: Tensor) -> list[float]:
    """Intersection over union of every class, over all pixels of all pictures."""
    model.eval()
    found = torch.cat([model(batch).argmax(1) for batch in pictures.split(64)])
    pairs = torch.bincount((CLASSES * classes + found).flatten(), minlength=CLASSES**2).view(CLASSES, CLASSES)
    both = pairs.diagonal()
    return (both / (pairs.sum(0) + pairs.sum(1) - both).clamp(min=1)).tolist()


def main(argv: Sequence[str] | None = None) -> tuple[float, dict[str, list[float]]]:
    """Train, and print what came out; the last mean IoU on the test scenes, and the seconds of the epochs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repr", action="store_true", help="train with RePr; default: standard training")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=int, default=16, help="filters of the finest level")
    parser.add_argument("--scope", nargs="+", help="RePr only inside these parts, e.g. down1 down2 bottom")
    args = parser.parse_args(argv)
    if args.epochs < 6:
        parser.error(f"argument --epochs: {args.epochs}: two cycles take at least 6")
    if args.width < 1:
        parser.error(f"argument --width: {args.width}: must be 1 or more")
    if args.scope and not args.repr:
        parser.error("argument --scope: has no effect without --repr; give both")

    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    found = load_digits()
    digits, labels = torch.tensor(found.images, dtype=torch.float32) / 16, torch.tensor(found.target)
    order = torch.randperm(len(digits), generator=generator)
    known, new = order[:TRAIN_DIGITS], order[TRAIN_DIGITS:]  # no digit of the test scenes is seen in training
    pictures, classes = scenes(digits[known], labels[known], TRAIN_SCENES, generator)
    test = scenes(digits[new], labels[new], TEST_SCENES, generator)

    model = UNet(args.width)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.005)
    scheme, unit = None, max(1, args.epochs // 10)
    # The learning rate stays until the last filters are back, then it falls to 0.
    fall = max(1, args.epochs - 6 * unit)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: min(1.0, (args.epochs - epoch) / fall))
    # Half of a layer at most: where a layer is all that connects two parts, more of it would cut the network in two.
    settings = {"full": 2 * unit, "sub": unit, "cycles": 2, "max_per_layer": 0.5, "scope": args.scope}
    if args.repr:
        scheme = tr.RePr(model, optimizer, pictures[:2], **settings)  # 1
        print(scheme)

    seconds: dict[str, list[float]] = {"full": [], "sub": []}
    for epoch in range(1, args.epochs + 1):
        start = time.perf_counter()
        model.train()
        for batch in torch.randperm(len(pictures), generator=generator).split(8):
            optimizer.zero_grad()
            F.cross_entropy(model(pictures[batch]), classes[batch]).backward()
            optimizer.step()
        schedule.step()
        phase = scheme.phase if scheme else "full"
        seconds[phase].append(time.perf_counter() - start)
        iou = overlaps(model, *test)
        print(
            f"epoch {epoch:3d}  {phase:4s}  test mean IoU {100 * sum(iou) / CLASSES:.2f} %  {seconds[phase][-1]:.2f} s"
        )
        if scheme:
            scheme.step()  # 2
    if scheme:
        scheme.remove()  # 3

    names = [*map(str, range(10)), "background"]
    print("IoU %: " + ", ".join(f"{name} {100 * value:.1f}" for name, value in zip(names, iou)))
    print("an epoch, median: " + ", ".join(f"{p} {median(s):.2f} s" for p, s in seconds.items() if s))
    return sum(iou) / CLASSES, seconds


if __name__ == "__main__":
    main()
