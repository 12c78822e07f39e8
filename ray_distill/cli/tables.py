"""The table of an evaluation, which `distill` and `evaluate` print."""

from typing import TYPE_CHECKING

from rich.table import Table

from ray_distill.cli.console import print_lines, stderr, stdout

if TYPE_CHECKING:
    from ray_distill.cluster.actor_pool import PoolStats
    from ray_distill.evaluation.results import ResultRow, Retraining
    from ray_distill.evaluation.run import Evaluation


def print_evaluation(evaluation: "Evaluation") -> None:
    """The rows of the last horizon, failures, robustness scores, and how busy the actors were."""
    from ray_distill.evaluation.results import at_last_horizon

    rows = at_last_horizon(evaluation.rows)
    _print_table(evaluation, rows)
    for row in rows:
        if row.reason is not None:
            message = f"{row.network} on {row.label}: {row.num_failed} failed: {row.reason}"
            stderr.print(message, markup=False, highlight=False)
    for scores in evaluation.robustness:
        print_lines(scores.describe())
    if evaluation.pool_stats is not None:
        print_lines(_pool_usage(evaluation.pool_stats))


def _print_table(evaluation: "Evaluation", rows: "list[ResultRow]") -> None:
    """With a column `lr` if learning rates were tuned."""
    tuned = {_key(spec.retraining(0)): (spec, lr) for spec, lr in evaluation.lrs.items() if spec.lr_grid}
    headings = (
        "trained on",
        "network",
        "steps",
        "accuracy",
        "95% interval",
        "n",
        *(("lr",) if tuned else ()),
    )
    table = Table(*headings, box=None, padding=(0, 1, 0, 0))
    any_at_end = False
    for row in rows:
        spec, lr = tuned.get(_key(row), (None, 0.0))
        at_end = spec is not None and len(spec.lr_grid) > 1 and lr in (spec.lr_grid[0], spec.lr_grid[-1])
        any_at_end |= at_end
        lr_cell = [f"{lr:g}{' *' if at_end else ''}" if spec else ""] if tuned else []
        table.add_row(*_cells(row), *lr_cell)
    stdout.print(table)
    if any_at_end:
        stdout.print("* the first or last value of evaluation.lr_grid; a better lr may lie beyond it")


def _key(row: "Retraining | ResultRow") -> tuple[str, str, str, int]:
    """Which row of the table a retraining belongs to."""
    return row.subject, row.network, row.treatment, row.num_images


def _cells(row: "ResultRow") -> tuple[str, ...]:
    steps = "" if row.inner_steps is None else f"{row.inner_steps:,}"
    if row.mean is None:
        return row.label, row.network, steps, "failed", "", "0"
    std = "" if row.std is None else f" ± {100 * row.std:.1f}"
    limits = row.interval
    interval = "" if limits is None else f"{100 * limits[0]:.1f} to {100 * limits[1]:.1f}%"
    return row.label, row.network, steps, f"{100 * row.mean:.1f}{std}%", interval, str(row.n)


def _pool_usage(report: "PoolStats") -> str:
    retries = f", {report.num_retries} retried after losing an actor" if report.num_retries else ""
    return (
        f"{report.num_jobs} jobs on {report.num_actors} actor(s) in {report.wall_s:.0f} s{retries}: "
        f"{100 * report.efficiency:.0f}% busy, {report.idle_tail_s:.1f} s idle at the end, longest job "
        f"{report.longest_job_s:.1f} s"
    )
