"""`python -m pipeline.training`, started by torchrun; see `pipeline.cli.training_processes`."""

import sys

from pipeline.workflow.worker_child import end_with_parent

if __name__ == "__main__":
    # First of all: without torchrun, the processes would wait for each other for hours.
    end_with_parent()
    from pipeline.cli.training_processes import end, main

    end(main(sys.argv[1:]))
