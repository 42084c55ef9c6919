"""Public names of the package: imported on first use, from their own modules."""

import subprocess
import sys

import pytest

import attnrl


def test_every_public_name_is_there() -> None:
    assert {name: getattr(attnrl, name).__name__ for name in attnrl.__all__} == {
        "TrainConfig": "TrainConfig",
        "forward_context_influence": "forward_context_influence",
        "load_config": "load_config",
    }


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        _ = attnrl.nothing


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, attnrl; attnrl.load_config; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
