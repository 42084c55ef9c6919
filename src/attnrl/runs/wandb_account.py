"""Find out without wandb whether wandb would ask for an API key: wandb asks on a terminal and fails elsewhere.

wandb reads the environment, the settings files that ``wandb login`` and ``wandb offline`` write, and ``.netrc``.
"""

from __future__ import annotations

import configparser
import netrc
import os
from pathlib import Path
from urllib.parse import urlsplit

from attnrl.errors import UserError

OFFLINE_MODES = {"offline", "dryrun", "disabled"}
CREDENTIALS = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
DEFAULT_HOST = "https://api.wandb.ai"


def require_wandb_account() -> None:
    """Check that wandb has an API key or is offline.

    Raises:
        UserError: with the ways to give wandb a key and to do without.
    """
    settings = _settings()
    mode = os.environ.get("WANDB_MODE") or settings.get("mode") or ""
    if mode.lower() in OFFLINE_MODES or os.environ.get("WANDB_DISABLED", "").lower() in {"true", "1"}:
        return
    if any(os.environ.get(name) for name in CREDENTIALS) or settings.get("api_key"):
        return
    host = os.environ.get("WANDB_BASE_URL") or settings.get("base_url") or DEFAULT_HOST
    if not _has_netrc_entry(urlsplit(host).netloc):
        raise UserError(
            "log.trackers: wandb has no API key: set WANDB_API_KEY (or call wandb login once), "
            "set WANDB_MODE=offline, or leave wandb out of log.trackers"
        )


def _settings() -> dict[str, str]:
    """Return the entries of wandb's settings files; the file of the working directory goes first."""
    configured = Path(os.environ.get("WANDB_CONFIG_DIR") or Path.home() / ".config" / "wandb")
    found: dict[str, str] = {}
    for file in (configured / "settings", Path("wandb") / "settings"):
        parser = configparser.ConfigParser(interpolation=None)
        try:
            parser.read(file, encoding="utf-8")
        except (configparser.Error, OSError, UnicodeDecodeError):
            continue  # wandb ignores the file too
        found |= dict(parser["default"]) if "default" in parser else {}
    return found


def _has_netrc_entry(host: str) -> bool:
    """Return True if ``.netrc`` has a password for ``host``."""
    given = os.environ.get("NETRC")
    for file in [Path(given)] if given else [Path.home() / name for name in (".netrc", "_netrc")]:
        try:
            entry = netrc.netrc(file).authenticators(host)
        except (netrc.NetrcParseError, OSError, UnicodeDecodeError):
            continue
        if entry is not None and entry[2]:
            return True
    return False
