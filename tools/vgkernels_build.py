"""PEP 517 backend: setuptools, told where the target environment's torch is. setup.py decides what to do with it.

An isolated build runs the target's interpreter with its site-packages hidden, and naming torch as a build requirement
would download a second one of several GB. Where none is found nothing is fetched: the package is then pure Python.
"""

import importlib.util
import site
import sys
import sysconfig

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  (the hooks that need no torch)


def show_torch():
    """Appends the target's site-packages, after the build's own, if that makes a torch findable."""
    if importlib.util.find_spec("torch"):
        return
    folders = [sysconfig.get_paths()[key] for key in ("purelib", "platlib")] + site.getsitepackages()
    if sys.prefix == sys.base_prefix:
        folders.append(site.getusersitepackages())
    for folder in dict.fromkeys(folders):
        sys.path.append(folder)
        if importlib.util.find_spec("torch"):
            return
        sys.path.remove(folder)


def get_requires_for_build_wheel(config_settings=None):
    return ["ninja"]


get_requires_for_build_editable = get_requires_for_build_wheel


def _with_torch(hook):
    def call(*arguments, **settings):
        show_torch()
        return hook(*arguments, **settings)

    return call


prepare_metadata_for_build_wheel = _with_torch(build_meta.prepare_metadata_for_build_wheel)
prepare_metadata_for_build_editable = _with_torch(build_meta.prepare_metadata_for_build_editable)
build_wheel = _with_torch(build_meta.build_wheel)
build_editable = _with_torch(build_meta.build_editable)
