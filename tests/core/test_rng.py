"""Philox and the streams on it."""

import hashlib
import itertools
import math
import struct

import pytest
import torch

from ray_distill.core.rng import Stream, philox


def philox_by_integers(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    """Philox-4x32-10 in Python's unbounded integers, from the paper's definition (Salmon et al., 2011)."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        hi0, lo0 = divmod(0xD2511F53 * c0, 1 << 32)
        hi1, lo1 = divmod(0xCD9E8D57 * c2, 1 << 32)
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0, k1 = (k0 + 0x9E3779B9) % (1 << 32), (k1 + 0xBB67AE85) % (1 << 32)
    return c0, c1, c2, c3


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_known_answers_of_random123(counter: str, key: str, expected: str) -> None:
    """kat_vectors of Random123, philox4x32 with 10 rounds."""
    c0, c1, c2, c3 = (torch.tensor(int(w, 16)) for w in counter.split())
    k0, k1 = (int(w, 16) for w in key.split())
    assert [f"{int(w):08x}" for w in philox((c0, c1, c2, c3), (k0, k1))] == expected.split()


def test_words_are_philox_of_the_place() -> None:
    """Word 4 j + i of a draw is word i of philox(counter (j, inner step, outer step, replica)).

    The key is the first eight bytes, little endian, of blake2b("seed:name"). Pinned, because a run that is
    resumed by a later version of the package must draw what the earlier one would have.
    """
    stream = Stream(seed=2**40 + 3, name="init", outer_step=60_000, replica=31)
    key = struct.unpack("<II", hashlib.blake2b(b"1099511627779:init", digest_size=8).digest())
    expected = [
        [w for block in range(3) for w in philox_by_integers((block, step, 60_000, 31), key)][:10]
        for step in (4, 5)
    ]
    assert stream.words(10, range(4, 6)).tolist() == expected


def draw(kind: str, stream: Stream, count: int, steps: range) -> torch.Tensor:
    if kind in ("uniform", "normal"):
        return getattr(stream, kind)(count, steps, dtype=torch.float64)
    return getattr(stream, kind)(count, steps)


KINDS = ("words", "uniform", "normal", "permutation")


@pytest.mark.parametrize("kind", KINDS)
def test_a_range_of_inner_steps_is_its_steps_one_by_one(kind: str) -> None:
    stream = Stream(seed=1, name="a", outer_step=2, replica=3)
    together = draw(kind, stream, 7, range(3, 9))
    one_by_one = torch.cat([draw(kind, stream, 7, range(t, t + 1)) for t in range(3, 9)])
    assert torch.equal(together, one_by_one)
    assert len({tuple(row) for row in together.tolist()}) == 6


@pytest.mark.parametrize("kind", ["words", "uniform", "normal"])
@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_a_shorter_draw_is_a_prefix_of_a_longer_one(kind: str, count: int) -> None:
    stream = Stream(seed=1, name="a")
    assert torch.equal(draw(kind, stream, count, range(2)), draw(kind, stream, 13, range(2))[:, :count])


@pytest.mark.parametrize("kind", KINDS)
def test_drawing_twice_gives_the_same_and_leaves_the_global_generator_alone(kind: str) -> None:
    stream, before = Stream(seed=1, name="a"), torch.get_rng_state()
    assert torch.equal(draw(kind, stream, 9, range(3)), draw(kind, stream, 9, range(3)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", KINDS)
def test_every_part_of_the_place_changes_the_draw(kind: str) -> None:
    base = {"seed": 1, "name": "a", "outer_step": 2, "replica": 3}
    changes: list[dict[str, object]] = [{}, {"seed": 2}, {"name": "b"}, {"outer_step": 3}, {"replica": 2}]
    # (outer step, replica) exchanged: a counter that adds them up would not tell these apart.
    changes.append({"outer_step": 3, "replica": 2})
    drawn = [draw(kind, Stream(**{**base, **change}), 64, range(1)) for change in changes]
    for (i, a), (j, b) in itertools.combinations(enumerate(drawn), 2):
        assert not torch.equal(a, b), (changes[i], changes[j])


def test_at_moves_to_another_place_and_keeps_the_rest() -> None:
    stream = Stream(seed=5, name="a", outer_step=1, replica=1)
    assert stream.at(outer_step=9, replica=4) == Stream(seed=5, name="a", outer_step=9, replica=4)
    assert stream.at(outer_step=9) == Stream(seed=5, name="a", outer_step=9, replica=0)


def test_a_part_is_a_stream_of_its_own_at_the_same_place() -> None:
    stream = Stream(seed=5, name="a", outer_step=1, replica=2)
    assert stream.substream("b") == Stream(seed=5, name="a-b", outer_step=1, replica=2)


def test_uniform_is_the_same_in_both_precisions_and_below_one() -> None:
    stream = Stream(seed=3, name="u")
    single = stream.uniform(100_000, dtype=torch.float32)
    double = stream.uniform(100_000, dtype=torch.float64)
    assert torch.equal(single.double(), double)
    assert 0.0 <= float(single.min()) < 1e-4
    assert 1 - 1e-4 < float(single.max()) < 1.0


def test_normal_in_single_precision_is_the_double_one_rounded() -> None:
    stream = Stream(seed=3, name="n")
    assert torch.equal(
        stream.normal(101, dtype=torch.float32), stream.normal(101, dtype=torch.float64).float()
    )


def test_moments_of_uniform_and_normal() -> None:
    """n draws; each sample moment within 5 of its own standard deviations.

    Uniform: mean 1/2, variance 1/12. Normal: E x^k = 0, 1, 0, 3 with Var x^k = 1, 2, 15, 96.
    Neighbours (the two of a Box-Muller pair among them) are uncorrelated, with variance of the product 1.
    """
    n = 100_000
    uniform = Stream(seed=3, name="u").uniform(n, dtype=torch.float64)
    assert abs(float(uniform.mean()) - 0.5) < 5 * math.sqrt(1 / 12 / n)
    normal = Stream(seed=3, name="n").normal(n, dtype=torch.float64)[0]
    for k, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((normal**k).mean()) - mean) < 5 * math.sqrt(variance / n), k
    for lag in (1, 2, 3):
        assert abs(float((normal[lag:] * normal[:-lag]).mean())) < 5 / math.sqrt(n), lag


def test_normal_has_tails_and_no_infinity() -> None:
    """P(|x| > 4) = 6.33e-5: of 400,000 draws 25.3 expected, standard deviation 5."""
    normal = Stream(seed=3, name="n").normal(400_000, dtype=torch.float64)
    assert bool(normal.isfinite().all())
    assert 5 <= int((normal.abs() > 4).sum()) <= 50


def test_permutations_are_permutations_and_all_equally_likely() -> None:
    """12,000 orders of four things: 24 cells of 500, chi-square with 23 degrees of freedom.

    Its mean is 23 and its standard deviation sqrt(46) = 6.8; five of these above the mean is 57.
    """
    orders = Stream(seed=4, name="p").permutation(4, range(12_000))
    assert torch.equal(orders.sort(dim=1).values, torch.arange(4).expand(12_000, 4))
    code = (orders * torch.tensor([64, 16, 4, 1])).sum(dim=1)
    counts = code.unique(return_counts=True)[1].double()
    assert len(counts) == 24
    assert float(((counts - 500) ** 2 / 500).sum()) < 57


def test_streams_of_different_replicas_are_uncorrelated() -> None:
    n = 50_000
    a, b = (Stream(seed=0, name="init", replica=r).normal(n, dtype=torch.float64)[0] for r in (0, 1))
    assert abs(float((a * b).mean())) < 5 / math.sqrt(n)
