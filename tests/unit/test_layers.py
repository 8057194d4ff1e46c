"""Imports go one way, everything that is a package is installed, and analysis loads no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"codegen": ROOT / "codegen", "grammar": ROOT / "grammar", "specs": ROOT / "specs"}

# what each layer may import besides itself; a module's layer is the longest name that fits
ALLOWED: dict[str, str] = {
    "source": "",
    "diagnostics": "source",
    "render": "source diagnostics",
    "errors": "source diagnostics render",
    "grammar": "",
    "specs": "",
    # the tree is data, and a system points at the one it came from
    "syntax.tree": "source",
    "ir": "source diagnostics syntax.tree",
    "syntax": "source diagnostics render errors ir syntax.tree grammar specs",
    "semantics": "source diagnostics render errors ir syntax.tree grammar specs syntax",
    "passes": "source diagnostics render errors ir syntax.tree",
    "codegen": "source ir syntax.tree",
    "runtime": "source ir syntax.tree",
    "view": "source ir syntax.tree",
    "compiler": "source diagnostics render errors ir syntax.tree grammar specs syntax semantics "
    "passes codegen runtime view",
}
ALLOWED["library"] = ALLOWED["semantics"]
ALLOWED["compiler"] += " library"
ALLOWED["optimizers"] = ALLOWED["semantics"] + " semantics library"
ALLOWED["compiler"] += " optimizers"
ALLOWED["compiled"] = ALLOWED["compiler"]
ALLOWED["compiler"] += " compiled"
ALLOWED["nlc"] = ALLOWED["compiler"] + " compiler"
ALLOWED["lab"] = ALLOWED["nlc"] + " nlc"
ALLOWED["cli"] = ALLOWED["lab"] + " lab"
ALLOWED["__main__"] = "cli"


def modules() -> dict[str, Path]:
    """All modules of the project by their installed names."""
    found = {}
    for path in (ROOT / "nlc").rglob("*.py"):
        found[".".join(path.relative_to(ROOT).with_suffix("").parts)] = path
    for name, folder in FOLDERS.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join(("nlc", name, *parts))] = path
    return {name.removesuffix(".__init__"): path for name, path in found.items()}


def layer(module: str) -> str:
    """The layer of a module: `nlc.ir.shape` -> `ir`, the package itself -> `nlc`."""
    parts = module.split(".")[1:]
    if ".".join(parts[:2]) in ALLOWED:
        return ".".join(parts[:2])
    return parts[0] if parts else "nlc"


def imported(path: Path, module: str) -> set[str]:
    """The layers that a file imports, wherever in the file it does so."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {layer(a.name) for a in node.names if a.name.split(".")[0] == "nlc"}
        elif isinstance(node, ast.ImportFrom) and node.level:
            pytest.fail(f"{module}: write imports from the top: nlc....")
        elif isinstance(node, ast.ImportFrom) and node.module == "nlc":
            found |= {a.name if f"nlc.{a.name}" in MODULES else "nlc" for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            # `from nlc.syntax import tree` may mean a module
            inner = [f"{node.module}.{a.name}" for a in node.names]
            found |= {layer(name if name in MODULES else node.module) for name in inner}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nlc."):
            found.add(layer(node.module or ""))
    return found


MODULES = modules()


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_go_one_way(module: str) -> None:
    own = layer(module)
    assert own in ALLOWED, f"{module} belongs to no layer: name it in ALLOWED"
    beyond = imported(MODULES[module], module) - {own} - set(ALLOWED[own].split())
    assert not beyond, f"{module} (layer {own}) may not import {', '.join(sorted(beyond))}"


def test_every_package_is_installed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    folders = {module for module, path in MODULES.items() if path.name == "__init__.py"}
    assert sorted(folders) == sorted(settings["packages"])
    for module in folders:
        assert MODULES[module].is_file()


def test_every_folder_of_code_is_a_package() -> None:
    for path in MODULES.values():
        assert (path.parent / "__init__.py").is_file(), path.parent


@pytest.mark.parametrize("module", ["nlc", "nlc.cli", "nlc.compiler"])
def test_analysis_loads_no_torch(module: str) -> None:
    code = (
        f"import sys, {module}; "
        "print([m for m in ('torch', 'numpy', 'triton', 'safetensors') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
