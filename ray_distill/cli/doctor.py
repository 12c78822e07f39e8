"""The verb `doctor`: what a run needs, ticked off."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from ray_distill.cli.console import check_target, exit_codes, stdout
from ray_distill.errors import RunError

if TYPE_CHECKING:
    from ray_distill.doctor import Finding

TICKS = {
    "good": ("[green]✓[/green]", "ok"),
    "note": ("[yellow]![/yellow]", "note"),
    "bad": ("[red]✗[/red]", "BAD"),
}
"""On a terminal, and elsewhere."""


def doctor(
    out: Annotated[
        str,
        typer.Option(
            "--out", metavar="PLACE", help="Where results would go: a folder, or a URI as s3://bucket/folder."
        ),
    ] = "runs",
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write all findings here. Never overwrites."),
    ] = None,
) -> None:
    """Look whether all that runs need is there and works: Python, torch, GPUs, Ray, MLflow, storage, clocks, room.

    Starts a small Ray cluster, or connects to that of RAY_ADDRESS; writes a run into the store of MLFLOW_TRACKING_URI
    and a file into PLACE, and deletes both. Exit code 1 if something that is needed is missing.
    """
    with exit_codes("nothing was written"):
        if json_file is not None:
            check_target(json_file, "--json")
        from ray_distill.doctor import examine
        from ray_distill.utils.atomic import write_json

        with stdout.status("looking") as status:
            findings = list(examine(out, lambda name: status.update(f"looking at {name}")))
        if json_file is not None:
            write_json(json_file, [finding._asdict() for finding in findings])
        stdout.print(table(findings, terminal=stdout.is_terminal))
        bad = [finding.check for finding in findings if finding.state == "bad"]
        if bad:
            raise RunError(f"runs need what is not there: {', '.join(bad)}")
        stdout.print("all that runs need is there", highlight=False)


def table(findings: "list[Finding]", *, terminal: bool) -> Table:
    """A row for each: what was looked at, what it is for, what was found, and what to do where that is not good."""
    from rich.text import Text

    rows = Table(box=None, padding=(0, 2, 0, 0), header_style="bold" if terminal else "")
    for name in ("", "what", "for", "found"):
        # Cut short, a path is worth nothing.
        rows.add_column(name, overflow="fold")
    for f in findings:
        found = f.found if f.state == "good" else f"{f.found}\n-> {f.advice}"
        rows.add_row(TICKS[f.state][0 if terminal else 1], Text(f.check), Text(f.purpose), Text(found))
    return rows
