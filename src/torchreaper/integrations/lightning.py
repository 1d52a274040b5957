"""RePr as a callback of Lightning's Trainer."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer, callbacks
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from torchreaper.flow.tracing import ExampleInputs
from torchreaper.integrations.adapter import Adapter
from torchreaper.integrations.lightning_end import end_of
from torchreaper.ranks import rewrapped

_AVERAGING = (callbacks.StochasticWeightAveraging, *filter(None, [getattr(callbacks, "WeightAveraging", None)]))


class RePrCallback(Adapter, Callback):
    """Train with RePr; nothing else in the LightningModule or the Trainer changes.

    ::

        trainer = Trainer(max_epochs=40, callbacks=[RePrCallback()])
        trainer.fit(module)

    The scheme is built when fitting begins and taken off the model at the end; checkpoints of the Trainer hold its
    state. Averages by Lightning's callbacks (of weights, EMA, SWA) lose and regain filters together with the model.
    Every epoch logs ``repr/sub`` (1 in a sub-network phase), ``repr/filters_dropped`` and ``repr/overlap``.

    Args:
        example_inputs: what the model is called with; by default the module's ``example_input_array``, else the images
            of the first batch: its first entry.
        model: where the convnet is: an attribute's name ("net"), or a function of the module. Default: the module.
        unit: what ``full`` and ``sub`` count: "epoch", or "step" for the Trainer's ``global_step``.
        settings: those of :class:`torchreaper.RePr`, by name. Phases that are not given are planned by the Trainer's
            ``max_epochs`` or ``max_steps``.

    Raises:
        ReaperError: an unknown setting here; what the scheme refuses, when fitting begins.
    """

    def __init__(
        self,
        example_inputs: ExampleInputs | None = None,
        *,
        model: str | Callable[[LightningModule], nn.Module] | None = None,
        unit: Literal["epoch", "step"] = "epoch",
        **settings: Any,
    ) -> None:
        super().__init__(unit=unit, **settings)
        self._inputs = example_inputs
        self._part: Any = attrgetter(model) if isinstance(model, str) else model or (lambda module: module)

    def _begin(self, trainer: Trainer, module: LightningModule, batch: Any = None, *_: Any) -> None:
        """As soon as there are inputs: in a compiled model that has been called, later hooks would be ignored."""
        if self.scheme is not None or not (trainer.training or trainer.sanity_checking):
            return
        inputs = self.inputs(self._inputs, module.example_input_array, self.example, batch)
        if inputs is None:
            return
        averages = [one._average_model for one in trainer.callbacks if isinstance(one, _AVERAGING)]
        averages = [one if isinstance(one, LightningModule) else one.module for one in averages]
        followers = [*self.settings.get("followers", ()), *(self._part(one) for one in averages)]
        done, until = self._done(trainer), end_of(trainer, self.unit)
        self.start(self._part(module), trainer.optimizers, inputs, done=done, until=until, followers=followers)
        self._wrap_anew(trainer)

    # A resumed run comes to the first of these with everything loaded; the first batch is the last chance.
    on_sanity_check_start = on_validation_batch_start = on_train_start = _begin

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:  # noqa: D102
        self._begin(trainer, pl_module, *batch)
        if self.reached(self._done(trainer)):
            self._wrap_anew(trainer)

    def _done(self, trainer: Trainer) -> int:
        return int(trainer.current_epoch if self.unit == "epoch" else trainer.global_step)

    def _wrap_anew(self, trainer: Trainer) -> None:
        """DDP lays out its reductions for the shapes that the parameters have."""
        ddp = trainer.strategy.model
        if self.scheme is not None and self.scheme.subnetwork == "compact" and isinstance(ddp, DistributedDataParallel):
            trainer.strategy.model = rewrapped(ddp)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        pl_module.log_dict(self.values(), prog_bar=True, rank_zero_only=True)

    def on_exception(self, *_: Any) -> None:  # noqa: D102
        self.finish()  # a checkpoint that is written after this holds the same

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: D102
        self.finish()
