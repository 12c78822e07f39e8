"""Who is at work in a storage: a lease that the driver takes and renews, since such places have no locks.

The lease is a small file that says who holds it, with a number that grows at every renewal. Whoever finds one watches it:
a number that does not grow is that of a driver that is gone. Nobody's clock is compared with anybody else's.

How sure is it? A second driver is refused as long as the first one renews. What only reads and writes cannot exclude
more than that for certain:

- Of two that come at the same moment, both write, wait, and read: the last to write stays, the other is refused.
- A driver that was held up for longer than SILENCE_S (a network, a suspended machine) is taken for gone. It finds the
  other's lease before it renews its own, and its run ends: within a second while it trains, later before it puts its
  next result there. Until then there are two. They write the very same checkpoints and measurements, a function of the
  configuration alone, but each deletes its older checkpoints: one may end with an error over one that is gone, and goes
  on with --resume. (The workers of a driver that was killed are gone before SILENCE_S is over.)
"""

import json
import logging
import os
import socket
import threading
import time
import uuid
from typing import NamedTuple

from ray_distill.storage.remote import Storage, StorageAwayError, StorageError

LEASE = ".driver.json"
BEAT_S = 5.0
"""Between two renewals."""
SILENCE_S = 20.0
"""Without a renewal, after which a driver is taken for gone."""
SETTLE_S = 1.0
"""From the writing of a lease to the look whether it is still there: more than between a rival's look and its writing."""

logger = logging.getLogger(__name__)


class LostLeaseError(StorageAwayError):
    """Another driver has taken the place over."""


class Holder(NamedTuple):
    """What a lease says."""

    token: str
    """Drawn by the driver."""
    beat: int
    who: str


def read_lease(storage: Storage) -> Holder | None:
    """The lease in a storage; None if there is none. Raises: StorageAwayError."""
    content = storage.read(LEASE)
    if content is None:
        return None
    try:
        values = json.loads(content)
        return Holder(str(values["token"]), int(values["beat"]), str(values["who"]))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        # Somebody's all the same.
        return Holder(content.decode(errors="replace"), 0, "unknown")


class Lease:
    """A lease of a storage for this process, taken once."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._own = Holder(uuid.uuid4().hex, 0, f"process {os.getpid()} on {socket.gethostname()}")
        self._seen: tuple[Holder, float] | None = None
        """Another's lease, and when it was first seen like that."""
        self._lost: str | None = None
        self._over = threading.Event()
        self._renewing = threading.Thread(target=self._renew, daemon=True)

    def look(self) -> float:
        """Look at what is there. Returns: seconds until it is to be had, if it does not change.

        Raises: StorageError if a driver has renewed it between two looks; StorageAwayError.
        """
        there, now = read_lease(self._storage), time.monotonic()
        if there is None:
            self._seen = None
            return 0.0
        if self._seen is None:
            self._seen = there, now
            return SILENCE_S
        if there != self._seen[0]:
            raise StorageError(
                f"{self._storage}: another driver is at work in it ({there.who}); wait for it to end, or stop it"
            )
        return max(0.0, self._seen[1] + SILENCE_S - now)

    def take(self) -> None:
        """Hold the place, and renew that until `release`. Raises: StorageError if another driver does; StorageAwayError."""
        left = self.look()
        if left and self._seen:
            logger.warning(
                "%s: a driver was at work in it (%s); watching for %.0f s whether it still is",
                self._storage,
                self._seen[0].who,
                left,
            )
        while left := self.look():
            time.sleep(min(left, 1.0))
        self._write()
        time.sleep(SETTLE_S)
        if (there := self._other()) is not None:
            raise StorageError(f"{self._storage}: another driver has begun to work in it ({there})")
        self._renewing.start()

    def check(self) -> None:
        """Raises: LostLeaseError if another driver has taken the place."""
        if self._lost is not None:
            raise LostLeaseError(
                f"{self._storage}: another driver has taken it over ({self._lost}); this one has stopped"
            )

    def release(self) -> None:
        """Let others have it, unless they do already. Never raises."""
        self._over.set()
        if self._renewing.ident is not None:
            self._renewing.join()
        try:
            if self._other() is None:
                self._storage.delete(LEASE)
        except StorageAwayError as e:
            logger.warning("the storage could not be released: %s", e)

    def _write(self) -> None:
        self._storage.put(LEASE, json.dumps(self._own._asdict()).encode())

    def _other(self) -> str | None:
        """Who holds the lease, if it is not this process."""
        there = read_lease(self._storage)
        if there is None:
            return "unknown: the lease is not there any more"
        return None if there.token == self._own.token else there.who

    def _renew(self) -> None:
        while not self._over.wait(BEAT_S):
            try:
                self._lost = self._other()
                if self._lost is not None:
                    return
                self._own = self._own._replace(beat=self._own.beat + 1)
                self._write()
            except StorageAwayError as e:
                logger.warning("the storage is away: %s", e)
