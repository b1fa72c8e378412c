"""Several processes that train one objective: which strategy of Lightning serves them, and what they tell each other.

What the processes compute together equals what one process computes from the joint batch: each has its share of the
clips (`PretrainBatches`), masks and negatives follow from the seed of each clip, and every term's mean is
weighted by its rows (`mmssl.objectives.joint`). A process whose share of a batch turns out to be damaged gets other
clips of it (`mmssl.training.pretrain_joint`). What does not:

- Losses that contrast the rows of a batch (InfoNCE, NT-Xent, Barlow Twins, VICReg) see those of their own process
  unless they were built with `gather=True`.
- Diversity is a function of the mean over a batch, so that its mean over processes is not that of the joint batch.
- Views that pair the clips of a batch (correspondence, mixup, the shuffled controls) pair those of their process.
- Batch norm is over the joint batch on GPUs (SyncBatchNorm), over each process's share on the CPU.
- Dropout, layer drop and Gumbel noise are drawn by each process on its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from torch import distributed, nn

from mmssl.errors import ConfigError
from mmssl.objectives.losses.gather import world_size

STRATEGIES = ("auto", "ddp", "fsdp")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
T = TypeVar("T")


def gathered(value: T) -> list[T]:
    """The values (of built-in types) of all processes, in the order of their ranks; every process must call this."""
    if world_size() == 1:
        return [value]
    found: list[Any] = [None] * world_size()
    distributed.all_gather_object(found, value)
    return found


def spread_parameters(objective: nn.Module, mesh: Any, blocks: Sequence[nn.Module]) -> None:
    """FSDP: spread parameters over the processes of a mesh, block by block; a teacher's as its student's are."""
    from torch.distributed.fsdp import fully_shard

    if hasattr(objective, "unshard"):
        return  # it is
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(objective, mesh=mesh)


def make_strategy(name: str, device: str, processes: int) -> Any:
    """A strategy for Lightning's trainer.

    Args:
        name: "auto" (DDP for several processes), "ddp" or "fsdp".
        device: "cpu", "cuda" or "cuda:1".
        processes: in all.

    Raises:
        ConfigError: an unknown name.
    """
    if name not in STRATEGIES:
        raise ConfigError(f"strategy must be one of {', '.join(STRATEGIES)}, got {name!r}.")
    if name == "auto" and processes == 1:
        return "auto"
    backend = "gloo" if device.startswith("cpu") else "nccl"
    if name == "fsdp":
        from lightning.pytorch.strategies import ModelParallelStrategy

        return ModelParallelStrategy(
            data_parallel_size=processes,
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend=backend,
        )
    from lightning.pytorch.strategies import DDPStrategy

    # Buffers are not broadcast: teachers, centres and queues change size and are kept equal by their owners. Blocks
    # that layer drop passes over have no gradient.
    return DDPStrategy(process_group_backend=backend, find_unused_parameters=True, broadcast_buffers=False)


def make_trainer(
    *,
    max_steps: int,
    accumulate: int,
    precision: str,
    device: str,
    devices: int,
    num_nodes: int,
    strategy: str,
    callbacks: Sequence[Any],
) -> Any:
    """Lightning's trainer for a pretraining run; see `mmssl.training.pretrain.pretrain` for the settings.

    Raises:
        ConfigError: a setting out of range, or settings that do not go together.
    """
    if devices < 1 or num_nodes < 1:
        raise ConfigError(f"devices and num_nodes must be at least 1, got {devices} and {num_nodes}.")
    if precision not in PRECISIONS:
        raise ConfigError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}.")
    if strategy == "fsdp" and precision == "16-mixed":
        raise ConfigError(
            "precision='16-mixed' scales the loss of each process by itself, which FSDP cannot: use 'bf16-mixed'."
        )
    kind, _, index = device.partition(":")
    processes = devices * num_nodes
    if index and processes > 1:
        raise ConfigError(f"device={device!r} names one device, {processes} processes were asked for: use {kind!r}.")
    from lightning.pytorch import Trainer

    one = 1 if kind == "cpu" else [int(index or 0)]
    return Trainer(
        accelerator="cpu" if kind == "cpu" else "gpu",
        devices=devices if processes > 1 else one,
        num_nodes=num_nodes,
        strategy=make_strategy(strategy, device, processes),
        sync_batchnorm=processes > 1 and kind != "cpu" and strategy != "fsdp",
        max_steps=max_steps,
        max_epochs=-1,
        accumulate_grad_batches=accumulate,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **_precision(precision, kind),
    )


def _precision(precision: str, kind: str) -> dict[str, Any]:
    if precision != "16-mixed":
        return {"precision": precision}
    from lightning.pytorch.plugins import MixedPrecision

    # said as a plugin, because Lightning turns it into bfloat16 on the CPU
    return {"plugins": [MixedPrecision("16-mixed", "cpu" if kind == "cpu" else "cuda")]}
