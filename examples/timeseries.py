"""RePr beyond pictures: a causal network of Conv1d layers that classifies sequences.

The sequences are scikit-learn's 1,797 real handwritten digits, read pixel by pixel: one channel, 64 steps. Audio and
sensor data differ in their length and channels alone: [n, channels, steps].

python examples/timeseries.py           # standard training
python examples/timeseries.py --repr    # with RePr: the three marked lines are all that differs
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

CLASSES, TRAIN = 10, 500


class Causal(nn.Module):
    """A dilated convolution that sees the past alone, BatchNorm, ReLU."""

    def __init__(self, before: int, width: int, dilation: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(before, width, 3, dilation=dilation, bias=False)
        self.norm, self.past = nn.BatchNorm1d(width), 2 * dilation

    def forward(self, x: Tensor) -> Tensor:
        """As many steps come out as went in."""
        return F.relu(self.norm(self.conv(F.pad(x, (self.past, 0)))))


class Sequences(nn.Module):
    """Dilations of 1 to 32, so that the last step has seen all 64; then a mean over the steps."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(Causal(1, width, 1), *(Causal(width, width, 2**k) for k in range(1, 6)))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Sequences [n, 1, steps] to scores [n, classes]."""
        return self.head(self.body(x).mean(-1))


def main(argv: Sequence[str] | None = None) -> tuple[float, dict[str, list[float]]]:
    """Train, and print what came out; the last accuracy on the test sequences, and the seconds of the epochs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repr", action="store_true", help="train with RePr; default: standard training")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=int, default=64, help="filters of every layer")
    parser.add_argument("--scope", nargs="+", help="RePr only inside these parts, e.g. body.3 body.4")
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
    sequences, labels = torch.tensor(found.data, dtype=torch.float32).unsqueeze(1) / 16, torch.tensor(found.target)
    order = torch.randperm(len(sequences), generator=generator)
    train, test = order[:TRAIN], order[TRAIN:]

    model = Sequences(args.width)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.003)
    scheme, unit = None, max(1, args.epochs // 10)
    # The learning rate stays until the last filters are back, then it falls to 0.
    fall = max(1, args.epochs - 6 * unit)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: min(1.0, (args.epochs - epoch) / fall))
    # Half of a layer at most: where a layer is all that connects two parts, more of it would cut the network in two.
    settings = {"full": 2 * unit, "sub": unit, "cycles": 2, "max_per_layer": 0.5, "scope": args.scope}
    if args.repr:
        scheme = tr.RePr(model, optimizer, sequences[:2], **settings)  # 1
        print(scheme)

    seconds: dict[str, list[float]] = {"full": [], "sub": []}
    for epoch in range(1, args.epochs + 1):
        start = time.perf_counter()
        model.train()
        for batch in train[torch.randperm(len(train), generator=generator)].split(32):
            optimizer.zero_grad()
            F.cross_entropy(model(sequences[batch]), labels[batch]).backward()
            optimizer.step()
        schedule.step()
        phase = scheme.phase if scheme else "full"
        seconds[phase].append(time.perf_counter() - start)
        model.eval()
        with torch.no_grad():
            accuracy = (model(sequences[test]).argmax(1) == labels[test]).double().mean().item()
        print(f"epoch {epoch:3d}  {phase:4s}  test accuracy {100 * accuracy:.2f} %  {seconds[phase][-1]:.2f} s")
        if scheme:
            scheme.step()  # 2
    if scheme:
        scheme.remove()  # 3
    print("an epoch, median: " + ", ".join(f"{p} {median(s):.2f} s" for p, s in seconds.items() if s))
    return accuracy, seconds


if __name__ == "__main__":
    main()
