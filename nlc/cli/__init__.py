"""The command line: words in, exit status out (0 fine, 1 the spec is wrong, 2 the call is wrong).

Parses arguments, calls the compiler and the lab, prints what they give. Decides nothing itself,
and loads torch only for commands that train or run a model.
"""

from __future__ import annotations

import os
import sys

# the exit status where nlc itself is at fault
BUG = 3


def main() -> None:
    """Run the command line; the only place where what the user can cause becomes an exit status."""
    try:
        _run()
    except KeyboardInterrupt:
        # also while the packages are loaded, which takes longest
        sys.exit(130)


def _run() -> None:
    from nlc.cli.app import app
    from nlc.cli.common import CallError, say_call_error
    from nlc.cli.faults import show_faults, status_of
    from nlc.diagnostics import SpecError
    from nlc.errors import InternalError
    from nlc.lab.faults import Diverged, LabError

    try:
        app()
    except SpecError as error:
        show_faults(error.diagnostics)
        sys.exit(status_of(error.diagnostics))
    except (CallError, LabError) as error:
        say_call_error(error.what, error.hint)
        sys.exit(2)
    except Diverged as error:
        print(f"nlc: {error}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:
        # the reader went away (`nlc ... | head`): no fault; what is left to print goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        # what a command expects to fail it says itself: this is a full disk, a lost drive
        where = f" ({error.filename})" if error.filename else ""
        say_call_error(f"{error.strerror or error}{where}", "a disk that can be written")
        sys.exit(2)
    except Exception as error:
        if _is_out_of_memory(error):
            say_call_error("there is not enough memory", "smaller dims, --batch or --length")
            sys.exit(2)
        import traceback

        traceback.print_exc()
        print(f"\nnlc: {InternalError.named(error)}", file=sys.stderr)
        sys.exit(BUG)


def _is_out_of_memory(error: Exception) -> bool:
    """Say whether an error is the machine's: torch has a class of its own on a GPU only."""
    words = ("can't allocate memory", "out of memory")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )
