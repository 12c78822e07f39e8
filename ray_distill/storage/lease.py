"""Which driver works in a storage: a lease that it acquires and renews, since object stores have no locks.

The lease is a small file that names its holder, with a heartbeat number that grows at every renewal. Whoever finds one
watches it: once the number has not changed for EXPIRY_S the holder counts as dead. No two machines' clocks are compared.
What that guarantees, and what not, is in README.md. (The workers of a killed driver are gone before EXPIRY_S is over.)
"""

import json
import logging
import os
import socket
import threading
import time
import uuid
from typing import NamedTuple

from ray_distill.storage.remote import Storage, StorageError, StorageUnavailableError

LEASE = ".driver.json"
HEARTBEAT_S = 5.0
"""Between two renewals."""
EXPIRY_S = 20.0
"""Without a renewal, after which the holder counts as dead."""
SETTLE_S = 1.0
"""Between writing a lease and checking that it is still there: longer than between a rival's check and its write."""

logger = logging.getLogger(__name__)


class LostLeaseError(StorageUnavailableError):
    """Another driver has taken over the storage."""


class LeaseRecord(NamedTuple):
    """What the file holds; the fields are its JSON keys."""

    token: str
    """Drawn by the holder."""
    beat: int
    """The heartbeat number."""
    who: str
    """The holder's process and host."""


def read_lease(storage: Storage) -> LeaseRecord | None:
    """The lease in a storage; None if there is none. Raises: StorageUnavailableError."""
    content = storage.read(LEASE)
    if content is None:
        return None
    try:
        values = json.loads(content)
        return LeaseRecord(str(values["token"]), int(values["beat"]), str(values["who"]))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        # It is somebody's all the same.
        return LeaseRecord(content.decode(errors="replace"), 0, "unknown")


class Lease:
    """A lease of a storage for this process, acquired once."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._own = LeaseRecord(uuid.uuid4().hex, 0, f"process {os.getpid()} on {socket.gethostname()}")
        self._rival: tuple[LeaseRecord, float] | None = None
        """Another driver's lease, and when it was first seen in this state."""
        self._lost_to: str | None = None
        self._stop = threading.Event()
        self._heartbeat = threading.Thread(target=self._renew, daemon=True)

    def poll(self) -> float:
        """Check for another driver's lease. Returns: seconds until it expires, if it is not renewed.

        Raises: StorageError if it was renewed between two calls; StorageUnavailableError.
        """
        record, now = read_lease(self._storage), time.monotonic()
        if record is None:
            self._rival = None
            return 0.0
        if self._rival is None:
            self._rival = record, now
            return EXPIRY_S
        if record != self._rival[0]:
            raise StorageError(
                f"{self._storage}: another driver is at work in it ({record.who}); wait for it to end, or stop it"
            )
        return max(0.0, self._rival[1] + EXPIRY_S - now)

    def acquire(self) -> None:
        """Acquire the lease, and renew it until `release`. Raises: StorageError if another driver has it; StorageUnavailableError."""
        remaining_s = self.poll()
        if remaining_s and self._rival:
            logger.warning(
                "%s: has the lease of another driver (%s); it expires in %.0f s unless renewed",
                self._storage,
                self._rival[0].who,
                remaining_s,
            )
        while remaining_s := self.poll():
            time.sleep(min(remaining_s, 1.0))
        self._write()
        time.sleep(SETTLE_S)
        if (rival := self._other_holder()) is not None:
            raise StorageError(f"{self._storage}: another driver has begun to work in it ({rival})")
        self._heartbeat.start()

    def check(self) -> None:
        """Raises: LostLeaseError if another driver has taken over the storage."""
        if self._lost_to is not None:
            raise LostLeaseError(
                f"{self._storage}: another driver has taken it over ({self._lost_to}); this one has stopped"
            )

    def release(self) -> None:
        """Delete the lease, unless another driver has taken it over. Never raises."""
        self._stop.set()
        if self._heartbeat.ident is not None:
            self._heartbeat.join()
        try:
            if self._other_holder() is None:
                self._storage.delete(LEASE)
        except StorageUnavailableError as e:
            logger.warning("the lease could not be released: %s", e)

    def _write(self) -> None:
        self._storage.put(LEASE, json.dumps(self._own._asdict()).encode())

    def _other_holder(self) -> str | None:
        """Who holds the lease, if not this process."""
        record = read_lease(self._storage)
        if record is None:
            return "unknown: the lease file is gone"
        return None if record.token == self._own.token else record.who

    def _renew(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            try:
                if (rival := self._other_holder()) is not None:
                    self._lost_to = rival
                    return
                self._own = self._own._replace(beat=self._own.beat + 1)
                self._write()
            except StorageUnavailableError as e:
                logger.warning("the lease could not be renewed: %s", e)
