"""Many processes: every rank drops the same filters and brings back the same values, and DDP is wrapped anew."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any, TypeVar
from weakref import WeakSet

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from torchreaper.errors import ReaperError
from torchreaper.flow.tracing import OwnHook

Value = TypeVar("Value")

_SETTINGS = (
    *("device_ids", "output_device", "dim", "process_group", "find_unused_parameters", "gradient_as_bucket_view"),
    *("static_graph", "device_mesh", "skip_all_reduce_unused_params", "batched_grad_copy"),
)


def decided_by_rank_zero(decide: Callable[[], Value]) -> Value:
    """What ``decide`` returns or refuses on rank 0, on every rank.

    Collective: every rank must come here. Scores can differ between ranks (data-driven criteria, running statistics,
    schemes built with other seeds); what goes must not. All ranks decide, as a criterion may be collective itself.

    Raises:
        ReaperError: that of rank 0. Another rank's counts as little as its decision: alone with it, it would leave the
            others waiting.
    """
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return decide()
    held: list[Any] = [None, None]
    try:
        held[0] = decide()
    except ReaperError as error:
        held[1] = str(error)
    distributed.broadcast_object_list(held, src=0)
    found, refusal = held
    if refusal is not None:
        raise ReaperError(refusal)
    decision: Value = found
    return decision


def leave_together() -> None:
    """End the processes' group, if there is one, when all have come here.

    gloo may hang, or abort, where a process leaves while another tidies up its last collective.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


class Wrappers(OwnHook):
    """The DDP wrappers that have called a model: after a change of shapes they are stale, and are stopped.

    A stale one would leave the changed parameters out of its reductions: the ranks would drift apart, without a word
    where it was told to find unused parameters.
    """

    def __init__(self) -> None:
        self._used: WeakSet[nn.Module] = WeakSet()
        self._stale: WeakSet[nn.Module] = WeakSet()

    def watch(self, module: nn.Module, inputs: Any) -> None:
        """Forward pre-hook. A compiled graph does without."""
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return
        ddp = DistributedDataParallel._active_ddp_module
        if ddp is None:
            return
        if ddp in self._stale:
            raise ReaperError(
                "model: this DistributedDataParallel was made for the shapes before the last transition; after every "
                'transition of a compact scheme call model = tr.rewrapped(model), or use subnetwork="masked"'
            )
        self._used.add(ddp)

    def outdate(self) -> None:
        """Every wrapper so far is stale now."""
        self._stale |= self._used
        self._used.clear()

    def __reduce__(self) -> tuple[type[Wrappers], tuple[()]]:
        return Wrappers, ()  # a copy of the model has wrappers of its own


def rewrapped(ddp: nn.Module) -> DistributedDataParallel:
    """A new DDP wrapper with the same settings, for the shapes that the parameters have now.

    DDP lays out its gradient buckets once. In compact phases parameters change their shapes at every
    :class:`Transition`, so wrap the model anew there and forget the old wrapper, on every rank::

        if scheme.step() is not None:
            model = tr.rewrapped(model)

    No value changes: running statistics that each rank keeps for itself stay its own. Hooks on the wrapper itself do
    not go along. Masked phases need nothing of the kind.

    Args:
        ddp: the wrapper in use; it reduces nothing afterwards.

    Raises:
        ReaperError: it is no DistributedDataParallel, or has a communication hook, whose state may hold old shapes, or
            mixed precision or delayed reductions, which come with hooks of their own.
    """
    if not isinstance(ddp, DistributedDataParallel):
        raise ReaperError(
            f"ddp={type(ddp).__name__}: must be a torch.nn.parallel.DistributedDataParallel; a plain module needs no "
            "wrapping anew"
        )
    _refuse_hooks(ddp)
    known = signature(DistributedDataParallel.__init__).parameters
    settings = {name: getattr(ddp, name) for name in _SETTINGS if name in known and hasattr(ddp, name)}
    if settings.get("device_mesh") is not None:
        settings.pop("process_group")  # one is made of the other
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    settings[buffers] = getattr(ddp, buffers)
    if caps := getattr(ddp, "bucket_bytes_cap_list", None):
        settings["bucket_cap_mb_list"] = [cap / 2**20 for cap in caps]
    elif not ddp.bucket_bytes_cap_default:
        settings["bucket_cap_mb"] = ddp.bucket_bytes_cap / 2**20
    # Parameters that keep their shape keep their gradient accumulator, and with it the old wrapper's hook.
    ddp._remove_autograd_hooks()  # type: ignore[no-untyped-call]
    new = DistributedDataParallel(ddp.module, init_sync=False, **settings)
    new.training = ddp.training
    # After a forward in `no_sync` DDP leaves the buffers alone once more; a new wrapper would begin by syncing them.
    new.require_forward_param_sync = ddp.require_forward_param_sync
    return new


def _refuse_hooks(ddp: DistributedDataParallel) -> None:
    remedy = "wrap the module anew yourself"
    if getattr(ddp, "mixed_precision", None) is not None:
        raise ReaperError(f"ddp: has mixed_precision, which casts the parameters; use torch.autocast, or {remedy}")
    if getattr(ddp, "_delay_all_reduce_params", None):
        raise ReaperError(f"ddp: has delay_all_reduce_named_params, which it keeps to itself; {remedy}")
    hooked = getattr(ddp, "_comm_hooks", None) or hasattr(ddp, "buffer_hook")
    if hooked or ddp._get_ddp_logging_data().get("comm_hook"):  # type: ignore[no-untyped-call]
        raise ReaperError(
            f"ddp: has a communication hook, whose state may hold the old shapes; {remedy}, with a fresh hook"
        )
