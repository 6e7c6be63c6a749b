"""Several processes as one: `torchrun -m training.trainer run RUN_DIR` on any number of hosts.

Every process reads the same run directory and walks the same batches. The packs of a batch are
dealt out in turn; parameters, gradients and optimizer state are sharded by FSDP2. One process is
the ordinary case, in which nothing here does anything.
"""

import os
from collections.abc import Iterator, Sequence
from itertools import chain, zip_longest
from typing import Any, TypeVar

import torch
from torch import distributed
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

T = TypeVar("T")


def join() -> None:
    """Join the process group that torchrun describes in the environment, if it does."""
    if "WORLD_SIZE" not in os.environ or distributed.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        distributed.init_process_group("cpu:gloo,cuda:nccl")
    else:
        distributed.init_process_group("gloo")


def leave() -> None:
    """Wait for the others and leave the process group: one that just ended would abort them."""
    if distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


def world() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """This process's place among them, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def leads() -> bool:
    """Whether this process writes the files; the others only compute."""
    return rank() == 0


def shared(items: Sequence[T]) -> Iterator[tuple[T, bool]]:
    """This process's turns at `items`, and whether the item is its own.

    Sharded layers need all processes in every pass, so all take the same number of turns: one
    that has run out of items gets the last one again, marked as not its own.
    """
    for start in range(0, len(items), world()):
        at = start + rank()
        yield items[min(at, len(items) - 1)], at < len(items)


def gathered(turns: list[list[T]]) -> list[T]:
    """What all processes made of their own items, in the order in which `shared` dealt them out.

    `turns` holds a list for each of this process's own items.
    """
    everyone: list[list[list[T]]] = [turns]
    if world() > 1:
        everyone = [[]] * world()
        distributed.all_gather_object(everyone, turns)
    in_order = chain.from_iterable(zip_longest(*everyone, fillvalue=[]))
    return list(chain.from_iterable(in_order))


def from_leader(value: T) -> T:
    """The leader's value, in every process."""
    held = [value]
    if world() > 1:
        distributed.broadcast_object_list(held)
    return held[0]


def added_up(tensor: torch.Tensor) -> torch.Tensor:
    """The sum over all processes of a CPU tensor."""
    if world() > 1:
        distributed.all_reduce(tensor)
    return tensor


def anyone(flag: bool) -> bool:
    """Whether the flag is up in any process: all must leave a loop at the same step."""
    return bool(added_up(torch.tensor(float(flag))))


def shard(model: Any, layers: Sequence[torch.nn.Module]) -> None:
    """Shard the parameters over all processes, a layer at a time, in place (FSDP2)."""
    if world() == 1:
        return
    for layer in layers:
        fully_shard(layer)
    fully_shard(model)
    for module in model.modules():
        if hasattr(module, "set_gradient_divide_factor"):
            module.set_force_sum_reduction_for_comms(True)  # all that gloo can do
            module.set_gradient_divide_factor(1.0)  # losses are divided by all pairs already


def reshard(model: Any) -> None:
    """Leave only the shards: a pass without a backward pass leaves some parameters whole."""
    if isinstance(model, FSDPModule):
        model.reshard()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A sharded tensor put together; all processes must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def laid_out_as(parameter: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """A copy of a whole tensor, on a parameter's device and, where it is sharded, as it is."""
    there = tensor.to(parameter.device, copy=True)
    if isinstance(parameter, DTensor):
        return distribute_tensor(there, parameter.device_mesh, parameter.placements)
    return there
