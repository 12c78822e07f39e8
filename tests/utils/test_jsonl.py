"""An outbox on disk: what a killed process had not acknowledged is pending, in order, and nothing else."""

from pathlib import Path

import pytest

from ray_distill.utils.jsonl import JsonlError, OutboxFile, pending_lines, replace_outbox


def test_unacknowledged_entries_are_pending_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    outbox = OutboxFile(path)
    assert outbox.pending == []
    entries = [outbox.append({"n": n, "text": "é\n"}) for n in range(5)]
    outbox.ack(entries[1])
    again = OutboxFile(path)
    assert [entry.record["n"] for entry in again.pending] == [2, 3, 4]
    assert again.pending == entries[2:]
    again.ack(again.append({"n": 5}))
    assert OutboxFile(path).pending == []


def test_a_partial_last_line_is_dropped(tmp_path: Path) -> None:
    """The process was killed while it wrote; what is appended next is intact."""
    path = tmp_path / "journal.jsonl"
    OutboxFile(path).append({"n": 0})
    with path.open("ab") as file:
        file.write(b'{"n": 1, "te')
    outbox = OutboxFile(path)
    assert [entry.record for entry in outbox.pending] == [{"n": 0}]
    outbox.append({"n": 2})
    assert [entry.record["n"] for entry in OutboxFile(path).pending] == [0, 2]


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"n": 0}\nnot json\n')
    with pytest.raises(JsonlError, match=r"journal\.jsonl.*byte 18"):
        OutboxFile(path)


def test_pending_lines_replace_another_outbox(tmp_path: Path) -> None:
    """Of three entries the first is acknowledged: the other two are all that is pending in an outbox that they replace,
    whatever was acknowledged there."""
    path, other = tmp_path / "journal.jsonl", tmp_path / "other.jsonl"
    assert pending_lines(path) == b""
    outbox = OutboxFile(path)
    entries = [outbox.append({"n": n}) for n in range(3)]
    assert pending_lines(path) == path.read_bytes()
    outbox.ack(entries[0])
    assert pending_lines(path) == b'{"n": 1}\n{"n": 2}\n'
    replaced = OutboxFile(other)
    replaced.ack(replaced.append({"long": "x" * 100}))
    replace_outbox(other, pending_lines(path))
    assert [entry.record["n"] for entry in OutboxFile(other).pending] == [1, 2]
