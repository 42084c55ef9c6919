"""AttnRL: process-supervised reinforcement learning guided by the attention of the trained model.

The public names are imported on first use (PEP 562): ``import attnrl`` loads neither torch nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attnrl.config.load import load_config
    from attnrl.config.schema import TrainConfig
    from attnrl.fci import forward_context_influence

__version__ = "0.2.0.dev0"  # the only place of the version; pyproject.toml reads this line
__all__ = ["TrainConfig", "forward_context_influence", "load_config"]

#: Module of each public name.
_MODULES = {
    "TrainConfig": "attnrl.config.schema",
    "forward_context_influence": "attnrl.fci",
    "load_config": "attnrl.config.load",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
