"""Writes three tables: the demo's measured accuracies, from `results/demo/summary.json`, into the README; the sources of data,
from the module that reads them, and the experiments, from their files, into experiments/README.md.

uv run python experiments/readme_table.py
"""

import json
import re
from pathlib import Path
from typing import Any

from ray_distill.config.load import read_yaml
from ray_distill.data import sources

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
GUIDE = HERE / "README.md"


def table(summary: dict[str, Any]) -> str:
    """The accuracies: a row for each training set, a column for each network."""
    networks = list(summary["networks"])
    sets = {"10 distilled images": summary["networks"]}
    names = {"random_real": "10 random real images", "whole_train": "the whole training set"}
    sets |= {names[name]: baseline["networks"] for name, baseline in summary["baselines"].items()}
    return _markdown(
        ["trained on", *networks],
        [[what, *(_cell(of.get(name)) for name in networks)] for what, of in sets.items()],
    )


def _cell(numbers: dict[str, Any] | None) -> str:
    if numbers is None:
        return ""
    return f"{100 * numbers['mean']:.1f} ± {100 * numbers['std']:.1f}% (n={numbers['n']})"


def experiments(folder: Path) -> str:
    """A row for each experiment in the folder; searches, which are files of another kind, are left out."""
    heads = ["experiment", "data", "IPC", "rule", "W", "N", "labels", "network", "outer steps"]
    return _markdown(
        heads, [_row(path) for path in sorted(folder.glob("*.yaml")) if "space" not in read_yaml(path)]
    )


def _row(path: Path) -> list[str]:
    values = read_yaml(path)
    truncation, distilled = values["truncation"], values["distilled"]
    return [
        f"[{path.stem}]({path.name})",
        values["data"]["source"].partition(":")[0],
        str(distilled["ipc"]),
        truncation["rule"],
        str(truncation.get("window_length", "")),
        str(truncation["unroll_length"]),
        "learnt" if distilled.get("learn_labels") else "hard",
        values["network"]["name"],
        f"{values['outer']['steps']:,}",
    ]


def data_sources() -> str:
    """The table in the docstring of `data.sources`: what is development and what is test data of each."""
    lines = (sources.__doc__ or "").splitlines()
    return "\n".join(line for line in lines if line.startswith("|")) + "\n"


def _markdown(heads: list[str], rows: list[list[str]]) -> str:
    lines = [
        f"| {' | '.join(heads)} |",
        f"|{'---|' * len(heads)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def _between_marks(readme: str, what: str, table: str) -> str:
    marks = re.compile(rf"(<!-- {what} table:.*?-->\n).*?(<!-- end of the {what} table -->)", re.DOTALL)
    return marks.sub(lambda m: m[1] + "\n" + table + "\n" + m[2], readme)


def with_table(readme: str, summary: dict[str, Any]) -> str:
    """The README with the accuracies between their marks."""
    return _between_marks(readme, "demo", table(summary))


def with_sources(guide: str, sources: str) -> str:
    """The guide with the sources of data between their marks."""
    return _between_marks(guide, "sources", sources)


def with_experiments(guide: str, experiments: str) -> str:
    """The guide with the experiments between their marks."""
    return _between_marks(guide, "experiments", experiments)


if __name__ == "__main__":
    summary = json.loads((HERE / "results" / "demo" / "summary.json").read_text())
    README.write_text(with_table(README.read_text(), summary))
    GUIDE.write_text(with_experiments(with_sources(GUIDE.read_text(), data_sources()), experiments(HERE)))
