"""What a scheme is: a `Spec` says what is asked for, an `Attached` is the scheme at work in one run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim import Optimizer

import torchreaper as tr
from torchreaper.lab.data import FixedBatches
from torchreaper.lab.sections import OptimSpec
from torchreaper.lab.settings import Settings

Phase = Literal["full", "sub"]
Images = Float[Tensor, "batch channels height width"]
#: Classes, or where images are mixed the probability of each class.
Targets = Int[Tensor, " batch"] | Float[Tensor, "batch classes"]


@dataclass(eq=False)
class Setup:
    """What a scheme is put to work on, in one run.

    Attributes:
        model: the network, on its device, its weights drawn.
        optimizer: of its parameters.
        example_inputs: one small batch [n, c, h, w], only to find channels.
        seed: of the scheme's own random draws.
        batches: the images that criteria read; nothing is loaded or computed unless one does.
        training: all training images, as they are without augmentation.
        lengths: epochs of each training, see `Spec.lengths`.
        sibling: makes another network like `model`, on its device, with its optimizer; the weights are drawn from the
            given seed.
        drawn: the batches (inputs, targets) of an epoch in the order, and with the augmentation, of the given seed.
        loss: of outputs and targets, averaged over the batch.
        answers: what the network is asked for: "classes", "answers" or "boxes".
        autocast: the precision that the network is trained in, as a context.
        grad_clip: largest norm of the gradient; None: not clipped.
        base: the recipe's folder, in which objects of the user's own are looked for.
        teacher: the network that `Spec.teachers` asked for, trained, in evaluation mode.
        followers: copies of `model` that average its parameters; a scheme that makes one adds it, those that change
            tensors (RePr) are attached later and take the copies along.
    """

    model: nn.Module
    optimizer: Optimizer
    example_inputs: Tensor
    seed: int
    batches: FixedBatches
    training: FixedBatches
    lengths: tuple[int, ...]
    sibling: Callable[[int], tuple[nn.Module, Optimizer]]
    drawn: Callable[[int, int], Iterator[tuple[Any, Tensor]]]
    loss: Callable[[Any, Tensor], Tensor] = F.cross_entropy
    answers: str = "classes"
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    grad_clip: float | None = None
    base: Path | None = None
    teacher: nn.Module | None = None
    followers: list[nn.Module] = field(default_factory=list)

    @property
    def epochs(self) -> int:
        """Epochs of the run."""
        return sum(self.lengths)


@dataclass(frozen=True)
class Batch:
    """One training batch and what the network made of it. `targets` are those that `Attached.mix` gave.

    Attributes:
        inputs: what the network was called with; images first, of `Attached.mix`.
        outputs: logits [batch, classes], or of a detector what its loss reads.
    """

    model: Callable[..., Any]
    inputs: tuple[Any, ...]
    targets: Targets
    outputs: Any

    def said_by(self, network: Callable[..., Any]) -> Any:
        """What another network makes of the same inputs."""
        return network(*self.inputs)


class Attached:
    """A scheme at work in one run. The training loop calls these; a scheme overrides what it changes.

    Inherit from it: every member has the behaviour of standard training. In an optimizer step the loop calls, in
    this order: `mix`, `loss`, `gradients`, `stepped`; at the end of an epoch `trained`, and after the network was
    judged `step`.

    Attributes:
        epoch: how many epochs have ended.
        label_smoothing: of the cross entropy.
        lr_factor: what the schedule's learning rate is multiplied by.
    """

    epoch: int = 0
    label_smoothing: float = 0.0
    lr_factor: float = 1.0

    @property
    def phase(self) -> Phase:
        """The phase the next epoch is trained in."""
        return "full"

    @property
    def dropped(self) -> dict[str, tuple[int, ...]]:
        """The filters that are absent now, by layer; only layers that miss some."""
        return {}

    @property
    def bank(self) -> tr.FilterBank | None:
        """The filters the scheme ranks, where it ranks any."""
        return None

    @property
    def network(self) -> nn.Module | None:
        """The network that is judged and kept, where it is not the one that is trained."""
        return None

    @property
    def counts(self) -> bool:
        """Whether the network that is judged now is one that the scheme could end with; not a part of it, say."""
        return self.phase == "full"

    def mix(self, images: Images, targets: Targets) -> tuple[Images, Targets]:
        """The batch that is trained on, from the one that was drawn."""
        return images, targets

    def loss(self, batch: Batch, loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """The loss of a batch, averaged over its images, from the task's own `loss`."""
        return loss

    def gradients(self, again: Callable[[], object]) -> None:
        """Change the gradients of a step; `again` computes them anew, with the weights as they are then."""

    def stepped(self, batch: Batch) -> None:
        """The optimizer has stepped."""

    def trained(self) -> None:
        """The last step of an epoch is done; if it is judged, then now."""

    def step(self) -> tr.Transition | None:
        """End an epoch; return the transition that this was the moment for."""
        self.epoch += 1
        return self.ended(self.epoch)

    def ended(self, epoch: int) -> tr.Transition | None:
        """What there is to do at the end of epoch number `epoch`, from 1."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs beyond the model's and the optimizer's states: tensors and plain values."""
        return {"epoch": self.epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`; the model's and the optimizer's own states are loaded before."""
        self.epoch = state["epoch"]

    def close(self) -> None:
        """Take everything off the model that `Spec.attach` put on it."""


class Spec(Settings):
    """What a recipe says about a scheme: a subclass has a literal `name`, options, and how it attaches."""

    name: str
    #: One line for help texts.
    summary: ClassVar[str] = ""
    #: Where the scheme comes from: paper and section.
    source: ClassVar[str] = ""
    #: What the scheme has a hand on; two schemes with a hand on the same thing cannot be combined.
    hands: ClassVar[frozenset[str]] = frozenset()
    #: The tasks it is for; None: any.
    tasks: ClassVar[frozenset[str] | None] = None
    #: When it is attached in a combination, lowest first: copies of the network, then what traces it, then the rest.
    turn: ClassVar[int] = 2

    def fits(self, task: str) -> bool:
        """Whether the scheme can be used for a task."""
        return self.tasks is None or task in self.tasks

    def check(self, epochs: int) -> None:
        """Raise `UserError` where the scheme cannot be run in a recipe of `epochs` epochs."""

    def lengths(self, epochs: int) -> tuple[int, ...]:
        """The epochs of the trainings that follow each other in one run of a recipe of `epochs` epochs.

        Each goes through the recipe's learning rate schedule once, stretched or pressed to its length.
        """
        return (epochs,)

    def optim(self, spec: OptimSpec) -> OptimSpec:
        """The optimizer of the network, and of its siblings, from the recipe's; a teacher keeps the recipe's."""
        return spec

    def teachers(self) -> tuple[dict[str, Any], ...]:
        """The networks that have to be trained before: changes to the recipe, such as its `model`."""
        return ()

    def attach(self, setup: Setup) -> Attached:
        """Put the scheme to work."""
        raise NotImplementedError


def loss_of(scheme: Attached, batch: Batch, loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """What the scheme makes of the loss of a batch, see `Attached.loss`.

    Raises:
        TypeError: It is no single number.
    """
    found: object = scheme.loss(batch, loss)
    if not isinstance(found, Tensor) or found.numel() != 1:
        what = f"tensor of shape {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise TypeError(
            f"{type(scheme).__qualname__}.loss gives a {what}; must return the loss, a tensor of one number"
        )
    return found


@contextmanager
def drawing_aside(model: nn.Module, seed: int | None = None) -> Iterator[None]:
    """What a network beside the one that is trained draws (its Dropout), from `seed` where one is given.

    The generators of the CPU and of the network's GPUs are put back: training goes on as if there were none beside it.
    """
    devices = sorted({value.device.index for value in model.parameters() if value.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        if seed is not None:
            # Not torch.manual_seed: it would reseed what is not put back.
            torch.default_generator.manual_seed(seed)
            for device in devices:
                torch.cuda.default_generators[device].manual_seed(seed)
        yield
