"""nlc: write a nested learning system as a spec, compile it to PyTorch.

    system   = nlc.load("my.nl")          compiled = nlc.compile(system)
    report   = nlc.check(system)          model    = compiled.model()

Importing this loads next to nothing, and no torch before `compile`.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nlc.compiler import Report, check, compile, load, parse
    from nlc.diagnostics import Diagnostic, SpecError
    from nlc.ir.system import System

__version__ = "0.1.0"

__all__ = ["Diagnostic", "Report", "SpecError", "System", "check", "compile", "load", "parse"]

# where a name comes from, if not from the compiler
_WHERE = {
    "Diagnostic": "nlc.diagnostics",
    "SpecError": "nlc.diagnostics",
    "System": "nlc.ir.system",
}


def __getattr__(name: str) -> object:
    """Load what is asked for when it is asked for."""
    if name not in __all__:
        raise AttributeError(f"module 'nlc' has no attribute {name!r}")
    from importlib import import_module

    found: object = getattr(import_module(_WHERE.get(name, "nlc.compiler")), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
