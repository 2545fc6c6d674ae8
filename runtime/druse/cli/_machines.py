"""Options of commands that share a piece of work among machines."""

import dataclasses
from typing import Annotated, Any

import typer

from druse._dependencies import require
from druse._shares import Share
from druse.errors import InputError


def _option(text: str, **options: Any) -> Any:
    return typer.Option(help=text, rich_help_panel="Several machines", **options)


Shard = Annotated[str, _option("Do only the i-th of n shares, such as 3/8; array jobs see the same folder.")]
RayAddress = Annotated[
    str, _option("Sample on the Ray cluster at this address; auto: the one here; local: start one here.")
]
CPUs = Annotated[int, _option("With --ray: CPUs, and threads, of a task.", min=1)]
GPUs = Annotated[float, _option("With --ray: GPUs of a task.", min=0.0)]
ShardsPerTask = Annotated[int, _option("With --ray: shards of a task; several fill a GPU.", min=1)]


@dataclasses.dataclass(frozen=True)
class Machines:
    """What these options say.

    Attributes:
        share: to compute; None: all.
        ray: address of a cluster; empty: none.
        cpus, gpus, shards: of a task there.
    """

    share: Share | None
    ray: str
    cpus: int
    gpus: float
    shards: int

    @classmethod
    def of(cls, shard: str, ray: str, cpus: int, gpus: float, shards: int) -> "Machines":
        """Of the options' values.

        Raises:
            InputError: they do not go together.
            MissingDependencyError: of Ray, before a run is begun for it.
        """
        if shard and ray:
            raise InputError("--shard is for array jobs, and --ray shares the work itself; give one of them")
        if ray.strip():
            require("ray", purpose="--ray", extra="ray")
        return cls(Share.parse(shard) if shard else None, ray.strip(), cpus, gpus, shards)
