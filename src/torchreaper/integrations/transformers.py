"""RePr as a callback of the Hugging Face Trainer, for image classification with convnets."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from torch import nn
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from torchreaper.errors import ReaperError
from torchreaper.flow.tracing import ExampleInputs
from torchreaper.integrations.adapter import Adapter, is_plain, log
from torchreaper.integrations.transformers_inputs import first_image


class RePrCallback(Adapter, TrainerCallback, ExportableState):
    """Train with RePr; nothing else in the model or the Trainer changes.

    ::

        trainer = Trainer(model, args, train_dataset=images, callbacks=[RePrCallback()])
        trainer.train()

    The scheme is built when training begins and taken off the model at its end (after an error: by ``finish()``, or as
    the next begins). Its state is in every checkpoint, and ``resume_from_checkpoint`` goes on with it. Logs of the loss
    get ``repr/sub`` (1 in a sub-network phase), ``repr/filters_dropped`` and ``repr/overlap``.

    Args:
        example_inputs: what the model is called with, as a dict; by default made of the first image of the data set.
        model: where the convnet is: an attribute's name ("backbone"), or a function of the model. Default: the model.
        unit: what ``full`` and ``sub`` count: "epoch", or "step" for the Trainer's ``global_step``.
        settings: those of :class:`torchreaper.RePr`, by name. Phases that are not given are planned by the Trainer's
            number of epochs or steps.
    """

    def __init__(
        self,
        example_inputs: ExampleInputs | None = None,
        *,
        model: str | Callable[[nn.Module], nn.Module] | None = None,
        unit: Literal["epoch", "step"] = "epoch",
        **settings: Any,
    ) -> None:
        super().__init__(unit=unit, **settings)
        self._inputs, self._given = example_inputs, {"model": model, "unit": unit, **settings}
        self._epochs, self.lost = 0, ""
        self._part: Any = attrgetter(model) if isinstance(model, str) else model or (lambda whole: whole)

    def state(self) -> dict[str, Any]:
        """What the Trainer writes down: the settings, where all of them are plain values, and the scheme's state."""
        asked = {**self._given, "example_inputs": self._inputs}
        lost = ", ".join(name for name, value in asked.items() if not is_plain(value))
        return {"args": {} if lost else self._given, "attributes": {"text": self.as_text(), "lost": lost}}

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **parts: Any) -> None:  # noqa: D102
        self.finish()  # of a training that was cut off, or is tried again with a smaller batch
        if self.lost:
            text = f"restore_callback_states_from_checkpoint=True: {self.lost} cannot be kept in a checkpoint"
            raise ReaperError(f"{text}; leave it False: the callback that you pass goes on from there by itself")
        if self.settings.get("subnetwork") == "compact" and args.world_size > 1:
            raise ReaperError('subnetwork="compact": the Trainer keeps one DDP wrapper for all phases; use "masked"')
        if state.global_step and (saved := _saved(state.stateful_callbacks)):  # resumed, with all else loaded by now
            self.load_state_dict(self.read_text(saved))
        inputs = first_image(model, parts["train_dataloader"]) if self._inputs is None else self._inputs
        self._epochs = int((state.epoch or 0) + 1e-6)
        epochs = None if state.num_train_epochs == sys.maxsize else state.num_train_epochs  # of a stream
        done, until = (self._epochs, epochs) if self.unit == "epoch" else (state.global_step, state.max_steps)
        self.start(self._part(model), parts["optimizer"], inputs, done=done, until=until)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: D102
        self.reached(self._epochs if self.unit == "epoch" else state.global_step)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: D102
        self._epochs += 1  # the Trainer's own number is that of steps, where it does not know how many make an epoch

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:  # noqa: D102
        if self.scheme is not None and "loss" in (logs or {}):
            logs.update(self.values())  # for those that listen later, such as the Trainer's own printing
            state.log_history[-1].update(self.values())
        if "train_loss" in (logs or {}) and control.should_training_stop:  # the last log: next it loads the best model
            self.finish()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: D102
        self.finish()
        if args.load_best_model_at_end and (best := state.best_model_checkpoint):
            told = json.loads((Path(best) / "trainer_state.json").read_text())
            if (text := _saved(told["stateful_callbacks"])) and self.read_text(text)["scheme"]["dropped"]:
                log.warning("%s, the best, was judged without the filters that it holds and the model has now", best)


def _saved(callbacks: dict[str, Any]) -> str:
    return str(callbacks.get(RePrCallback.__name__, {}).get("attributes", {}).get("text", ""))
