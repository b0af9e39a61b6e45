"""`python -m pipeline.training`, which torchrun starts; see `pipeline.cli.training_processes`."""

import sys

from pipeline.cli.training_processes import end, main

if __name__ == "__main__":
    end(main(sys.argv[1:]))
