"""The command line, as `correlator`, or as `python -m correlator` where that is not on the PATH."""

import sys

try:
    from correlator.cli import main
except ModuleNotFoundError as error:
    if str(error.name).startswith("correlator"):
        raise
    sys.exit(
        f"correlator: the module {error.name} is not installed. Without the extra `server` this is only the client for"
        " Python (docs/python.md): install it again as 'FILE[server]', where FILE is its wheel (docs/install.md)"
    )

if __name__ == "__main__":
    main(prog_name="correlator")
