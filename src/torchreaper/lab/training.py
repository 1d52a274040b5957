"""The moving parts of one run: network, optimizer, images and scheme, trained and judged epoch by epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer

import torchreaper as tr
from torchreaper.lab import data, resuming, schemes, snapshots, sources, tasks, teachers
from torchreaper.lab.environment import machine, make_fabric, rng_state, set_rng_state
from torchreaper.lab.errors import UserError
from torchreaper.lab.files import Json
from torchreaper.lab.finite import check_loss, check_weights, checked_losses
from torchreaper.lab.measures import convolutions, event, fingerprint, overlap_by_layer
from torchreaper.lab.models import in_channels_last
from torchreaper.lab.optim import build_optimizer, build_schedule, reapply
from torchreaper.lab.processes import check_batch, of_every_rank, same_buffers, summed
from torchreaper.lab.progress import Progress
from torchreaper.lab.recipe import Recipe
from torchreaper.lab.runs import RunFailed

# Seconds between two looks at the loss: each look makes the host wait for the device.
LOOK_EVERY = 1.0
# Several processes look together, so that none of them stops alone: after so many steps.
LOOK_STEPS = 20


class Run:
    """The moving parts of one run, on its device."""

    def __init__(
        self,
        recipe: Recipe,
        spec: schemes.Spec,
        *,
        seed: int,
        device: str = "auto",
        fabric: Fabric | None = None,
        progress: Progress | None = None,
        teacher: teachers.Taught | None = None,
        start: sources.Start | None = None,
    ) -> None:
        self.recipe, self.seed, self.teacher, self.start = recipe, seed, teacher, start
        self.task = tasks.TASKS[recipe.task]
        self.lengths = spec.lengths(recipe.epochs)
        self.epochs = sum(self.lengths)
        dataset = self.task.load(recipe.data, recipe.base, progress=progress.loading if progress else None)
        self.fabric = fabric or make_fabric(device, recipe.precision)
        self.share = data.Share(self.fabric.global_rank, self.fabric.world_size)
        check_batch(recipe.batch, self.share.of)
        train = dataset.train
        self.dataset = dataset
        data.check_augmentation(train, recipe.augment)
        self.module = self._network(recipe, seed)
        self.frozen = self._begin()
        self.optimizer = build_optimizer(spec.optim(recipe.optim), self.module.parameters())
        # The wrapped model and optimizer do the same in the precision asked for; states and hooks are the inner ones'.
        self.model, self.stepper = self.fabric.setup(self.module, self.optimizer)
        on = self.fabric.device
        self.train, self.test = train.to(on), dataset.test.to(on)
        held = dataset.validation  # the same as the test images where the recipe judges on it; judged once then
        self.validation = self.test if held is dataset.test else held.to(on) if held else None
        dtype = next(self.module.parameters()).dtype
        self.mean, self.std = dataset.mean.to(on, dtype), dataset.std.to(on, dtype)
        self.steps = len(self.train) // recipe.batch
        if not self.steps:
            raise UserError(
                f"batch={recipe.batch}: larger than the {len(self.train)} training images; use a smaller one"
            )
        self.layers = convolutions(self.module)
        self.filters = {name: layer.out_channels for name, layer in self.layers.items()}
        self.scheme = spec.attach(self._setup(spec))
        self.schedule = build_schedule(
            recipe.schedule,
            self.optimizer,
            epochs=recipe.epochs,
            steps_per_epoch=self.steps,
            lengths=self.lengths,
            scale=lambda: self.scheme.lr_factor,
        )
        self.chosen: Json | None = None
        # What training has cost so far; None, in a run that an older version began: the sum of the lines.
        self.seconds: float | None = 0.0

    def _network(self, recipe: Recipe, seed: int) -> nn.Module:
        network = self.task.build(recipe.model, self.dataset, seed=seed, base=recipe.base)
        return in_channels_last(network) if recipe.channels_last else network

    def _begin(self) -> tuple[nn.Module, ...]:
        """Take over the weights of the network that this one starts from; what of it must not move."""
        if self.recipe.source is None or self.start is None:
            return ()
        # Now and not in `setup`, which comes too late for the weights of a network in double precision.
        self.fabric.strategy.precision.convert_module(self.module)
        return sources.move(self.module, self.start.weights, self.recipe.source).frozen

    def _setup(self, spec: schemes.Spec) -> schemes.Setup:
        """What the scheme is put to work on."""

        def sibling(seed: int) -> tuple[nn.Module, Optimizer]:
            network = self._network(self.recipe, seed).to(self.fabric.device, self.mean.dtype)
            return network, build_optimizer(spec.optim(self.recipe.optim), network.parameters())

        def drawn(seed: int, epoch: int) -> Iterator[tuple[Any, Tensor]]:
            return self._batches(seed, epoch, data.WHOLE)  # for networks beside, of which each process has its own

        # Criteria call the network with its inputs, or where that is not enough as training does.
        arguments = partial(self.task.arguments, self.module) if self.task.needs_targets(self.module) else None
        reading: Json = {"mean": self.mean, "std": self.std, "batch": self.task.read_at_once(self.recipe.batch)}
        teacher = None
        if wanted := teachers.recipe_of(self.recipe, spec):
            # Without weights where a comparison only asks whether all can be built.
            teacher = self._network(wanted, self.seed).to(self.fabric.device, self.mean.dtype)
            teacher.requires_grad_(False).eval()
            if self.teacher is not None:
                teacher.load_state_dict(self.teacher.weights)
        return schemes.Setup(
            model=self.module,
            optimizer=self.optimizer,
            example_inputs=data.first(self.train, 2, self.mean, self.std),
            seed=data.epoch_seed(self.seed, 0, "scheme"),
            batches=data.FixedBatches.held_out(self.train, self.validation, arguments=arguments, **reading),
            training=data.FixedBatches(self.train, "training", **reading),
            loss=partial(self.task.loss, self.module),
            answers=self.task.answers,
            lengths=self.lengths,
            sibling=sibling,
            drawn=drawn,
            autocast=self.fabric.autocast,
            grad_clip=self.recipe.grad_clip,
            base=self.recipe.base,
            teacher=teacher,
        )

    @property
    def judged(self) -> nn.Module:
        """The network that counts: the scheme's, where it keeps one, else the one that is trained."""
        network = self.scheme.network
        return self.module if network is None else network

    def epoch(self, epoch: int, progress: Progress) -> tuple[Json, list[Json], Json | None]:
        """Train epoch number `epoch` (from 1), judge the network, then let the scheme act.

        Returns:
            The epoch's line of `metrics.jsonl`, its lines of `events.jsonl`, and its snapshot if one is due.
        """
        phase, dropped = self.scheme.phase, self.scheme.dropped
        start = time.perf_counter()
        trained = self._train(epoch, progress)
        try:
            self.scheme.trained()
        except tr.ReaperError as error:
            raise RunFailed(f"epoch {epoch}: {error}") from error
        seconds = time.perf_counter() - start
        # Before the scheme's step: filters that have just come back are not what this epoch trained.
        test, validation = self._judge_if_due(epoch)
        others = {} if self.judged is self.module else {" in the network that is judged": self.judged}
        check_weights({"": self.module, **others}, epoch)
        overlaps, total = overlap_by_layer(self.layers, self.filters, dropped)
        counts = self.scheme.counts
        if self.recipe.report == "validation" and counts and test:
            self._choose(epoch, validation, test)
        snapshot = None
        if snapshots.due(epoch, every=self.recipe.snapshots, epochs=self.epochs):
            snapshot = snapshots.take(self.judged, epoch, phase, dropped)
        start = time.perf_counter()
        try:
            transition = self.scheme.step()
        except tr.ReaperError as error:
            raise RunFailed(f"epoch {epoch}: {error}") from error
        reapply(self.schedule)
        # What training costs; judging the network and writing files are the lab's, not the scheme's.
        cost = seconds + time.perf_counter() - start
        if self.seconds is not None:
            self.seconds += cost
        if transition is not None:
            self._wrap_anew()
            progress.transition(epoch, transition)
        metrics = {
            "epoch": epoch,
            "phase": phase,
            # Whether the network judged here is one that the scheme could end with.
            "counts": counts,
            **trained,
            "validation_accuracy": validation,
            "test_accuracy": test.score if test else None,
            "test_loss": test.loss if test else None,
            **({"parts": dict(test.parts)} if test and test.parts else {}),
            **({} if self.task.metric == "accuracy" else {"metric": self.task.metric}),
            **({} if self.recipe.data.judge == "test" else {"judged": self.recipe.data.judge}),
            "overlap": overlaps,
            "overlap_total": total,
            "dropped": {name: list(filters) for name, filters in dropped.items()},
            "images_per_second": self.steps * self.recipe.batch / seconds,
            "seconds": cost,
        }
        return metrics, [] if transition is None else [event(epoch, transition)], snapshot

    def result(self, scheme: str, metrics: list[Json]) -> Json:
        """The content of `result.json`, from the final network and all lines of `metrics.jsonl`."""
        last = metrics[-1]
        reported = self.chosen or {
            "epoch": last["epoch"],
            "test_accuracy": last["test_accuracy"],
            "validation_accuracy": last["validation_accuracy"],
            "train_accuracy": self._on_training(last["epoch"]),
            "parts": last.get("parts", {}),
        }
        return {
            "recipe": self.recipe.name,
            "scheme": scheme,
            "seed": self.seed,
            "epochs": self.epochs,
            # What "accuracy" stands for in this record, and its parts.
            "metric": self.task.metric,
            "parts": {**reported.get("parts", {}), **(self.start.parts() if self.start else {})},
            "judged": self.recipe.data.judge,
            "report": self.recipe.report,
            "reported_epoch": reported["epoch"],
            "test_accuracy": reported["test_accuracy"],
            "train_accuracy": reported["train_accuracy"],
            "gap": reported["train_accuracy"] - reported["test_accuracy"],
            "validation_accuracy": reported["validation_accuracy"],
            # Not those of the lines, of which a damage may have taken some.
            "seconds": sum(line["seconds"] for line in metrics) if self.seconds is None else self.seconds,
            "teacher_seconds": self.teacher.seconds if self.teacher else 0.0,
            **(self.start.costs() if self.start else {}),
            "fingerprint": fingerprint(self.judged.state_dict()),
            # Of one process: the last bits depend on it.
            "threads": torch.get_num_threads(),
            "layers": self.filters,
        }

    def state_dict(self) -> Json:
        """All that the rest of the run depends on."""
        return {
            "model": self.module.state_dict(),
            **({} if self.judged is self.module else {"network": self.judged.state_dict()}),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
            "scheme": self.scheme.state_dict(),
            "chosen": self.chosen,
            "seconds": self.seconds,
            "machine": machine(self.fabric.device),
            "rng": of_every_rank(self.fabric, rng_state()),
        }

    def load_state_dict(self, state: Json, note: Callable[[str], None]) -> None:
        """Go on from `state`; `note` is told where this machine may give other bits than the one that wrote it."""
        if wrong := resuming.problem(state, self.state_dict()):
            raise resuming.not_ours(wrong)
        try:
            self.module.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if wrong := resuming.amiss_in_optimizer(self.optimizer):
                raise ValueError(wrong)
            self.schedule.load_state_dict(state["schedule"])
            self.fabric.strategy.precision.load_state_dict(state["precision"])
            self.scheme.load_state_dict(state["scheme"])
            states = state["rng"] if isinstance(state["rng"], list) else [state["rng"]]
            if self.share.rank < len(states):
                set_rng_state(states[self.share.rank])
        except Exception as error:  # whatever a state that is not ours makes torch and the schemes raise
            raise resuming.not_ours(str(error) or type(error).__name__) from error
        self.chosen, self.seconds = state["chosen"], state.get("seconds")
        if self.scheme.phase == "sub":
            self._wrap_anew()
        there, here = state["machine"], machine(self.fabric.device)
        if there["threads"] != here["threads"]:
            torch.set_num_threads(there["threads"])
        for text in resuming.moved(there, here, threads=torch.get_num_threads(), processes=self.share.of):
            note(text)

    def _wrap_anew(self) -> None:
        """DDP lays out its reductions for the shapes that the parameters have when it is made."""
        if self.share.of > 1:
            self.model._forward_module = tr.rewrapped(self.model._forward_module)

    def _train(self, epoch: int, progress: Progress) -> Json:
        self.model.train()
        sources.frozen_mode(self.frozen)
        lr = self.optimizer.param_groups[0]["lr"]
        losses: list[float] = []
        waiting: list[Tensor] = []
        correct: Tensor | None = torch.zeros((), dtype=torch.int64, device=self.fabric.device)
        looked = time.perf_counter()
        for step, (inputs, targets) in enumerate(self._batches(self.seed, epoch, self.share), 1):
            loss, right = self._step(inputs, targets)
            waiting.append(loss * len(targets))
            correct = None if correct is None or right is None else correct + right
            if step == self.steps or self._to_look(step, looked):
                losses += checked_losses(epoch, len(losses), summed(self.fabric, torch.stack(waiting)))
                waiting, looked = [], time.perf_counter()
                progress.batch(epoch, step, losses[-1] / self.recipe.batch)
            else:
                progress.batch(epoch, step, None)
        count = self.steps * self.recipe.batch
        accuracy = None if correct is None else summed(self.fabric, correct).item() / count
        same_buffers(self.fabric, self.module, self.judged)
        return {"train_loss": math.fsum(losses) / count, "train_accuracy": accuracy, "lr": lr}

    def _to_look(self, step: int, looked: float) -> bool:
        if self.share.of > 1:
            return step % LOOK_STEPS == 0
        return time.perf_counter() - looked > LOOK_EVERY

    def _batches(self, seed: int, epoch: int, share: data.Share) -> Iterator[tuple[Any, Tensor]]:
        """The training batches of an epoch, augmented and normalised, in the order of (seed, epoch)."""
        return data.training(
            self.train,
            self.mean,
            self.std,
            batch=self.recipe.batch,
            augment=self.recipe.augment,
            seed=seed,
            epoch=epoch,
            share=share,
        )

    def _step(self, inputs: Any, targets: Tensor) -> tuple[Tensor, Tensor | None]:
        """One optimizer step; returns the batch's loss and its number of right answers, both on the device."""
        inputs, aims = self.scheme.mix(inputs, targets)
        batch, loss = self._backward(inputs, aims)
        self.scheme.gradients(lambda: self._backward(inputs, aims))
        if self.recipe.grad_clip is not None:
            # A gradient that is not finite makes the next loss so, which is reported with its step.
            self.fabric.clip_gradients(
                self.model, self.stepper, max_norm=self.recipe.grad_clip, error_if_nonfinite=False
            )
        self.stepper.step()
        self.scheme.stepped(batch)
        self.schedule.step()
        with torch.no_grad():
            return loss.detach(), self.task.right(batch.outputs, aims)

    def _backward(self, inputs: Any, targets: Tensor) -> tuple[schemes.Batch, Tensor]:
        """The gradients of one batch, in the place of those before."""
        self.optimizer.zero_grad()
        with self.fabric.autocast():
            arguments = self.task.arguments(self.module, inputs, targets)
            batch = schemes.Batch(self.model, arguments, targets, self.model(*arguments))
            loss = self.task.loss(self.module, batch.outputs, targets, smoothing=self.scheme.label_smoothing)
            loss = schemes.loss_of(self.scheme, batch, loss)
        self.fabric.backward(loss)
        return batch, loss

    def _judge_if_due(self, epoch: int) -> tuple[tasks.Judged | None, float | None]:
        """What the network is worth on the test images, and its score on those of validation; None: nobody looks."""
        self.judged.eval()  # due or not, what comes after finds it alike
        if not snapshots.due(epoch, every=self.recipe.eval_every, epochs=self.epochs):
            return None, None
        test = self._judged(self.test, epoch, self.recipe.data.judge)
        if self.validation is None or self.validation is self.test:
            return test, test.score if self.validation else None
        return test, self._judged(self.validation, epoch, "validation").score

    def _judged(self, split: data.Readable, epoch: int, what: str, only: Tensor | None = None) -> tasks.Judged:
        judged = self.judged
        found = self.task.judge(
            self.fabric,
            # A DDP wrapper would meet the other processes in every forward, whose batches may be fewer.
            self.model if judged is self.module and self.share.of == 1 else judged,
            judged,
            split,
            classes=self.dataset.classes,
            mean=self.mean,
            std=self.std,
            batch=self.recipe.eval_batch,
            only=only,
        )
        check_loss(found.loss, epoch, what)
        return found

    def _on_training(self, epoch: int) -> float:
        only = self.task.judged_of_training(self.train, self.test)
        return self._judged(self.train, epoch, "training", only).score

    def _choose(self, epoch: int, validation: float | None, test: tasks.Judged) -> None:
        """Remember this epoch if it is the best so far on the validation images; of equals, the first."""
        if validation is None or (self.chosen and validation <= self.chosen["validation_accuracy"]):
            return
        self.chosen = {
            "epoch": epoch,
            "validation_accuracy": validation,
            "test_accuracy": test.score,
            "train_accuracy": self._on_training(epoch),
            **({"parts": dict(test.parts)} if test.parts else {}),
        }
