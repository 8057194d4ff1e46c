"""Run folders: everything an experiment was made of and came to, in one place.

    run.json        what was asked: command, settings, data, versions
    spec/           the spec as it was read, with the files beside it that it uses
    package/        the emitted package that was trained
    checkpoints/    step-00000100.safetensors, the last ones
    metrics.jsonl   a line per step, and per evaluation

In: a folder. Out: a `Run`. Does not train.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nlc.lab import checkpoint
from nlc.lab.faults import LabError

# checkpoints that are kept: the last, and one before it
KEPT = 2


@dataclass(frozen=True)
class Settings:
    """How a run trains; the same settings, spec and data give the same numbers."""

    batch: int = 8
    length: int = 256
    seed: int = 0
    steps: int | None = None
    minutes: float | None = None
    eval_every: int = 100
    save_every: int | None = None
    eval_bytes: int = 32768
    device: str = "cpu"
    threads: int = 1
    # how many tokens a probe reads at each measurement; None where nothing is probed
    probe: int | None = None


@dataclass(frozen=True)
class Origin:
    """Where a run came from: `spec` is a path in the folder, `set` what `--set` changed."""

    name: str
    spec: str
    set: Mapping[str, str]
    target: str
    data: Mapping[str, str]
    command: str
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Run:
    """A run folder that is whole."""

    folder: Path
    origin: Origin
    settings: Settings

    @property
    def spec(self) -> Path:
        """The spec's copy."""
        return self.folder / self.origin.spec

    @property
    def metrics(self) -> Path:
        """The file of measurements."""
        return self.folder / "metrics.jsonl"

    @property
    def figure(self) -> Path:
        """The picture of what probes have found."""
        return self.folder / "probes.svg"

    def checkpoints(self) -> list[Path]:
        """All checkpoints, oldest first."""
        return sorted((self.folder / "checkpoints").glob("step-*.safetensors"))

    def save(self, step: int, nest: Mapping[str, object]) -> Path:
        """Write the checkpoint of a step and drop those that are too old."""
        path = self.folder / "checkpoints" / f"step-{step:08d}.safetensors"
        checkpoint.save(path, {"step": step, **nest})
        for old in self.checkpoints()[:-KEPT]:
            with contextlib.suppress(OSError):
                old.unlink()
        return path

    def last(self) -> dict[str, Any]:
        """Read the newest checkpoint that can be read."""
        damaged: LabError | None = None
        for path in reversed(self.checkpoints()):
            try:
                found: dict[str, Any] = checkpoint.load(path)
                return found
            except LabError as error:
                damaged = damaged or error
        raise damaged or LabError(
            f"{self.folder} has no checkpoint yet", "train it first: nlc train SPEC"
        )

    def note(self, **values: object) -> None:
        """Append a line to the measurements."""
        try:
            with open(self.metrics, "a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")
        except OSError as error:
            raise LabError(
                f"cannot write {self.metrics}: {error.strerror}", "a folder with room on its disk"
            ) from None

    def forget_after(self, step: int) -> None:
        """Drop measurements later than a step, and a line that a kill cut short."""
        kept = [line for line in self.measurements() if line.get("step", 0) <= step]
        checkpoint.write_text(self.metrics, "".join(json.dumps(line) + "\n" for line in kept))

    def measurements(self) -> list[dict[str, Any]]:
        """Read the measurements that are whole."""
        found = []
        try:
            lines = self.metrics.read_text("utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise LabError(f"cannot read {self.metrics}: {error.strerror}", "a whole run") from None
        for line in lines:
            with contextlib.suppress(ValueError):
                value = json.loads(line)
                if isinstance(value, dict):
                    found.append(value)
        return found


def versions() -> dict[str, str]:
    """Say what a run's numbers may depend on besides its folder."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in ("nlc", "torch", "triton", "numpy", "safetensors"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def command() -> str:
    """Return the command line as it was typed, less the program's folder."""
    import shlex

    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def free_folder(name: str, base: Path = Path("runs")) -> Path:
    """Make the first of runs/NAME-001, -002, ... that is not there, also where others do so too."""
    for number in itertools.count(1):
        folder = base / f"{name}-{number:03d}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise _not_made(folder, error.strerror) from None
        return folder
    raise AssertionError


def _not_made(folder: Path, why: str | None) -> LabError:
    return LabError(
        f"cannot make the run folder {folder}: {why}", "another --out, a folder that can be written"
    )


def make_folder(folder: Path) -> bool:
    """Make an empty run folder, or take one that is empty; say whether it was there.

    One with anything in it is left alone.
    """
    try:
        was_there = folder.exists()
        if was_there and any(folder.iterdir()):
            raise LabError(
                f"{folder} is not empty",
                f"another --out, or `nlc train --resume {folder}` to go on with that run",
            )
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_made(folder, error.strerror) from None
    return was_there


@contextlib.contextmanager
def new_folder(out: Path | None, name: str) -> Iterator[Path]:
    """Make a run folder, a numbered one without `out`; what is not made whole is taken away."""
    folder = out or free_folder(name)
    was_there = make_folder(folder) and out is not None
    try:
        yield folder
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if was_there:
            folder.mkdir(exist_ok=True)
        if isinstance(error, OSError):
            raise LabError(
                f"cannot write to {folder}: {error.strerror or error}", "another --out"
            ) from None
        raise


def write(folder: Path, origin: Origin, settings: Settings) -> Run:
    """Write run.json, which makes the folder a run."""
    text = json.dumps({**asdict(origin), "settings": asdict(settings)}, indent=2) + "\n"
    checkpoint.write_text(folder / "run.json", text)
    return Run(folder, origin, settings)


def read(folder: Path) -> Run:
    """Open a run folder."""
    hint = "a folder made by `nlc train`, such as runs/NAME-001"
    try:
        fields = json.loads((folder / "run.json").read_text("utf-8"))
        settings = Settings(**fields.pop("settings"))
        return Run(folder, Origin(**fields), settings)
    except (FileNotFoundError, NotADirectoryError):
        raise LabError(f"{folder} is not a run folder: it has no run.json", hint) from None
    except OSError as error:
        raise LabError(f"cannot read {folder}/run.json: {error.strerror}", hint) from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise LabError(f"{folder}/run.json is damaged: {error}", hint) from None
