"""How fast the greedy oracle is: filters x images a second, and against leaving one filter out after the other.

    python benchmarks/oracle.py
    python benchmarks/oracle.py --only resnet20 --images 512 --repeats 9

"One by one" is `bank.without` and a forward pass of all images for every filter; "at once" leaves several filters of a
layer out side by side, so that what comes before the layer is computed once for all of them. Both give the same numbers
(the tests compare them to 1e-10); here they are compared once more, in float32, before anything is timed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

import report
import torch
import torch.nn.functional as F
from measure import interleaved, ratio
from networks import Bench, Net
from torch import Tensor, nn

import torchreaper as tr

NETS = ("c3-32", "c3-32-pooled", "c8-32", "resnet20", "vgg16", "mobilenet_v2")
AT_ONCE = (2, 8, 32)
COLUMNS = {
    "net": "net",
    "filters": "filters",
    "images": "images",
    "batch": "batch",
    **{f"at_once_{k}": f"{k} at once / one by one" for k in AT_ONCE},
    "rate": "filters x images/s, 8 at once",
    "rate_plain": "one by one",
    "forward": "images/s of a forward pass",
}
NOTES = ("Ratios of time: below 1 is faster. Rates are medians, and of this machine at that hour.",)


def measure(net: Net, args: argparse.Namespace, results: report.Report) -> None:
    bench = Bench(net, args.device, **report.layout(args))
    model = bench.model
    bank = tr.find_filters(model, bench.example)
    size = args.images or (2 * bench.batch if args.quick else 256)
    batches = [_random(bench, count) for count in _sizes(size, bench.batch)]

    def oracle(at_once: int) -> Callable[[], dict[str, Tensor]]:
        criterion = tr.criteria.Oracle(batches, measure="loss", at_once=at_once)
        return lambda: criterion.lost(bank)

    @torch.no_grad()
    def one_by_one() -> dict[str, Tensor]:
        model.eval()
        whole, lost = _losses(model, batches), {}
        for layer in bank.ranked:
            lost[layer.name] = torch.zeros(layer.filters, dtype=torch.float64)
            for index in range(layer.filters):
                with bank.without({layer.name: [index]}, mode="masked"):
                    lost[layer.name][index] = (_losses(model, batches) - whole) / size
        return lost

    @torch.no_grad()
    def forward() -> None:
        model.eval()
        for images, _ in batches:
            model(images)

    _agree(one_by_one(), oracle(8)())
    ways = {"one": one_by_one, **{f"{k}": oracle(k) for k in AT_ONCE}}
    times = interleaved(ways, repeats=args.repeats, device=args.device, label=net.key, warm_up=1)
    # By itself: beside ways that take a thousand times as long it would set the number of calls of all.
    times |= interleaved({"forward": forward}, repeats=args.repeats, device=args.device, label=f"{net.key}, forward")
    filters = sum(layer.filters for layer in bank.ranked)
    work = filters * size
    results.add(
        {
            "net": net.label,
            "filters": filters,
            "images": size,
            "batch": bench.batch,
            **{f"at_once_{k}": ratio(times, str(k), "one") for k in AT_ONCE},
            "rate": work / _median(times["8"]),
            "rate_plain": work / _median(times["one"]),
            "forward": size / _median(times["forward"]),
            "seconds": times,
        }
    )


def _losses(model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]) -> float:
    return sum(F.cross_entropy(model(images), labels, reduction="sum").item() for images, labels in batches)


def _random(bench: Bench, count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    shape = (count, *bench.example.shape[1:])
    images, labels = torch.randn(shape, generator=generator), torch.randint(10, (count,), generator=generator)
    return images.to(bench.device), labels.to(bench.device)


def _sizes(images: int, batch: int) -> list[int]:
    whole, rest = divmod(images, batch)
    return [batch] * whole + [rest] * bool(rest)


def _agree(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    for name, values in first.items():
        torch.testing.assert_close(second[name], values, rtol=1e-3, atol=1e-5)


def _median(samples: Sequence[float]) -> float:
    return sorted(samples)[len(samples) // 2]


def main(argv: Sequence[str] | None = None) -> int:
    parser = report.parser(__doc__ or "", repeats=7, nets=NETS)
    parser.add_argument("--images", type=report.positive, help="how many; default 256, with --quick two batches")
    args = report.parse(parser, argv)
    results = report.Report("oracle", args, {"oracle": COLUMNS}, NOTES)
    return results.each(report.chosen(args), lambda net: measure(net, args, results))


if __name__ == "__main__":
    sys.exit(main())
