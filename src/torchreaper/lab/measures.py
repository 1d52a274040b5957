"""What is measured on a network, and how it stands in the logs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from lightning_fabric import Fabric
from torch import Tensor, nn

import torchreaper as tr
from torchreaper.lab import data
from torchreaper.lab.files import Json
from torchreaper.lab.processes import summed

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


def convolutions(model: nn.Module) -> dict[str, Convolution]:
    """The convolutions of a model by name, ranked by a scheme or not."""
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d)}


def evaluate(
    fabric: Fabric,
    model: nn.Module,
    split: data.Readable,
    *,
    mean: Float[Tensor, " channels"],
    std: Float[Tensor, " channels"],
    batch: int,
    only: Int64[Tensor, " some"] | None = None,
) -> tuple[float, float]:
    """Mean cross entropy and accuracy (0 to 1) of the network as it is now, in evaluation mode.

    On all images, or on those at `only`. Several processes share the images; each gets what all have found.
    """
    model.eval()
    loss = torch.zeros((), dtype=mean.dtype, device=mean.device)
    right = torch.zeros((), dtype=torch.int64, device=mean.device)
    with torch.no_grad(), fabric.autocast():
        share = data.Share(fabric.global_rank, fabric.world_size)
        for images, targets in data.judging(split, mean, std, batch=batch, share=share, only=only):
            outputs = model(images).to(mean.dtype)
            loss += F.cross_entropy(outputs, targets, reduction="sum")
            right += (outputs.argmax(1) == targets).sum()
    loss, right = summed(fabric, loss), summed(fabric, right)
    count = len(split) if only is None else len(only)
    return loss.item() / count, int(right.item()) / count


def overlap_by_layer(
    layers: Mapping[str, Convolution], filters: Mapping[str, int], dropped: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, float], float]:
    """The mean overlap O_f (section 3 of the paper) of each layer's filters, and the sum of O_f over all filters.

    In a sub-network phase both are those of the network that is there: of the kept filters only, J being their
    number. The sum then has fewer terms, so it falls when filters go, whatever the others do.

    Args:
        layers: The convolutions.
        filters: How many filters each has when none is dropped.
        dropped: The filters that are absent now.
    """
    found = {}
    for name, layer in layers.items():
        weight = _weight(layer)
        gone = dropped.get(name, ())
        groups = layer.groups
        if gone and len(weight) == filters[name]:  # masked: the dropped rows are still there
            kept = torch.ones(len(weight), dtype=torch.bool)
            kept[list(gone)] = False
            weight = weight[kept.to(weight.device)]
        if len(weight) % groups:  # unequal groups: compared across them
            groups = 1
        found[name] = tr.overlap(weight, groups=groups)
    if not found:
        return {}, 0.0
    # One transfer from the device for all layers.
    sums = torch.stack([overlaps.sum() for overlaps in found.values()]).tolist()
    means = {name: total / len(overlaps) for (name, overlaps), total in zip(found.items(), sums)}
    return means, sum(sums)


def _weight(layer: Convolution) -> Tensor:
    """Of a convolution; read as in evaluation, since what computes a weight in training may change with every reading.

    Spectral norm does: without this the numbers of a run would depend on how often it is looked at.
    """
    computing = [module for module in layer.children() for module in module.modules() if module.training]
    for module in computing:
        module.training = False
    try:
        return layer.weight.detach()
    finally:
        for module in computing:
            module.training = True


def event(epoch: int, transition: tr.Transition) -> Json:
    """A transition as a line of `events.jsonl`."""
    return {
        "epoch": epoch,
        "kind": transition.kind,
        "cycle": transition.cycle,
        "filters": {name: list(filters) for name, filters in transition.filters.items()},
        "scores": {name: scores.tolist() for name, scores in transition.scores.items()},
        "seconds": transition.seconds,
        "notes": list(transition.notes),
    }


def fingerprint(state: Mapping[str, Any]) -> str:
    """SHA-256 over names, types, shapes and bits of a state dict, in the order of the names.

    Parameters and buffers count, and what modules give as their extra state; where tensors are, and how they lie in
    memory, does not.
    """
    digest = hashlib.sha256()
    for name, value in _flat(state):
        if isinstance(value, Tensor):
            plain = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
            digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
            digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            digest.update(f"{name} {type(value).__name__} {value!r}\n".encode())
    return digest.hexdigest()


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Tensors and plain values by name; those of containers inside, as an extra state may be one, by longer names."""
    if isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield from _flat(value[key], f"{name} / {key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for place, one in enumerate(value):
            yield from _flat(one, f"{name} / {place}")
    else:
        yield name, value
