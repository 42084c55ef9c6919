"""Names of models: shipped models, directories, runs, and models of the Hugging Face Hub."""

from __future__ import annotations

import difflib
import json
import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from attnrl.errors import UserError
from attnrl.local.checkpoint import find_checkpoint, list_checkpoints
from attnrl.local.hub import HubError, Snapshot, cached_models, find_cached, find_snapshot, id_in_address, split_hub_id
from attnrl.local.model_files import refuse_placeholders

SHIPPED = resources.files("attnrl") / "models"
HUB_ID = "a model of the Hugging Face Hub is OWNER/NAME or OWNER/NAME@REVISION"
ADAPTER = "adapter_config.json"
MAX_NAMES = 4  # names listed in a message


@dataclass(frozen=True)
class ModelSource:
    """The directory that the name of a model stands for.

    Attributes:
        name: the name as given by the user.
        directory: directory with ``config.json`` and the weights.
        commit: commit hash of a model of the Hub; None for other models.
        notes: remarks on the choice of the directory, one line each.
    """

    name: str
    directory: Path
    commit: str | None = None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return str(self.directory) if self.commit is None else f"{self.name}, commit {self.commit}, {self.directory}"


def shipped_models() -> list[str]:
    """Return the names of the models shipped with the package."""
    return sorted(entry.name for entry in SHIPPED.iterdir() if (entry / "config.json").is_file())


def find_model(name: str, *, commit: str | None = None, trust_remote_code: bool = False) -> ModelSource:
    """Return the directory of a model; a model of the Hub is downloaded into the cache.

    Args:
        name: a shipped model; a directory (``~`` is the home directory); a run directory, for the newest undamaged
            checkpoint; or ``OWNER/NAME`` or ``OWNER/NAME@REVISION`` of the Hugging Face Hub.
        commit: commit of a model of the Hub, in place of the newest commit of the revision.
        trust_remote_code: download Python files of a model of the Hub as well.

    Raises:
        UserError: ``name`` is none of these; near names and the way out are given.
    """
    local = _find_local(name)
    if local is not None:
        return local
    repository, named = _hub_id(name)
    revision = commit or named
    owner = repository.partition("/")[0]
    if revision is None and os.path.isdir(owner):  # the name may be a misspelt path
        cached = find_cached(repository, None, trust_remote_code=trust_remote_code)
        if cached is None:
            raise UserError(
                f"model {name}: no such directory ({_known(name)}); {owner}/ is a directory here, so {name} is not "
                f"looked up on the Hugging Face Hub: for the Hub's model write {name}@main"
            )
        return _from_hub(name, cached)
    try:
        return _from_hub(name, find_snapshot(repository, revision, trust_remote_code=trust_remote_code))
    except HubError as error:
        raise UserError(
            f"model {name}: no such directory ({_known(name)}); as a model of the Hugging Face Hub: {error}"
        ) from None


def find_model_here(name: str) -> ModelSource | None:
    """Return the directory of a model on this machine; None for a model of the Hub that is not in the cache.

    Raises:
        UserError: the directory holds no model, or ``name`` is neither a directory nor an id of the Hub.
    """
    local = _find_local(name)
    if local is not None:
        return local
    cached = find_cached(*_hub_id(name))
    return None if cached is None else _from_hub(name, cached)


def _hub_id(name: str) -> tuple[str, str | None]:
    """Return repository and revision of a model of the Hub.

    Raises:
        UserError: ``name`` is no id of the Hub; the name is no directory either.
    """
    hub = split_hub_id(name)
    if hub is None:
        raise UserError(f"model {name}: no such directory ({_known(name)}; {HUB_ID})")
    return hub


def _find_local(name: str) -> ModelSource | None:
    """Return the shipped model or the directory; None if no directory has the name.

    Raises:
        UserError: the directory holds no model, or the name is a file.
    """
    if name in shipped_models():
        return ModelSource(name, Path(str(SHIPPED / name)))
    path = os.path.expanduser(name)
    if name.strip() and os.path.isdir(path):
        return _in_directory(name, Path(path))
    if os.path.isfile(path):
        raise UserError(f"model {name}: is a file: give the directory with config.json and the weights")
    return None


def _from_hub(name: str, snapshot: Snapshot) -> ModelSource:
    _refuse_adapter(name, snapshot.directory)
    refuse_placeholders(name, snapshot.directory)
    where = f"model {name}: commit {snapshot.commit} of the Hugging Face Hub, in {snapshot.directory}"
    behind = f"; the cached commit may not be the newest: {snapshot.unreachable}" if snapshot.unreachable else ""
    return ModelSource(name, snapshot.directory, snapshot.commit, (where + behind,))


def _in_directory(name: str, path: Path) -> ModelSource:
    """Return the model in a directory, or the newest checkpoint of a run directory.

    Raises:
        UserError: the directory holds neither.
    """
    _refuse_adapter(name, path)
    refuse_placeholders(name, path)
    if (path / "config.json").is_file():
        return ModelSource(name, path)
    for root in (path / "checkpoints", path):
        if list_checkpoints(root):
            try:
                point = find_checkpoint("auto", root)
            except UserError as error:
                raise UserError(f"model {name}: {error}") from None
            if point.checkpoint is not None:
                newest = point.checkpoint
                note = f"model {name}: a run directory: the newest checkpoint, step {newest.step}, {newest.directory}"
                return ModelSource(name, newest.directory, None, (*point.skipped, note))
    raise UserError(f"model {name}: {_without_model(path)}")


def _without_model(path: Path) -> str:
    """Return why a directory is no model, with the way out."""
    if (path / "actor").is_dir() or any((*path.glob("global_step_*/actor"), *path.glob("*/global_step_*/actor"))):
        return f"a checkpoint of verl: run attnrl export {path} OUTPUT, and give OUTPUT as the model"
    if (path / "config.yaml").is_file():
        return "a run directory without a checkpoint (the first checkpoint is written after checkpoint.every steps)"
    if path.name.startswith("models--") and (path / "snapshots").is_dir():
        return f"the cache of a model of the Hub: write {path.name.removeprefix('models--').replace('--', '/')}"
    inside = sorted(config.parent.name for config in path.glob("*/config.json"))
    if not inside:
        return "has no config.json"
    more = f" and {len(inside) - MAX_NAMES} more" if len(inside) > MAX_NAMES else ""
    return f"has no config.json, but holds models: {', '.join(inside[:MAX_NAMES])}{more}: choose one of these"


def _refuse_adapter(name: str, path: Path) -> None:
    """Refuse the directory of an adapter, which holds only changes to the weights of a base model.

    Raises:
        UserError: naming the base model and the way out.
    """
    if (path / ADAPTER).is_file():
        raise UserError(
            f"model {name}: a LoRA adapter of {_base_model(path)} ({ADAPTER}), not a whole model: merge adapter and "
            f"base model (pip install peft; attnrl export {path} MERGED), and give MERGED as the model"
        )


def _base_model(adapter: Path) -> str:
    try:
        base = json.loads((adapter / ADAPTER).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        base = None
    return base[:200] if isinstance(base, str) and base else "an unnamed base model"


def _known(name: str) -> str:
    """Return the clause of a message with near names, else with the names of the shipped models."""
    near = [other for other in _near_names(name) if other != name]
    return f"near: {', '.join(near)}" if near else f"shipped models: {', '.join(shipped_models())}"


def _near_names(name: str) -> list[str]:
    """Return up to :data:`MAX_NAMES` names that ``name`` may be a misspelling of: models, and existing paths."""
    address = id_in_address(name)
    if address is not None:
        return [address]
    near = difflib.get_close_matches(name[:200], [*shipped_models(), *cached_models()], n=2)
    path = Path(os.path.expanduser(os.path.expandvars(name.removeprefix("file://"))))
    if str(path) != name and os.path.isdir(path):
        return [str(path)]
    missing = path
    while missing.parent != missing and not os.path.isdir(missing.parent):
        missing = missing.parent
    try:
        neighbours = [entry.name for entry in os.scandir(missing.parent) if entry.is_dir()]
    except (OSError, ValueError):
        neighbours = []
    for neighbour in difflib.get_close_matches(missing.name[:200], neighbours, n=2):
        whole = missing.parent / neighbour / path.relative_to(missing)
        near.append(str(whole if os.path.isdir(whole) else missing.parent / neighbour))
    return near[:MAX_NAMES]
