"""Command line: `python -m sqlora COMMAND`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

from sqlora.ask.arguments import add_arguments
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
    comparer = commands.add_parser("compare", help="compare the predictions of two git revisions question by question")
    comparer.add_argument("first", metavar="REV_A", help="branch, tag, commit, experiment, or `workspace`")
    comparer.add_argument("second", metavar="REV_B", nargs="?", default="workspace", help="the same (workspace)")
    comparer.add_argument(
        "--system", choices=["base", "adapter"], default="adapter", help="whose predictions (adapter)"
    )
    comparer.add_argument("--list", type=int, default=3, metavar="N", help="questions to show of each change (3)")
    comparer.add_argument("--json", action="store_true", help="print everything as JSON")
    reporter = commands.add_parser("report", help="put two git revisions side by side on one page")
    reporter.add_argument("first", metavar="REV_A", help="branch, tag, commit, experiment, or `workspace`")
    reporter.add_argument("second", metavar="REV_B", nargs="?", default="workspace", help="the same (workspace)")
    reporter.add_argument("--out", type=Path, default=Path("comparison.html"), metavar="FILE", help="(comparison.html)")
    importer = commands.add_parser("import-csv", help="turn CSV tables and questions about them into data.source")
    importer.add_argument("tables", type=Path, metavar="TABLES_FOLDER", help="of NAME.csv files")
    importer.add_argument("questions", type=Path, metavar="QUESTIONS.jsonl", help="see docs/guides/own-data.md")
    importer.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="what data.source will name")
    importer.add_argument("--shares", default="80,10,10", help="of train, dev and test, in questions (80,10,10)")
    importer.add_argument("--seed", type=int, default=1, help="of the choice of tables for each part (1)")
    importer.add_argument("--text", action="append", default=[], metavar="COLUMN", help="text, whatever it looks like")
    importer.add_argument("--delimiter", choices=["comma", "semicolon", "tab"], help="found out if not given")
    planner = commands.add_parser("plan", help="predict memory, disk and time of training, and of other settings")
    planner.add_argument("--model", type=Path, metavar="DIR", help="a converted model (what model.source names)")
    planner.add_argument("--shape", metavar="NAME", help="mistral-7b, smollm2-135m or demo, without a model")
    planner.add_argument("--params", type=Path, metavar="FILE", help="instead of params.yaml")
    planner.add_argument("--memory", type=float, metavar="GB", help="of another machine, for a run")
    planner.add_argument("--device", choices=["cpu", "cuda", "metal"], help="of another machine")
    planner.add_argument("--json", action="store_true", help="print everything as JSON")
    asker = commands.add_parser("ask", help="ask a question about a CSV file or a table of an SQLite database")
    add_arguments(asker)
    verifier = commands.add_parser("verify", help="hash artifacts and DVC's cache again and name what is damaged")
    verifier.add_argument("--remote", action="store_true", help="the default remote as well")
    verifier.add_argument("--json", action="store_true", help="print everything as JSON")
    sharer = commands.add_parser("share", help="push every committed run and the run cache to the default remote")
    sharer.add_argument("remote", nargs="?", metavar="PATH_OR_URL", help="of the default remote, to add it first")
    linker = commands.add_parser("setup-cache", help="choose how DVC links artifacts to its cache, to save disk space")
    linker.add_argument("--type", choices=["reflink", "hardlink", "symlink", "copy"], help="the best that works here")
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
    elif arguments.command == "compare":
        from sqlora.report.comparison import print_comparison

        print_comparison(Path(), arguments)
    elif arguments.command == "report":
        from sqlora.report.side_by_side.command import run as run_report

        return run_report(Path(), arguments.first, arguments.second, arguments.out)
    elif arguments.command == "import-csv":
        from sqlora.import_csv.command import run as run_import

        return run_import(arguments)
    elif arguments.command == "plan":
        from sqlora.plan.command import run as run_plan

        return run_plan(
            Path(),
            model=arguments.model,
            shape=arguments.shape,
            params=arguments.params,
            memory_gb=arguments.memory,
            device=arguments.device,
            as_json=arguments.json,
        )
    elif arguments.command == "ask":
        from sqlora.ask.command import run as run_ask

        return run_ask(arguments)
    elif arguments.command == "verify":
        from sqlora.verify.command import run as run_verify

        return run_verify(Path(), remote=arguments.remote, as_json=arguments.json)
    elif arguments.command == "share":
        from sqlora.sharing.share import share

        share(Path(), arguments.remote)
    elif arguments.command == "setup-cache":
        from sqlora.sharing.links import setup_cache

        return setup_cache(Path(), arguments.type)
    return 0


def main_in_a_pipe() -> int:
    """As `main`, and quiet where whoever reads the output has had enough, as in `… | head -1`."""
    try:
        status = main()
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
        return 128 + signal.SIGPIPE


if __name__ == "__main__":
    run(main_in_a_pipe)
