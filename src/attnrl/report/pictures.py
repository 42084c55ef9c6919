"""What all pictures need: matplotlib without a screen (``pip install attnrl[report]``), and a file to go to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attnrl.errors import UserError


def pyplot_for(command: str) -> Any:
    """matplotlib's ``pyplot``, drawing to files only.

    Raises:
        UserError: it is missing; the message names ``command``.
    """
    try:
        import matplotlib
    except ImportError:
        raise UserError(f"{command} needs matplotlib: pip install 'attnrl[report]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save_picture(figure: Any, output: Path) -> None:
    """Write a figure of :func:`pyplot_for` in the format that the name of ``output`` says, and close it.

    Raises:
        UserError: it cannot be written.
    """
    from matplotlib import pyplot

    try:
        if not output.suffix:  # matplotlib would add one
            raise ValueError("expected a name that ends in .png, .svg or the like")
        output.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(output, dpi=150)
    except (ValueError, OSError) as error:
        raise UserError(f"{output}: {error}") from None
    finally:
        pyplot.close(figure)
