"""The emitted package: its files, and a folder that is replaced only when the new one is whole.

In: file names with their texts, a folder. Out: the folder. Raises `FileExistsError` where the
folder holds something that no package of ours does.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

FILES = frozenset({
    "model.py", "kernels.py", "optimizers.py", "spec.nl", "spec.yaml", "levels.json", "levels.svg",
})  # fmt: skip
# what running a package may leave beside its files
LEFT = frozenset({"__pycache__", ".DS_Store"})


def is_ours(folder: Path) -> bool:
    """Say whether a folder is empty, or a package that was written before."""
    names = {path.name for path in folder.iterdir()} - LEFT
    return not names or ("model.py" in names and "levels.json" in names and names <= FILES)


def write_package(folder: Path, texts: Mapping[str, str]) -> None:
    """Write all files beside the folder, then put them in its place."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise FileExistsError(f"{folder} is not a folder; name another one")
    if folder.exists() and not is_ours(folder):
        raise FileExistsError(
            f"{folder} holds other files than an emitted package; name an empty or a new folder"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for name, text in texts.items():
            fresh.joinpath(name).write_text(text, encoding="utf-8", newline="\n")
        fresh.chmod(0o755)
        old = None
        if folder.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
            folder.rename(old / "package")
        try:
            fresh.rename(folder)
        except BaseException:
            if old is not None:
                (old / "package").rename(folder)
                old.rmdir()
            raise
        if old is not None:
            shutil.rmtree(old)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
