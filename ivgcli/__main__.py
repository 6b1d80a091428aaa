"""Run the command line with `python -m ivgcli`."""

from ivgcli.cli import main

if __name__ == "__main__":
    main()
