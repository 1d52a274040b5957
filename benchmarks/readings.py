"""What difference does a reading make? Pairs of ways to read a criterion, on trained networks.

    python benchmarks/readings.py runs/readings/standard runs/readings-silu/standard runs/readings-resnet20/standard

Takes folders of finished runs with their weights, each a network with several seeds (readings.yaml makes them). A row
is a pair of readings on a network: the rank correlation of the two scores over all its filters (Spearman), and how many
of the 30 % that would go are the same; by chance 0 and 0.30. docs/fidelity.md quotes them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache, partial
from math import gcd
from pathlib import Path
from typing import Any

import report
import torch
from measure import Estimate, estimate
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import torchreaper as tr
from torchreaper.analysis import agreement
from torchreaper.criteria.maps import activated, averages
from torchreaper.criteria.scaling import by_layer_norm
from torchreaper.lab import data
from torchreaper.lab.analyze import subjects
from torchreaper.lab.errors import UserError

FRACTION = 0.3
BATCH = 250
MOST = 5000  # images, as the paper has for its oracle
COLUMNS = {
    "question": "reading",
    "network": "network",
    "filters": "filters ranked",
    "correlation": "rank correlation",
    "same": "of the 30 % the same",
}
RANKS = {"network": "network", "criterion": "criterion", "ranks": "ties in order", "average": "average ranks"}
NOTES = (
    "One value a seed: medians, in brackets the smallest and the largest.",
    "Table ranks: correlation with the accuracy oracle; filters that tie are put in order, or share their ranks.",
)
Scores = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Trained:
    """A network of one seed, and the images its criteria read."""

    bank: tr.FilterBank
    images: data.FixedBatches

    @property
    def ranked(self) -> int:
        """How many filters are ranked."""
        return sum(layer.filters for layer in self.bank.ranked)

    @property
    def few(self) -> bool:
        """Whether the oracle, a pass over the images for every filter, takes minutes and not hours."""
        return self.ranked <= 200


Reading = Callable[[Trained], tuple[Scores, Scores]]


def readings(net: Trained) -> Iterator[tuple[str, Reading]]:
    """The pairs that can be told apart on this network: what is asked, and both scores."""
    for name in ("MeanActivation", "Gradient", "Taylor"):
        yield f"{name}: layers scaled, or as they are", partial(unscaled, name=name)
    oracles = ("oracle", "oracle-loss") if net.few else ()
    for name in ("mean-activation", "apoz", "activation-correlation", "gradient", "taylor", *oracles):
        few = min(1000, net.images.images // 2)
        yield f"{name}: {few:,} images, or others", partial(other_images, name=name, count=few)
    if oracles:
        yield "oracle: accuracy, or loss", lambda net: (of(net, "oracle"), of(net, "oracle-loss"))
    if oracles and norms(net):
        yield "oracle-loss: absent, or weights at 0 before BatchNorm", zeroed
    if any(isinstance(module, nn.SiLU) for module in net.bank.model.modules()):
        yield "Taylor: map before the activation, or behind it", behind
    if sums(net):
        yield "MeanActivation before a sum: absolute value, or behind a ReLU", rectified


@cache  # several pairs have the oracle on one side, which takes longest
def of(net: Trained, name: str) -> Scores:
    """What a criterion says of the network, by all its images."""
    return tr.criteria.make(name, net.images).scores(net.bank)


def unscaled(net: Trained, name: str) -> tuple[Scores, Scores]:
    """Each layer's scores over their length, and as they are."""
    criterion = getattr(tr.criteria, name)
    return criterion(net.images).scores(net.bank), criterion(net.images, normalise=False).scores(net.bank)


def other_images(net: Trained, name: str, count: int) -> tuple[Scores, Scores]:
    """Two draws that have no image in common."""
    batches = list(replace(net.images.take(2 * count, seed=1), batch=gcd(count, BATCH)))  # so that halves are batches
    half = len(batches) // 2
    first, second = (tr.criteria.make(name, some).scores(net.bank) for some in (batches[:half], batches[half:]))
    return first, second


def zeroed(net: Trained) -> tuple[Scores, Scores]:
    """The oracle on the loss, and what zero weights and bias cost, behind which the norm still sends a constant."""
    batches = list(net.images)
    whole = loss(net.bank.model, batches)
    found = {}
    for layer in net.bank.ranked:
        costs = []
        for index in range(layer.filters):
            rows = [p.data for p in (layer.module.weight, layer.module.bias) if p is not None]
            kept = [row[index].clone() for row in rows]
            for row in rows:
                row[index] = 0
            costs.append(whole - loss(net.bank.model, batches))
            for row, before in zip(rows, kept):
                row[index] = before
        found[layer.name] = torch.tensor(costs, dtype=torch.float64)
    return of(net, "oracle-loss"), found


@torch.no_grad()
def loss(model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Mean over all images."""
    total = sum(cross_entropy(model(images), labels, reduction="sum").item() for images, labels in batches)
    return total / sum(len(labels) for _, labels in batches)


def behind(net: Trained) -> tuple[Scores, Scores]:
    """Taylor as it is, and with the map behind the activation: ``relu3`` of the layer ``conv3``."""
    sums: dict[str, Tensor] = {}
    model = net.bank.model
    for images, labels in net.images:
        seen: dict[str, Tensor] = {}
        with ExitStack() as stack:
            for layer in net.bank.ranked:
                activation = model.get_submodule(layer.name.replace("conv", "relu"))
                hook = partial(_note, seen, layer.name)
                stack.callback(activation.register_forward_hook(hook).remove)
            total = cross_entropy(model(images), labels, reduction="sum")
        for (name, output), slope in zip(seen.items(), torch.autograd.grad(total, list(seen.values()))):
            change = (output * slope).mean((2, 3)).abs().sum(0).detach().double()
            sums[name] = sums.get(name, 0) + change
    return of(net, "taylor"), {name: -values for name, values in by_layer_norm(sums).items()}


def _note(seen: dict[str, Tensor], name: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
    seen[name] = output


def rectified(net: Trained) -> tuple[Scores, Scores]:
    """Mean activation as it is, and with a ReLU on the terms of sums, which have none of their own."""

    def size(layer: Any, output: Tensor) -> Tensor:
        return activated(net.bank, layer, output).double().clamp(min=0).sum((0, 2))

    found = averages(net.bank, tr.criteria.MeanActivation(net.images), size)
    return of(net, "mean-activation"), {name: -values for name, values in by_layer_norm(found).items()}


def norms(net: Trained) -> bool:
    return any(isinstance(module, nn.BatchNorm2d) for module in net.bank.model.modules())


def sums(net: Trained) -> bool:
    return any(net.bank.flow.maps[layer.name].activation is None for layer in net.bank.ranked)


def same(first: Scores, second: Scores) -> float:
    """The share of the filters that would go by both readings."""
    chosen = [
        {(layer, index) for layer, indices in tr.criteria.select(scores, FRACTION)[0].items() for index in indices}
        for scores in (first, second)
    ]
    return len(chosen[0] & chosen[1]) / len(chosen[0])


def opened(source: subjects.Source, most: int) -> Trained:
    """The run's last weights in evaluation mode, and the images that its criteria read."""
    model = source.build()
    subjects.load_weights(model, source.last(lambda text: None)[1], source.path)
    dataset = source.dataset
    batches = data.FixedBatches.held_out(
        dataset.train, dataset.validation, mean=dataset.mean, std=dataset.std, batch=BATCH
    )
    bank = tr.find_filters(model.eval(), next(iter(batches))[0][:2])
    return Trained(bank, batches.take(min(most, batches.images), seed=0))


@dataclass(frozen=True)
class Network:
    """A network with several seeds."""

    key: str
    sources: Sequence[subjects.Source]


def networks(targets: Sequence[Path]) -> list[Network]:
    """The targets' networks, each by the model's name."""
    found = subjects.find_subjects(targets)
    return [Network(subject.sources[0].recipe.model.name, subject.sources) for subject in found]


def measure(network: Network, args: argparse.Namespace, results: report.Report) -> None:
    nets = [opened(source, args.images) for source in network.sources]
    for question, reading in readings(nets[0]):
        print(f"  {question}", file=sys.stderr, flush=True)
        pairs = [reading(net) for net in nets]
        row: dict[str, Any] = {"question": question, "network": network.key, "filters": nets[0].ranked}
        row["correlation"] = over(agreement(a, b).spearman for a, b in pairs)
        row["same"] = over(same(a, b) for a, b in pairs)
        results.add(row, "readings")
    truth = [of(net, "oracle") for net in nets if net.few]
    for name in ("orthogonality", "taylor") if truth else ():
        found = [agreement(of(net, name), one) for net, one in zip(nets, truth)]
        ranks, average = over(one.pearson_ranks for one in found), over(one.spearman for one in found)
        results.add({"network": network.key, "criterion": name, "ranks": ranks, "average": average}, "ranks")


def over(values: Iterator[float]) -> Estimate:
    return estimate(list(values))


def main(argv: Sequence[str] | None = None) -> int:
    parser = report.parser(__doc__ or "", repeats=3, nets=())
    parser.add_argument("targets", nargs="+", type=Path, help="folders of runs, one network each")
    parser.add_argument("--images", type=report.positive, default=MOST, help=f"at most; default {MOST}")
    args = report.parse(parser, argv)
    try:
        found = networks(args.targets)
    except UserError as error:
        parser.error(str(error))
    args.repeats = min(len(network.sources) for network in found)
    notes = (*NOTES, f"Images: up to {args.images:,} validation images, or as many as the reading says.")
    results = report.Report("readings", args, {"readings": COLUMNS, "ranks": RANKS}, notes)
    return results.each(found, lambda network: measure(network, args, results))


if __name__ == "__main__":
    sys.exit(main())
