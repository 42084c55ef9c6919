"""Reassemble tensors from the checkpoint files of FSDP2 workers, without verl and without running pickled code.

``torch.save`` writes pickles. torch's restricted unpickler reads these files and creates tensors and containers only.
The files also reference classes of ``torch.distributed`` for the layout of a tensor over the workers; an inert stand-in
class replaces these classes. Reading therefore needs no process group, no GPU and no specific release of torch (torch
2.13 with the real classes cannot open files written by 2.12).
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.serialization import (
    add_safe_globals,
    clear_safe_globals,
    get_safe_globals,
    get_unsafe_globals_in_checkpoint,
)

from attnrl.errors import UserError, one_line

DISTRIBUTED = "torch.distributed."


class _Inert:
    """Stand-in for any class or function of ``torch.distributed``; stores the pickled state and does nothing."""

    state: Any = None

    def __new__(cls, *_given: object, **_named: object) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_given: object, **_named: object) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Sharded(Tensor):
    """Stand-in for DTensor: ``shape`` is the shape of the whole tensor, ``_local_tensor`` the shard of the worker."""

    _local_tensor: Any
    _spec: Any

    @classmethod
    def __torch_dispatch__(cls, func: Any, *_given: object, **_named: object) -> Any:  # type: ignore[override]
        raise TypeError(f"{func} is not supported on a shard of a tensor")


@dataclass(frozen=True)
class Pieces:
    """A tensor in pieces along the dimension ``dim``; ``shape`` is the shape of the whole tensor."""

    tensors: tuple[Tensor, ...]
    dim: int
    shape: torch.Size

    @property
    def dtype(self) -> torch.dtype:
        """Data type of every piece."""
        return self.tensors[0].dtype

    def whole(self) -> Tensor:
        """Return the concatenated tensor; a single piece is returned without a copy."""
        return self.tensors[0] if len(self.tensors) == 1 else torch.cat(self.tensors, self.dim)


class Shards:
    """The memory-mapped checkpoint files of one kind, one file per worker.

    Attributes:
        files: paths of the files, by rank.
        contents: unpickled content of each file, by rank.
    """

    def __init__(self, directory: Path, kind: str, world_size: int, say: Callable[[str], None]) -> None:
        """Open the files ``{kind}_world_size_N_rank_R.pt``; ``say`` is called with one line per file.

        Raises:
            UserError: naming the file that is missing, damaged, or holds anything but tensors.
        """
        self.files: list[Path] = []
        for rank in range(world_size):
            file = directory / f"{kind}_world_size_{world_size}_rank_{rank}.pt"
            if not file.is_file():
                raise UserError(f"checkpoint file {file}: is missing")
            self.files.append(file)
        self.contents: list[dict[Any, Any]] = []
        for file in self.files:
            say(f"Reading {file.name} ({file.stat().st_size / 1e6:,.1f} MB)")
            self.contents.append(_load(file))

    def pieces(self, *path: str | int) -> Pieces:
        """Return the pieces of one tensor, found in every file by the keys ``path``.

        Raises:
            UserError: a file lacks the tensor, or the shards do not fit together.
        """
        name = "/".join(map(str, path))
        values = []
        for file, content in zip(self.files, self.contents, strict=True):
            value = content
            for key in path:
                if not isinstance(value, dict) or key not in value:
                    raise UserError(f"checkpoint file {file}: has no {name}")
                value = value[key]
            values.append(value)
        try:
            return _pieces(values)
        except (ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
            raise UserError(f"checkpoint file {self.files[0]}: {name}: {one_line(error)}") from None


def _load(file: Path) -> dict[Any, Any]:
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()  # torch does not verify the checksums
        if damaged is not None:
            raise ValueError(f"the checksum of {damaged} differs")
        with _only_own_safe_globals():
            named = sorted(get_unsafe_globals_in_checkpoint(file))
            foreign = next((name for name in named if not name.startswith(DISTRIBUTED)), None)
            if foreign is not None:
                raise ValueError(f"references {foreign}, which is not part of a tensor")
            add_safe_globals([(_stand_in(name), name) for name in named])
            content = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
        if not isinstance(content, dict):
            raise TypeError("a mapping expected")
    except Exception as error:  # hostile files raise exceptions of any type
        raise UserError(f"checkpoint file {file}: not readable ({one_line(error)})") from None
    return content


@contextmanager
def _only_own_safe_globals() -> Iterator[None]:
    """Ignore the classes that other libraries registered as safe globals of torch's unpickler."""
    registered = get_safe_globals()
    clear_safe_globals()
    try:
        yield
    finally:
        clear_safe_globals()
        add_safe_globals(registered)


def _stand_in(name: str) -> type:
    last = name.rpartition(".")[2]
    return type(last, (_Sharded if last == "DTensor" else _Inert,), {})


def _pieces(values: Sequence[object]) -> Pieces:
    """Return the pieces of a tensor from the value of each worker, by rank."""
    first = values[0]
    if not isinstance(first, _Sharded):  # a buffer or a step count: every worker has the whole tensor
        tensors = [_plain(value) for value in values]
        if not all(torch.equal(tensor, tensors[0]) for tensor in tensors):
            raise ValueError("differs between the ranks")
        return Pieces((tensors[0],), 0, tensors[0].shape)
    shape, dims = first.shape, set()
    parts: dict[int, Tensor] = {}
    for value in values:
        if not isinstance(value, _Sharded) or value.shape != shape:
            raise ValueError("the shape differs between the ranks")
        place = _place(value)
        if place is not None:
            dims.add(place[0])
            parts[place[1]] = _plain(value._local_tensor)
    ordered = tuple(part for _, part in sorted(parts.items()))
    (dim,) = dims
    pieces = Pieces(ordered, dim, shape)
    if Pieces(tuple(part.to("meta") for part in ordered), dim, shape).whole().shape != shape:
        found = ", ".join(str(list(part.shape)) for part in ordered)
        raise ValueError(f"shards {found} do not add up to {list(shape)}")
    return pieces


def _place(value: _Sharded) -> tuple[int, int] | None:
    """Return the dimension along which the tensor is sharded and the index of this shard; None for a replica.

    The device mesh has a sharded axis (``fsdp``), and optionally a replicated axis (``ddp``).
    """
    layout = value._spec.state
    placements, coordinates = layout["placements"], layout["mesh"].state["_coordinate_on_dim"]
    kinds = [type(placement).__name__ for placement in placements]
    if set(kinds) - {"Shard", "Replicate"} or kinds.count("Shard") > 1:
        raise ValueError(f"has the placements {kinds}; only tensors sharded along one mesh axis are supported (FSDP2)")
    dim = index = 0
    for placement, kind, coordinate in zip(placements, kinds, coordinates, strict=True):
        if kind == "Shard":
            dim, index = int(placement.state["dim"]), int(coordinate)
        elif coordinate:
            return None
    return dim, index


def _plain(value: object) -> Tensor:
    if type(value) not in {Tensor, nn.Parameter}:
        raise TypeError(f"a tensor expected, found {type(value).__name__}")
    assert isinstance(value, Tensor)
    if value.layout != torch.strided or value.device.type != "cpu":
        raise TypeError(f"a tensor with values expected, found one of {value.layout} on {value.device}")
    return value.detach()
