"""What trains in a timm training run: timm's model, optimizer, schedule, average, loss and scaler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from timm import create_model
from timm.data import resolve_data_config
from timm.layers import convert_sync_batchnorm
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.utils import ModelEmaV3, NativeScaler
from torch import Tensor, nn

from torchreaper.errors import ReaperError
from torchreaper.integrations import timm_images
from torchreaper.integrations.timm_images import naming


@dataclass
class Parts:
    """All of it timm's, but for ``inputs``: zeros of shape (2, channels, height, width)."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Any
    epochs: int
    ema: ModelEmaV3 | None
    scaler: NativeScaler | None
    loss: nn.Module
    images: timm_images.Images
    inputs: Tensor

    def state_dict(self) -> dict[str, Any]:
        """What changes in training."""
        return {name: part.state_dict() for name, part in self._stateful().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        for name, part in self._stateful().items():
            part.load_state_dict(state[name])

    def _stateful(self) -> dict[str, Any]:
        names = ("model", "optimizer", "schedule", "ema", "scaler")
        return {name: part for name in names if (part := getattr(self, name)) is not None}


def build(args: Any, device: torch.device) -> Parts:
    """Make them.

    Args:
        args: those of timm's ``train.py``, by its names; ``distributed`` is set.
        device: where model and images go.

    Raises:
        ReaperError: what timm refuses, by the name of the argument.
    """
    sets = timm_images.datasets(args)
    given = {
        "num_classes": timm_images.classes_of(args, sets[0]),
        "drop_rate": args.drop,
        "drop_path_rate": args.drop_path,
    }
    with naming("model", args.model):
        kwargs = {name: value for name, value in given.items() if value is not None}
        model = create_model(args.model, pretrained=args.pretrained, **kwargs, **args.model_kwargs)
    model.to(device, memory_format=torch.channels_last if args.channels_last else torch.preserve_format)
    if args.sync_bn:
        if not args.distributed or device.type != "cuda":
            raise ReaperError("sync_bn=True: torch trains with it on several GPUs only; leave it out")
        model = convert_sync_batchnorm(model)
    data = resolve_data_config({"img_size": args.img_size}, model=model)
    images = timm_images.load(args, data, sets, model.num_classes, device)
    with naming("opt", args.opt):
        optimizer = create_optimizer_v2(model, **optimizer_kwargs(args), **args.opt_kwargs)
    if args.sched == "plateau":
        raise ReaperError("sched='plateau': timm keeps no state of it to go on from; use cosine, step or another")
    with naming("sched", args.sched):
        updates = -(-len(images.training) // args.grad_accum_steps)
        schedule, epochs = create_scheduler_v2(optimizer, **scheduler_kwargs(args), updates_per_epoch=updates)
    half = args.amp and args.amp_dtype == "float16" and device.type == "cuda"
    average = {"decay": args.model_ema_decay, "use_warmup": args.model_ema_warmup}
    mixed = args.mixup or args.cutmix  # smooth the labels themselves
    return Parts(
        model=model,
        optimizer=optimizer,
        schedule=schedule,
        epochs=epochs,
        ema=ModelEmaV3(model, **average) if args.model_ema else None,
        scaler=NativeScaler() if half else None,
        loss=SoftTargetCrossEntropy() if mixed else LabelSmoothingCrossEntropy(args.smoothing),
        images=images,
        inputs=torch.zeros(2, *data["input_size"], device=device),
    )
