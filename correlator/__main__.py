"""`python -m correlator`: the command line, where no `correlator` is on the PATH."""

from correlator.cli import main

if __name__ == "__main__":
    main(prog_name="correlator")
