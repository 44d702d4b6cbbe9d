import subprocess
import sys

import pytest

import tubelet


def test_importing_the_package_does_not_import_torch():
    code = "import sys, tubelet; sys.exit(int('torch' in sys.modules or 'av' in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", ["upscale", "create_model", "list_models", "load_model"])
def test_public_names(name):
    assert name in tubelet.__all__
    assert name in dir(tubelet)
    assert callable(getattr(tubelet, name))


def test_packages_and_version_are_reached_from_the_root():
    assert callable(tubelet.ops.imresize)
    assert tubelet.__version__.count(".") >= 2


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'upscael'"):
        tubelet.upscael  # noqa: B018
