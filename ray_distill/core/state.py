"""The state of a run between two outer steps: everything that the next step depends on, and nothing else.

Randomness needs no state (`core.rng`), so D, the outer optimiser, the counters, a forward curriculum's position and
the best set so far are enough to resume bit for bit.
"""

from typing import NamedTuple

from ray_distill.core.distilled import DistilledData
from ray_distill.core.outer_optimizer import OuterOptimizer, OuterState
from ray_distill.core.truncation import CurriculumState


class Best(NamedTuple):
    """A distilled set and its validation accuracy (a fraction) after some outer step."""

    data: DistilledData
    outer_step: int
    accuracy: float


class RunState(NamedTuple):
    """D and everything else that the outer loop carries from step to step."""

    data: DistilledData
    outer: OuterState
    outer_step: int = 0
    """Outer steps taken, skipped ones included."""
    clipped_total: int = 0
    nonfinite_in_a_row: int = 0
    nonfinite_total: int = 0
    best: Best | None = None
    curriculum: CurriculumState = CurriculumState()
    """Used by the forward curriculum only."""

    @classmethod
    def start(cls, data: DistilledData, outer: OuterOptimizer) -> "RunState":
        """The state before the first outer step."""
        return cls(data, outer.init(data))

    def advance(self, data: DistilledData, outer: OuterState, clipped: bool) -> "RunState":
        """The state after an outer step."""
        return self._replace(
            data=data,
            outer=outer,
            outer_step=self.outer_step + 1,
            clipped_total=self.clipped_total + clipped,
            nonfinite_in_a_row=0,
        )

    def skip_nonfinite(self) -> "RunState":
        """The state after an outer step skipped for its non-finite metagradient."""
        return self._replace(
            outer_step=self.outer_step + 1,
            nonfinite_in_a_row=self.nonfinite_in_a_row + 1,
            nonfinite_total=self.nonfinite_total + 1,
        )

    def with_candidate(self, candidate: Best) -> "RunState":
        """The state with the candidate as the best set if its accuracy is higher; on a tie the earlier one stays."""
        if self.best is None or candidate.accuracy > self.best.accuracy:
            return self._replace(best=candidate)
        return self
