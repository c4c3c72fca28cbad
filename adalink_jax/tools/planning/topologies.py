"""The TPU slices that a plan can be made for, with their devices to compile for.

libtpu compiles for slices that are not present. But it accepts impossible sizes, takes an unknown
name for another generation, and its devices show neither memory nor speed. So this module lists the
slices that can be rented, the compiler's memory limit and the speeds Google publishes.
"""

import dataclasses
import importlib.metadata
import math
from collections.abc import Mapping
from typing import Any

from adalink_jax.errors import UserError, install, nearest
from adalink_jax.training.flops import PEAKS

GIB = 2**30
_CHIPS_PER_HOST = 4


@dataclasses.dataclass(frozen=True)
class Chip:
    """A generation of TPUs, in numbers per chip.

    Attributes:
      allowed_bytes: bytes of HBM that the compiler allows a program (libtpu 0.0.42.1); the runtime
        uses the rest.
      flops: peak bfloat16 FLOPs per second.
      hbm_bytes: HBM bytes per second.
      ici_bytes: bytes per second that a chip sends over all its links to other chips. Google states
        this in bits (v4: 2400 Gbps), or the double, for both directions together.
      dimensions: of the torus that a slice is cut from.
      options: for ``get_topology_desc``.

    Speeds: cloud.google.com/tpu/docs/v4, v5e, v5p, v6e and system-architecture-tpu-vm.
    """

    allowed_bytes: int
    flops: float
    hbm_bytes: float
    ici_bytes: float
    dimensions: int
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


CHIPS = {
    # libtpu calls it megacore when a chip is one device, as in v4's runtime.
    "v4": Chip(
        int(30.75 * GIB), PEAKS["TPU v4"], 1228e9, 300e9, 3, {"chip_config_name": "megacore"}
    ),
    "v5e": Chip(int(15.75 * GIB), PEAKS["TPU v5e"], 819e9, 200e9, 2),
    "v5p": Chip(int(95.74 * GIB), PEAKS["TPU v5p"], 2765e9, 600e9, 3),
    "v6e": Chip(int(31.25 * GIB), PEAKS["TPU v6e"], 1638e9, 400e9, 2),
}
_SHAPES_2D = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SHAPES_3D = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
_SHAPES = {
    "v4": _SHAPES_3D,
    "v5e": _SHAPES_2D,
    "v5p": ("1x1x1", *_SHAPES_3D),
    "v6e": _SHAPES_2D,
}
# A v4 slice is rented by its number of TensorCores, two per chip.
_ALIASES = {
    f"v4-{2 * math.prod(map(int, shape.split('x')))}": f"v4:{shape}" for shape in _SHAPES["v4"]
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A TPU slice.

    Attributes:
      generation: a key of `CHIPS`.
      shape: the arrangement of its chips, e.g. "4x8".
    """

    generation: str
    shape: str

    @property
    def name(self) -> str:
        """The name of the slice in libtpu, e.g. "v5e:4x8"."""
        return f"{self.generation}:{self.shape}"

    @property
    def chip(self) -> Chip:
        """The properties of one of its chips."""
        return CHIPS[self.generation]

    @property
    def chips(self) -> int:
        """The number of chips."""
        return math.prod(map(int, self.shape.split("x")))

    @property
    def hosts(self) -> int:
        """The number of hosts, with four chips each."""
        return -(-self.chips // _CHIPS_PER_HOST)

    @property
    def preset(self) -> str:
        """The name of its file in ``gin/hardware``, without the suffix; the file may not exist."""
        rented = {name: alias for alias, name in _ALIASES.items()}
        if self.chips == 1:
            return f"tpu_{self.generation}_1"
        return f"tpu_{rented.get(self.name, self.name)}".replace(":", "_").replace("-", "_")

    def devices(self) -> list[Any]:
        """Returns its devices, to compile for.

        Raises:
          UserError: libtpu is not installed.
        """
        libtpu_version()
        from jax.experimental import topologies

        options = dict(self.chip.options)
        if self.chips == 1:
            options["chips_per_host_bounds"] = (1, 1, 1)
        devices = topologies.get_topology_desc(
            platform="tpu", topology_name=self.name, **options
        ).devices
        if len(devices) != self.chips:
            raise RuntimeError(f"libtpu gives {len(devices)} devices for {self.name}")
        return list(devices)


TOPOLOGIES = {
    topology.name: topology
    for generation, shapes in _SHAPES.items()
    for topology in (Topology(generation, shape) for shape in shapes)
}


def find(name: str) -> Topology:
    """Returns the slice with a name: libtpu's, or the one a v4 slice is rented by ("v4-8").

    Raises:
      UserError: there is no such slice.
    """
    topology = TOPOLOGIES.get(_ALIASES.get(name, name))
    if topology is None:
        generation = name.partition(":")[0]
        known = [key for key in (*TOPOLOGIES, *_ALIASES) if key.startswith(f"{generation}:")]
        names = ", ".join(known or ("v4-8", "v5e:2x2", "v5p:2x2x2", "v6e:4x4", "and larger ones"))
        guess = nearest(name, (*TOPOLOGIES, *_ALIASES))
        raise UserError(f"no TPU slice '{name}'{guess}; it takes {names}")
    return topology


def libtpu_version() -> str:
    """Returns the version of libtpu.

    Raises:
      UserError: libtpu is not installed.
    """
    try:
        return importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            "planning compiles for TPUs with libtpu, which is not installed (and needs no TPU): "
            + install("plan")
        ) from None
