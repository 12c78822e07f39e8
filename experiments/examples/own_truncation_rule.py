"""A truncation rule of one's own, on the algorithm alone: python own_truncation_rule.py.

`ray_distill.core` is torch and nothing else. A rule is any object with an `unroll_length` schedule and a `draw`.
"""

from dataclasses import dataclass, replace

import ray_distill as rd
from ray_distill.builders.experiment import build_experiment, initial_distilled_data, load_development_data
from ray_distill.core.distributed import SingleProcess
from ray_distill.core.outer_loop import Report, outer_loop
from ray_distill.core.rng import Stream
from ray_distill.core.schedules import Schedule, integer_at
from ray_distill.core.state import RunState
from ray_distill.core.truncation import Window

CONFIG = {
    "name": "own-rule",
    "data": {"source": "digits", "validation_fraction": 0.2},
    "distilled": {"ipc": 1},
    "network": {"name": "convnet1", "width": 16},
    "inner": {"lr": 0.003},
    "truncation": {"rule": "rat-bptt", "unroll_length": 20, "window_length": 8},
    "outer": {"steps": 30, "lr": 0.03, "batch_size": 128},
    "validation": {"every": 10, "num_networks": 2, "horizon": 20},
    "tracking": {"report_every": 10},
}


@dataclass(frozen=True, kw_only=True)
class LateWindows:
    """As RaT-BPTT, but of two uniform starts the later one: the end of the unroll is differentiated more often."""

    unroll_length: Schedule
    window_length: Schedule

    def draw(self, stream: Stream) -> Window:
        """The window at the stream's outer step: a function of its place in the run, so that a run can be repeated."""
        unroll, window = (integer_at(x, stream.outer_step) for x in (self.unroll_length, self.window_length))
        words = stream.at(outer_step=stream.outer_step).words(2)[0]
        return Window(max(int(word) % (unroll - window + 1) for word in words), window)


def main() -> float:
    """Distil digits with the rule, in this process. Returns: the best accuracy on the validation split."""
    config = rd.load_config(CONFIG)
    data = load_development_data(config)
    experiment = build_experiment(config, data.image_shape, data.num_classes)
    rule = LateWindows(
        unroll_length=experiment.truncation.unroll_length,
        window_length=experiment.truncation.window_length,
    )
    experiment = replace(experiment, truncation=rule)

    def show(report: Report) -> None:
        for step in report.points:
            if "validation_accuracy" in step.values:
                print(
                    f"outer step {step.outer_step}: validation accuracy {step.values['validation_accuracy']:.3f}"
                )

    start = RunState.start(initial_distilled_data(config, data.train, data.train.device), experiment.outer)
    end = outer_loop(experiment, data.train, data.validation, start, SingleProcess(), show)
    assert end.best is not None
    return end.best.accuracy


if __name__ == "__main__":
    main()
