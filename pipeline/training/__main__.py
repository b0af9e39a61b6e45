"""`python -m pipeline.training`, started by torchrun; see `pipeline.cli.training_processes`."""

import sys

from pipeline.cli.training_processes import end, main

if __name__ == "__main__":
    end(main(sys.argv[1:]))
