"""nlc: write a nested learning system as a spec, compile it to PyTorch.

    system   = nlc.load("my.nl")          compiled = nlc.compile(system)
    report   = nlc.check(system)          model    = compiled.model()

Importing this loads no torch; `compile` does.
"""

from nlc.compiler import Report, check, compile, load, parse
from nlc.diagnostics import Diagnostic, SpecError
from nlc.ir.system import System

__version__ = "0.1.0"

__all__ = ["Diagnostic", "Report", "SpecError", "System", "check", "compile", "load", "parse"]
