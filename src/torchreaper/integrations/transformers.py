"""RePr as a callback of the Hugging Face Trainer, for image classification with convnets."""

from __future__ import annotations

import json
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from torch import nn
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from torchreaper.errors import ReaperError
from torchreaper.flow.tracing import ExampleInputs, undisturbed
from torchreaper.integrations.adapter import Adapter, log


class RePrCallback(Adapter, TrainerCallback, ExportableState):
    """Train with RePr; nothing else in the model or the Trainer changes.

    ::

        trainer = Trainer(model, args, train_dataset=images, callbacks=[RePrCallback(full=2, sub=2, cycles=8)])
        trainer.train()

    The scheme is built when training begins and taken off the model at its end (after an error: by ``finish()``, or as
    the next begins). Its state is in every checkpoint, and ``resume_from_checkpoint`` goes on with it. Logs of the loss
    get ``repr/sub`` (1 in a sub-network phase), ``repr/filters_dropped`` and ``repr/overlap``.

    Args:
        example_inputs: what the model is called with, as a dict; by default made of the first image of the data set.
        model: where the convnet is: an attribute's name ("backbone"), or a function of the model. Default: the model.
        unit: what ``full`` and ``sub`` count: "epoch", or "step" for the Trainer's ``global_step``.
        settings: those of :class:`torchreaper.RePr`, by name.
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
        self._part: Any = attrgetter(model) if isinstance(model, str) else model or (lambda whole: whole)

    def state(self) -> dict[str, Any]:
        """What the Trainer writes down: the settings, where all of them are plain values, and the scheme's state."""
        plain = all(isinstance(value, (str, int, float, type(None))) for value in self._given.values())
        return {"args": self._given if plain else {}, "attributes": {"text": self.as_text()}}

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **parts: Any) -> None:  # noqa: D102
        self.finish()  # of a training that was cut off, or is tried again with a smaller batch
        if self.settings.get("subnetwork") == "compact" and args.world_size > 1:
            raise ReaperError('subnetwork="compact": the Trainer keeps one DDP wrapper for all phases; use "masked"')
        if state.global_step and (saved := _saved(state.stateful_callbacks)):  # resumed, with all else loaded by now
            self.load_state_dict(self.read_text(saved))
        inputs = _first_image(model, parts["train_dataloader"]) if self._inputs is None else self._inputs
        ends = {"step": state.max_steps, "epoch": None if args.max_steps > 0 else int(args.num_train_epochs)}
        self.start(self._part(model), parts["optimizer"], inputs, done=self._done(state), until=ends[self.unit])
        self.reached(self._done(state))

    def _done(self, state: Any) -> int:
        return int((state.epoch or 0) + 1e-6) if self.unit == "epoch" else int(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: D102
        if self.unit == "step":
            self.reached(self._done(state))

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: D102
        self.reached(self._done(state))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:  # noqa: D102
        if self.scheme is not None and "loss" in (logs or {}):
            logs.update(self.values())  # for those that listen later, such as the Trainer's own printing
            state.log_history[-1].update(self.values())

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: D102
        self.finish()
        if args.load_best_model_at_end and (best := state.best_model_checkpoint):
            told = json.loads((Path(best) / "trainer_state.json").read_text())
            if (text := _saved(told["stateful_callbacks"])) and self.read_text(text)["scheme"]["dropped"]:
                log.warning("%s, the best, was judged without the filters that it holds and the model has now", best)


def _saved(callbacks: dict[str, Any]) -> str:
    return str(callbacks.get(RePrCallback.__name__, {}).get("attributes", {}).get("text", ""))


def _first_image(model: Any, loader: Any) -> dict[str, Any]:
    try:
        with undisturbed(model):
            images = loader.collate_fn([loader.dataset[0]])[model.main_input_name]
    except (TypeError, KeyError, NotImplementedError, AttributeError) as error:
        raise ReaperError(f"example_inputs=None: no first image ({error!r}); pass what the model takes") from error
    return {model.main_input_name: images.to(next(model.parameters()).device)}
