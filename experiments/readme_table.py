"""Writes the demo's measured accuracies into the README, from `results/demo/summary.json`.

uv run python experiments/readme_table.py
"""

import json
import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
MARKS = re.compile(r"(<!-- demo table:.*?-->\n).*?(<!-- end of the demo table -->)", re.DOTALL)


def table(summary: dict[str, Any]) -> str:
    """A Markdown table: a row for each training set, a column for each network."""
    networks = list(summary["networks"])
    sets = {"10 distilled images": summary["networks"]}
    names = {"random_real": "10 random real images", "whole_train": "the whole training set"}
    sets |= {names[name]: baseline["networks"] for name, baseline in summary["baselines"].items()}
    lines = [
        f"| trained on | {' | '.join(networks)} |",
        f"|---|{'---|' * len(networks)}",
        *(
            f"| {what} | {' | '.join(_cell(of.get(name)) for name in networks)} |"
            for what, of in sets.items()
        ),
    ]
    return "\n".join(lines) + "\n"


def _cell(numbers: dict[str, Any] | None) -> str:
    if numbers is None:
        return ""
    return f"{100 * numbers['mean']:.1f} ± {100 * numbers['std']:.1f}% (n={numbers['n']})"


def with_table(readme: str, summary: dict[str, Any]) -> str:
    """The README with the table between its marks."""
    return MARKS.sub(lambda m: m[1] + "\n" + table(summary) + "\n" + m[2], readme)


if __name__ == "__main__":
    summary = json.loads((HERE / "results" / "demo" / "summary.json").read_text())
    README.write_text(with_table(README.read_text(), summary))
