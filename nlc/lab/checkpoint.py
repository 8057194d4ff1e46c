"""Checkpoints: any nest of tensors and plain values in one safetensors file, written whole or not.

In: a path and a nest of dicts, lists, tuples, tensors, numbers, strings and None. Out: the same,
read back bit by bit. A file that is there is complete: it is written beside its place and renamed.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nlc.lab.faults import LabError


def save(path: Path, nest: object) -> None:
    """Write a nest atomically: the old file stays until the new one is on the disk."""
    tensors: dict[str, Tensor] = {}
    outline = json.dumps(_outline(nest, "", tensors), separators=(",", ":"))
    beside = path.with_name(f".{path.name}.new")
    try:
        save_file(_separate(tensors), beside, metadata={"outline": outline})
        with open(beside, "rb") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise LabError(f"cannot write {path}: {error}", "a folder with room on its disk") from None


def load(path: Path) -> Any:
    """Read what `save` wrote."""
    try:
        with safe_open(path, framework="pt") as file:
            outline = (file.metadata() or {})["outline"]
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return _fill(json.loads(outline), tensors)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise LabError(f"cannot read the checkpoint {path}: {error}", "an undamaged one") from None


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    beside = path.with_name(f".{path.name}.new")
    try:
        with open(beside, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        raise LabError(f"cannot write {path}: {error.strerror}", "another folder") from None


def _separate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give each tensor memory of its own, as the format wants it."""
    seen: set[int] = set()
    separate = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        pointer = tensor.untyped_storage().data_ptr()
        if pointer in seen or tensor.untyped_storage().nbytes() != tensor.nbytes:
            tensor = tensor.clone()
        seen.add(pointer)
        separate[name] = tensor
    return separate


def _outline(value: object, name: str, tensors: dict[str, Tensor]) -> object:
    """Describe a nest in JSON; tensors go aside, named by where they are."""
    match value:
        case Tensor():
            while name in tensors:
                name += "_"
            tensors[name] = value
            return {"tensor": name}
        case dict():
            pairs = [[k, _outline(v, f"{name}.{k}".lstrip("."), tensors)] for k, v in value.items()]
            return {"dict": pairs}
        case list() | tuple():
            items = [_outline(v, f"{name}.{i}".lstrip("."), tensors) for i, v in enumerate(value)]
            return {"list" if isinstance(value, list) else "tuple": items}
        case None | bool() | int() | float() | str():
            return value
    raise TypeError(f"a checkpoint cannot hold {type(value).__name__} (at {name})")


def _fill(outline: object, tensors: dict[str, Tensor]) -> object:
    match outline:
        case {"tensor": str(name)}:
            return tensors[name]
        case {"dict": list(pairs)}:
            return {key: _fill(value, tensors) for key, value in pairs}
        case {"list": list(items)}:
            return [_fill(item, tensors) for item in items]
        case {"tuple": list(items)}:
            return tuple(_fill(item, tensors) for item in items)
    return outline


def is_finite(nest: object) -> bool:
    """Say whether every floating-point tensor of a nest is finite."""
    match nest:
        case Tensor():
            return not nest.is_floating_point() or bool(torch.isfinite(nest).all())
        case dict():
            return all(is_finite(value) for value in nest.values())
        case list() | tuple():
            return all(is_finite(value) for value in nest)
    return True
