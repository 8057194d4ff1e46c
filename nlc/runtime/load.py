"""Load emitted code as a module object, from its text.

In: the text of an emitted file and a name. Out: a module that is not in `sys.modules` under a name
anything else could have; its source can be shown in tracebacks.
"""

from __future__ import annotations

import hashlib
import linecache
import sys
from collections.abc import Mapping
from types import ModuleType


def load_module(text: str, name: str) -> ModuleType:
    """Run the text as a module; the same text gives the same module."""
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    full = f"nlc_emitted_{name}_{digest}"
    if full in sys.modules:
        return sys.modules[full]
    return _run(text, full, "")


def load_package(texts: Mapping[str, str], name: str) -> ModuleType:
    """Run `kernels.py`, then `model.py`, as modules of one package; returns the latter."""
    digest = hashlib.sha256("".join(texts.values()).encode()).hexdigest()[:16]
    full = f"nlc_emitted_{name}_{digest}"
    if f"{full}.model" in sys.modules:
        return sys.modules[f"{full}.model"]
    package = ModuleType(full)
    package.__path__ = []
    sys.modules[full] = package
    package.kernels = _run(texts["kernels.py"], f"{full}.kernels", full)  # type: ignore[attr-defined]
    return _run(texts["model.py"], f"{full}.model", full)


def _run(text: str, full: str, package: str) -> ModuleType:
    path = f"<{full}>"
    module = ModuleType(full)
    module.__file__ = path
    if package:
        module.__package__ = package
    linecache.cache[path] = (len(text), None, text.splitlines(keepends=True), path)
    sys.modules[full] = module
    try:
        exec(compile(text, path, "exec"), module.__dict__)
    except BaseException:
        del sys.modules[full]
        raise
    return module
