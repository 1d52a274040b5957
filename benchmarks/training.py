"""One model in training on one random batch: what all benchmarks time, and the memory it needs."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Training:
    """SGD with momentum on cross entropy.

    The learning rate is small, so that hundreds of steps on one batch leave the weights ordinary numbers.
    """

    def __init__(
        self, model: nn.Module, images: Tensor, labels: Tensor, *, channels_last: bool = False, amp: bool = False
    ) -> None:
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.model = model.to(images.device).to(memory_format=layout).train()  # type: ignore[call-overload]
        self.images, self.labels, self.amp = images.contiguous(memory_format=layout), labels, amp
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)

    def step(self) -> Tensor:
        """Forward, backward, update; the loss, not waited for."""
        self.optimizer.zero_grad()
        loss = self.loss()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def loss(self) -> Tensor:
        with torch.autocast(self.images.device.type, torch.bfloat16) if self.amp else nullcontext():
            return F.cross_entropy(self.model(self.images), self.labels)

    def check(self) -> None:
        """Arithmetic on numbers that are not finite has other costs; such times would mean nothing."""
        if not torch.isfinite(self.step()):
            raise ArithmeticError("training has diverged, the times mean nothing")

    @torch.no_grad()
    def outputs(self) -> Tensor:
        """Logits in training mode (batch statistics), without Dropout and reduced precision, to compare networks."""
        dropouts = [m for m in self.model.modules() if isinstance(m, nn.modules.dropout._DropoutNd) and m.training]
        for module in dropouts:
            module.eval()
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            logits = self.model(self.images)
        for module in dropouts:
            module.train()
        return logits.double()


def memory(make: Callable[[], Training], device: torch.device) -> int:
    """Bytes that the training which ``make`` makes needs.

    On CUDA: the peak of a step, and what it lies on. On the CPU: what there is at the end of the forward pass,
    which is what autograd has saved, each storage once, and weights, buffers, gradients and optimizer state; a
    count, the same every time.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated(device)
        training = make()
        training.step()
        torch.cuda.reset_peak_memory_stats(device)
        training.step()
        return torch.cuda.max_memory_allocated(device) - before
    training = make()
    training.step()
    return _saved(training) + _held(training)


def _saved(training: Training) -> int:
    """Bytes saved for the backward pass that are not the model's own tensors nor the images."""
    known = {id_of(t) for t in (*training.model.parameters(), *training.model.buffers(), training.images)}
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if id_of(tensor) not in known:
            found[id_of(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = training.loss()  # keeps what is saved alive, so that no address is used twice
    total = sum(found.values())
    del loss
    return total


def id_of(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _held(training: Training) -> int:
    """Bytes of weights, buffers, gradients and optimizer state.

    Weights and state as in the state dicts, which have full shapes in every phase: a sub-network's stored slices count.
    """
    states = [training.model.state_dict(), training.optimizer.state_dict()["state"]]
    gradients = [p.grad for p in training.model.parameters()]
    return sum(t.numel() * t.element_size() for t in _tensors([states, gradients]))


def _tensors(nested: Any) -> Iterator[Tensor]:
    if isinstance(nested, Tensor):
        yield nested
    elif isinstance(nested, Mapping):
        yield from _tensors(list(nested.values()))
    elif isinstance(nested, Sequence) and not isinstance(nested, str):
        for item in nested:
            yield from _tensors(item)
