"""The files of FSDP2's workers put together again, without verl, and without running anything that is in them.

``torch.save`` writes pickles. They are read by torch's restricted unpickler, which makes tensors and containers. What
these files may name beside them are classes of ``torch.distributed``, which say how a tensor is laid out over the
workers; in their place comes a class that keeps what it is given and does nothing. So reading needs no process group,
no GPU, and not the release of torch that wrote the files: 2.13 cannot open what 2.12 wrote, with classes of its own.
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
    """Stands for a class or a function of ``torch.distributed``, whatever it is called with."""

    state: Any = None

    def __new__(cls, *_given: object, **_named: object) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_given: object, **_named: object) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Sharded(Tensor):
    """Stands for DTensor: its shape is that of the whole tensor, and the worker's part of it is ``_local_tensor``."""

    _local_tensor: Any
    _spec: Any

    @classmethod
    def __torch_dispatch__(cls, func: Any, *_given: object, **_named: object) -> Any:  # type: ignore[override]
        raise TypeError(f"{func} of a tensor of which only a part is here")


@dataclass(frozen=True)
class Pieces:
    """A tensor in pieces, along its dimension ``dim``."""

    tensors: tuple[Tensor, ...]
    dim: int
    shape: torch.Size

    @property
    def dtype(self) -> torch.dtype:
        """That of each piece."""
        return self.tensors[0].dtype

    def whole(self) -> Tensor:
        """The tensor; without a copy where there is one piece only."""
        return self.tensors[0] if len(self.tensors) == 1 else torch.cat(self.tensors, self.dim)


class Shards:
    """The files of one kind that the workers of a run have written, mapped into memory rather than read.

    Attributes:
        files: one for each worker, by rank.
        contents: what is in each.
    """

    def __init__(self, directory: Path, kind: str, world_size: int, say: Callable[[str], None]) -> None:
        """Open the files ``{kind}_world_size_N_rank_R.pt``; each is told to ``say``.

        Raises:
            UserError: one is missing, damaged, or holds anything but tensors; it is named.
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
        """What the workers have of one tensor, which is found by the keys of ``path``.

        Raises:
            UserError: a file has no such tensor, or their parts do not make one.
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
            damaged = archive.testzip()  # torch itself does not look at the checksums
        if damaged is not None:
            raise ValueError(f"{damaged} in it is not what was written")
        with _safe_globals_of_our_own():
            named = sorted(get_unsafe_globals_in_checkpoint(file))
            foreign = next((name for name in named if not name.startswith(DISTRIBUTED)), None)
            if foreign is not None:
                raise ValueError(f"it names {foreign}, which is no part of a tensor")
            add_safe_globals([(_stand_in(name), name) for name in named])
            content = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
        if not isinstance(content, dict):
            raise TypeError("a mapping expected")
    except Exception as error:  # whatever it is that a hostile file brings about
        raise UserError(f"checkpoint file {file}: not readable ({one_line(error)})") from None
    return content


@contextmanager
def _safe_globals_of_our_own() -> Iterator[None]:
    """What other libraries have declared safe is not, here."""
    theirs = get_safe_globals()
    clear_safe_globals()
    try:
        yield
    finally:
        clear_safe_globals()
        add_safe_globals(theirs)


def _stand_in(name: str) -> type:
    last = name.rpartition(".")[2]
    return type(last, (_Sharded if last == "DTensor" else _Inert,), {})


def _pieces(values: Sequence[object]) -> Pieces:
    """The pieces of a tensor from what each worker, by rank, has of it."""
    first = values[0]
    if not isinstance(first, _Sharded):  # a buffer, or the number of steps: each has all of it
        tensors = [_plain(value) for value in values]
        if not all(torch.equal(tensor, tensors[0]) for tensor in tensors):
            raise ValueError("is not the same in the files of all ranks")
        return Pieces((tensors[0],), 0, tensors[0].shape)
    shape, dims = first.shape, set()
    parts: dict[int, Tensor] = {}
    for value in values:
        if not isinstance(value, _Sharded) or value.shape != shape:
            raise ValueError("is another tensor in another rank's file")
        place = _place(value)
        if place is not None:
            dims.add(place[0])
            parts[place[1]] = _plain(value._local_tensor)
    ordered = tuple(part for _, part in sorted(parts.items()))
    (dim,) = dims
    pieces = Pieces(ordered, dim, shape)
    if Pieces(tuple(part.to("meta") for part in ordered), dim, shape).whole().shape != shape:
        found = ", ".join(str(list(part.shape)) for part in ordered)
        raise ValueError(f"its parts, {found}, do not make {list(shape)}")
    return pieces


def _place(value: _Sharded) -> tuple[int, int] | None:
    """Along which dimension the tensor is cut, and which piece, by number, this is; None if it is a copy.

    A mesh of workers has an axis to cut along (``fsdp``), and may have one of copies (``ddp``).
    """
    layout = value._spec.state
    placements, coordinates = layout["placements"], layout["mesh"].state["_coordinate_on_dim"]
    kinds = [type(placement).__name__ for placement in placements]
    if set(kinds) - {"Shard", "Replicate"} or kinds.count("Shard") > 1:
        raise ValueError(f"is laid out over the ranks as {kinds}; put together is what is cut along one axis (FSDP2)")
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
