"""Models of the Hugging Face Hub: look up a snapshot in the cache, or download the snapshot.

Only safetensors, JSON, tokenizer files and chat templates are downloaded: no pickles, and Python files only with
``trust_remote_code``. Without a network the lookup ends after :data:`ANSWER_SECONDS`, without a retry.
"""

from __future__ import annotations

import json
import os
import queue
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from attnrl.errors import CREDENTIALS, one_line

FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken")
OTHER_FILES = ("*/*", "consolidated*")  # files of subdirectories, and second copies of the weights
ANSWER_SECONDS = 3.0  # time limit for the first answer of the Hub, unless HF_HUB_ETAG_TIMEOUT is set
_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w.-]+(?:/[\w.-]+)*))?", re.ASCII)
LONGEST_ID = 96
_ADDRESS = re.compile(r"(?:hf://|(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/)([\w.-]+/[\w.-]+)", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")

Result = TypeVar("Result")


class HubError(Exception):
    """No snapshot of a model: the message says why, and the way out."""


@dataclass(frozen=True)
class Snapshot:
    """A model of the Hub in the cache.

    Attributes:
        directory: directory of the files.
        commit: commit hash of the files.
        unreachable: why the newest commit is unknown; empty if the Hub answered or the commit was given.
    """

    directory: Path
    commit: str
    unreachable: str = ""


def split_hub_id(name: str) -> tuple[str, str | None] | None:
    """Return ``OWNER/NAME`` and the revision of ``OWNER/NAME@REVISION``; None if ``name`` is no id of the Hub."""
    match = _HUB_ID.fullmatch(name)
    if match is None or ".." in name or "--" in match[1] or match[1].endswith(".git") or len(match[1]) > LONGEST_ID:
        return None
    return match[1], match[2]


def id_in_address(name: str) -> str | None:
    """Return ``OWNER/NAME`` of an address such as ``https://huggingface.co/OWNER/NAME/tree/main``, else None."""
    match = _ADDRESS.match(name)
    return match[1] if match else None


def find_snapshot(repository: str, revision: str | None, *, trust_remote_code: bool = False) -> Snapshot:
    """Return the snapshot of a revision: the newest commit if the Hub answers, else the cached commit.

    Args:
        repository: ``OWNER/NAME``.
        revision: branch, tag or commit hash; None for the default branch.
        trust_remote_code: download Python files as well.

    Raises:
        HubError: the Hub has no such model or revision, or the model is neither cached nor can be downloaded.
    """
    cached = find_cached(repository, revision, trust_remote_code=trust_remote_code)
    if cached is not None and revision is not None and _COMMIT.fullmatch(revision):
        return cached
    if constants.HF_HUB_OFFLINE:
        if cached is None:
            raise HubError(_not_here(repository, revision, "HF_HUB_OFFLINE is set"))
        return Snapshot(cached.directory, cached.commit, "HF_HUB_OFFLINE is set")
    try:
        files = _list_files(repository, revision)
    except HubError:
        raise
    except Exception as error:  # of huggingface_hub and of its HTTP client, whose package differs between releases
        reason = f"{constants.ENDPOINT} cannot be reached ({one_line(error)[:150]})"
        reason = CREDENTIALS.sub("***", reason)
        if cached is None:
            raise HubError(_not_here(repository, revision, reason)) from None
        return Snapshot(cached.directory, cached.commit, reason)
    _require_weights(repository, files)
    try:
        directory = Path(_snapshot(repository, revision, trust_remote_code, local_only=False))
    except Exception as error:  # as above, and a full disk
        raise HubError(f"the download failed ({type(error).__name__}: {one_line(error)[:300]})") from None
    return Snapshot(directory, directory.name)


def find_cached(repository: str, revision: str | None, *, trust_remote_code: bool = False) -> Snapshot | None:
    """Return the cached snapshot of a revision, without the network; None without a complete snapshot."""
    try:
        directory = Path(_snapshot(repository, revision, trust_remote_code, local_only=True))
    except (LocalEntryNotFoundError, ValueError, OSError):
        return None
    return None if missing_file(directory) else Snapshot(directory, directory.name)


def missing_file(directory: Path) -> str | None:
    """Return the first file that a snapshot lacks: the configuration, or a file of weights; None if complete."""
    if (directory / "adapter_config.json").is_file():
        return None
    if not (directory / "config.json").is_file():
        return "config.json"
    try:
        shards = json.loads((directory / "model.safetensors.index.json").read_text(encoding="utf-8"))["weight_map"]
        names = sorted({str(shard) for shard in shards.values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None if any(directory.glob("*.safetensors")) else "model.safetensors"
    return next((name for name in names if not (directory / name).is_file()), None)


def cached_models() -> list[str]:
    """Return the ids of the models in the cache of the Hub."""
    try:
        folders = sorted(Path(constants.HF_HUB_CACHE).glob("models--*--*"))
    except OSError:
        return []
    return [folder.name.removeprefix("models--").replace("--", "/") for folder in folders]


def _snapshot(repository: str, revision: str | None, trust_remote_code: bool, *, local_only: bool) -> str:
    return snapshot_download(
        repository,
        revision=revision,
        allow_patterns=[*FILES, *(["*.py"] if trust_remote_code else [])],
        ignore_patterns=list(OTHER_FILES),
        local_files_only=local_only,
    )


def _not_here(repository: str, revision: str | None, reason: str) -> str:
    chosen = f" --revision {revision}" if revision else ""
    return (
        f"not in the cache {constants.HF_HUB_CACHE} as a whole, and {reason}: where there is a network, "
        f"`hf download {repository}{chosen} --local-dir DIRECTORY`, then give DIRECTORY as the model"
    )


def _list_files(repository: str, revision: str | None) -> list[str]:
    """Return the names of the files outside subdirectories.

    Raises:
        HubError: the Hub answered, and has no such model or revision.
        Exception: the Hub did not answer.
    """
    seconds = float(constants.HF_HUB_ETAG_TIMEOUT) if "HF_HUB_ETAG_TIMEOUT" in os.environ else ANSWER_SECONDS
    try:
        info = _within(seconds, lambda: HfApi().model_info(repository, revision=revision, timeout=seconds))
    except GatedRepoError:
        page = f"{constants.ENDPOINT}/{repository}"
        raise HubError(f"access is granted on request: accept the terms at {page}, and set HF_TOKEN") from None
    except RepositoryNotFoundError:
        raise HubError("the Hub has no public model of this name (a private model needs HF_TOKEN)") from None
    except RevisionNotFoundError:
        raise HubError(f"the Hub has no revision {revision} of the model {repository}") from None
    except HfHubHTTPError as error:
        raise ConnectionError(one_line(error).partition(" For more information")[0]) from None
    return [file.rfilename for file in info.siblings or () if "/" not in file.rfilename]


def _within(seconds: float, call: Callable[[], Result]) -> Result:
    """Return ``call()``; raise TimeoutError after ``seconds``.

    The call runs in a daemon thread: neither a lookup of a host name nor the addresses tried one after another respect
    the HTTP client's time limit.
    """
    answers: queue.SimpleQueue[Result | Exception] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put(call())
        except Exception as error:
            answers.put(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        answer = answers.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds:g} s") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _require_weights(repository: str, files: Sequence[str]) -> None:
    """Check, before anything is downloaded, that the model has a configuration and safetensors.

    Raises:
        HubError: the model has neither.
    """
    if not {"config.json", "adapter_config.json"} & set(files):
        raise HubError(f"{repository} has no config.json: not a model that transformers loads")
    if not any(file.endswith(".safetensors") for file in files):
        found = next((file for file in files if file.endswith((".bin", ".pt", ".pth", ".gguf", ".h5"))), "no weights")
        raise HubError(f"{repository} has no safetensors weights ({found}): convert the weights to safetensors first")
