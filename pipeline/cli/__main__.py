"""`python -m pipeline.cli`, and the installed command `assay`."""

import signal
import sys

# Python's own handler prints a traceback. There is nothing to clean up before `main` begins.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from pipeline.cli.main import main
from pipeline.workflow import signals


def run() -> int:
    """Runs the command line in a process of its own, and returns the exit code."""
    code = main()
    signals.uninstall()
    signals.end_if_stuck(code)
    return code


if __name__ == "__main__":
    sys.exit(run())
