"""The verb `doctor`: whether a run would find all it needs."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from ray_distill.cli.console import NOTHING_WRITTEN, check_new_file, exit_codes, print_lines, stdout
from ray_distill.cli.options import JsonFile
from ray_distill.errors import RunError

if TYPE_CHECKING:
    from ray_distill.doctor import Finding

SYMBOLS = {
    "good": ("[green]✓[/green]", "ok"),
    "note": ("[yellow]![/yellow]", "note"),
    "bad": ("[red]✗[/red]", "BAD"),
}
"""On a terminal, and elsewhere."""


def doctor(
    out: Annotated[
        str,
        typer.Option(
            "--out",
            metavar="PLACE",
            help="Where results would go: a folder, or a URI such as s3://bucket/folder.",
        ),
    ] = "runs",
    json_file: JsonFile = None,
) -> None:
    """Check what runs need: Python, torch, GPUs, Ray, MLflow, storage, clocks, memory and disk space.

    Starts a small Ray cluster, or connects to the one at RAY_ADDRESS. Writes a run to the store at MLFLOW_TRACKING_URI and
    a file to PLACE, and deletes both. Exits with 1 if a check of something essential fails.
    """
    with exit_codes(NOTHING_WRITTEN):
        check_new_file(json_file, "--json")
        from ray_distill.doctor import run_checks
        from ray_distill.utils.atomic import write_json

        with stdout.status("checking") as status:
            findings = list(run_checks(out, lambda name: status.update(f"checking {name}")))
        if json_file is not None:
            write_json(json_file, [finding._asdict() for finding in findings])
        stdout.print(table(findings, terminal=stdout.is_terminal))
        failed = [finding.check for finding in findings if finding.state == "bad"]
        if failed:
            raise RunError(f"checks failed: {', '.join(failed)}")
        print_lines("ready to run")


def table(findings: "list[Finding]", *, terminal: bool) -> Table:
    """A row for each finding, with advice unless it is good."""
    from rich.text import Text

    rows = Table(box=None, padding=(0, 2, 0, 0), header_style="bold" if terminal else "")
    for heading in ("", "check", "needed for", "result"):
        # Folded, not truncated: paths must stay whole.
        rows.add_column(heading, overflow="fold")
    for f in findings:
        result = f.found if f.state == "good" or not f.advice else f"{f.found}\n-> {f.advice}"
        rows.add_row(SYMBOLS[f.state][0 if terminal else 1], Text(f.check), Text(f.purpose), Text(result))
    return rows
