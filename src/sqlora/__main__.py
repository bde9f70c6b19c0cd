"""Command line: `python -m sqlora COMMAND`."""

from __future__ import annotations

import argparse
from pathlib import Path

from sqlora.params.reader import PARAMS_FILE
from sqlora.stage import run


def main() -> int:
    """Parse the command line and run the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m sqlora", description="Fine-tune a base model to write SQL.")
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="check params.yaml without running anything")
    check.add_argument("file", nargs="?", type=Path, default=PARAMS_FILE)
    commands.add_parser("doctor", help="show device, BLAS, speed, memory, versions, and what is missing")
    commands.add_parser("summary", help="show the scores of the last run and three example questions")
    arguments = parser.parse_args()
    # Each command imports what it needs: `check` starts in a tenth of a second because it loads no MLX.
    if arguments.command == "check":
        from sqlora.params.all import check_params

        check_params(arguments.file)
    elif arguments.command == "doctor":
        from sqlora.doctor import print_diagnosis

        return print_diagnosis()
    elif arguments.command == "summary":
        from sqlora.report.summary import print_summary

        print_summary(Path())
    return 0


if __name__ == "__main__":
    run(main)
