"""The lab on real specs: run folders, exact resume, generating, evaluating."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from nlc.cli.starter import starter
from nlc.lab.run import read

SMALL = ["--set", "dims.d=16", "--set", "dims.d_k=8", "--set", "dims.d_v=8"]
TRAIN = [
    "--batch",
    "2",
    "--length",
    "32",
    "--eval-bytes",
    "128",
    "--eval-every",
    "7",
    "--sample",
    "8",
]


def nlc(folder: Path, *words: object, check: int | None = 0) -> subprocess.CompletedProcess[str]:
    """Run the program as a user does."""
    command = [sys.executable, "-m", "nlc", *map(str, words)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert check is None or done.returncode == check, done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tiny.nl").write_text(starter("tiny"))
    return tmp_path


def measured(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in m.items() if k != "seconds"} for m in read(run).measurements()]


def test_a_run_holds_all_that_it_was_made_of(folder: Path) -> None:
    done = nlc(folder, "train", "tiny.nl", "--steps", 10, "--save-every", 5, *TRAIN, *SMALL)
    run = folder / "runs" / "tiny-001"
    assert (run / "spec" / "tiny.nl").read_text() == (folder / "tiny.nl").read_text()
    assert {"model.py", "optimizers.py"} <= {p.name for p in (run / "package").iterdir()}
    asked = json.loads((run / "run.json").read_text())
    assert asked["settings"]["seed"] == 0 and asked["set"]["dims.d"] == "16"
    assert "train tiny.nl --steps 10" in asked["command"]
    assert {"python", "torch", "nlc"} <= set(asked["versions"])
    assert [m["step"] for m in measured(run) if "held_out" in m] == [7, 10]
    assert "a sample:" in done.stdout and "finished at step 10" in done.stdout

    text = nlc(folder, "generate", run, "--prompt", "abc", "--tokens", 12, "--seed", 3).stdout
    assert text.startswith("abc") and len(text) >= 8
    again = nlc(folder, "generate", run, "--prompt", "abc", "--tokens", 12, "--seed", 3).stdout
    assert text == again
    bits = nlc(folder, "eval", run).stdout
    assert re.match(r"\d\.\d{4} bits/byte   pydoc_data.topics, held out", bits)
    longer = nlc(folder, "eval", run, "--text", "tiny.nl", "--length", 500).stdout
    assert "whole text" in longer


def test_a_killed_run_goes_on_exactly(folder: Path) -> None:
    words = ["train", "tiny.nl", "--steps", 40, "--save-every", 4, *TRAIN, *SMALL]
    nlc(folder, *words, "--out", "whole")
    command = [sys.executable, "-m", "nlc", *map(str, words)]
    process = subprocess.Popen(
        [*command, "--out", "cut"], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    metrics, until = folder / "cut" / "metrics.jsonl", time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        if metrics.exists() and metrics.read_bytes().count(b"\n") > 9:
            os.kill(process.pid, signal.SIGKILL)
            break
        time.sleep(0.005)
    process.wait()
    assert process.returncode == -signal.SIGKILL, "it was not killed in time"
    nlc(folder, "train", "--resume", "cut", "--sample", 0)
    assert measured(folder / "cut") == measured(folder / "whole")
    one, other = (read(folder / name).checkpoints()[-1].read_bytes() for name in ("cut", "whole"))
    assert len(one) > 10_000
    # the seconds in the header differ; the tensors after it do not
    assert one[-10_000:] == other[-10_000:]


def test_a_run_keeps_the_specs_it_uses(folder: Path) -> None:
    spec = (folder / "tiny.nl").read_text()
    start, end = spec.index("# what each token does"), spec.index("# how the blocks stack")
    (folder / "parts.nl").write_text("system parts\n\n" + spec[start:end])
    (folder / "whole.nl").write_text(
        spec[:start].replace("system tiny", "use parts\nsystem whole") + spec[end:]
    )
    checked = nlc(folder, "check", "whole.nl", check=None)
    if checked.returncode:
        # a used block must bring its own dims and levels along
        pytest.fail(checked.stderr)
    nlc(folder, "train", "whole.nl", "--steps", 2, "--out", "run", *TRAIN, *SMALL)
    (folder / "parts.nl").unlink()
    nlc(folder, "train", "--resume", "run", "--steps", 4, "--sample", 0)
    assert sorted(p.name for p in (folder / "run" / "spec").iterdir()) == ["parts.nl", "whole.nl"]
