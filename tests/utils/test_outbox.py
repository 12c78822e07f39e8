"""Things to say, on disk: what a killed process had not said is there, in order, and nothing else."""

from pathlib import Path

import pytest

from ray_distill.utils.outbox import OutboxError, OutboxFile, pending, replace


def test_the_unsaid_rest_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = OutboxFile(path)
    assert journal.unsaid == []
    entries = [journal.add({"n": n, "text": "é\n"}) for n in range(5)]
    journal.mark_said(entries[1])
    again = OutboxFile(path)
    assert [entry.thing["n"] for entry in again.unsaid] == [2, 3, 4]
    assert again.unsaid == entries[2:]
    again.mark_said(again.add({"n": 5}))
    assert OutboxFile(path).unsaid == []


def test_a_line_that_was_cut_off_is_not_there(tmp_path: Path) -> None:
    """The process was killed while it wrote; what is added next is whole."""
    path = tmp_path / "journal.jsonl"
    OutboxFile(path).add({"n": 0})
    with path.open("ab") as file:
        file.write(b'{"n": 1, "te')
    journal = OutboxFile(path)
    assert [entry.thing for entry in journal.unsaid] == [{"n": 0}]
    journal.add({"n": 2})
    assert [entry.thing["n"] for entry in OutboxFile(path).unsaid] == [0, 2]


def test_a_damaged_journal_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"n": 0}\nnot json\n')
    with pytest.raises(OutboxError, match=r"journal\.jsonl.*byte 18"):
        OutboxFile(path)


def test_the_unsaid_rest_is_a_journal_elsewhere(tmp_path: Path) -> None:
    """Of three things the first is said: the others are all there is to say in a journal that is put in another's place,
    whatever that had said."""
    path, other = tmp_path / "journal.jsonl", tmp_path / "other.jsonl"
    assert pending(path) == b""
    journal = OutboxFile(path)
    entries = [journal.add({"n": n}) for n in range(3)]
    assert pending(path) == path.read_bytes()
    journal.mark_said(entries[0])
    assert pending(path) == b'{"n": 1}\n{"n": 2}\n'
    there = OutboxFile(other)
    there.mark_said(there.add({"long": "x" * 100}))
    replace(other, pending(path))
    assert [entry.thing["n"] for entry in OutboxFile(other).unsaid] == [1, 2]
