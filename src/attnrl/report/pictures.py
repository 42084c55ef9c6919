"""Shared parts of all pictures: matplotlib without a display (``pip install attnrl[report]``), and saving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attnrl.errors import UserError


def pyplot_for(command: str) -> Any:
    """Return matplotlib's ``pyplot`` with the file-only backend Agg.

    Raises:
        UserError: matplotlib is missing; the message names ``command``.
    """
    try:
        import matplotlib
    except ImportError:
        raise UserError(f"{command} needs matplotlib: pip install 'attnrl[report]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save_picture(figure: Any, output: Path) -> None:
    """Write ``figure`` in the format of the suffix of ``output``, and close ``figure``.

    Raises:
        UserError: ``output`` has no suffix or an unknown suffix, or cannot be written.
    """
    from matplotlib import pyplot

    try:
        if not output.suffix:  # matplotlib would add one
            raise ValueError("expected a file name with a suffix such as .png or .svg")
        output.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(output, dpi=150)
    except (ValueError, OSError) as error:
        raise UserError(f"{output}: {error}") from None
    finally:
        pyplot.close(figure)
