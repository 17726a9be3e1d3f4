# SPDX-License-Identifier: Apache-2.0
"""Facts about the other streams: schedules of drifts, STAGGER, moving centroids, Weather, tables, late labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from edgeops.drift.evaluation.prequential import no_change
from edgeops.drift.streams import Delayed, DriftStream, concepts, from_frame, read_csv, read_stream, synthetic
from edgeops.drift.streams.concepts import bounced, stagger_rule
from tests.messages import refused


def agreement(y: Tensor, positive: Tensor) -> float:
    return float((positive == (y > 0)).double().mean())


RULES: dict[str, tuple[Callable[..., DriftStream], Callable[[Tensor], Tensor], float]] = {
    "sea": (synthetic.sea, lambda x: x[:, :2].sum(1) <= 7.0, 1.0),
    "sine1": (synthetic.sine1, lambda x: x[:, 1] <= x[:, 0].sin(), 0.9),
    "mixed": (synthetic.mixed, synthetic.mixed_rule, 0.9),
    "circles": (synthetic.circles, lambda x: (x - torch.tensor([0.2, 0.5])).square().sum(1) > 0.15**2, 0.9),
    "stagger": (concepts.stagger, lambda x: (x[:, 0] > 0) & (x[:, 3] > 0), 1.0),
}


@pytest.mark.parametrize("name", RULES)
def test_without_drifts_one_rule_holds_throughout(name: str) -> None:
    make, rule, right = RULES[name]
    stream = make(seed=2, n=10_000, drifts=())
    assert stream.drifts == ()
    for part in (slice(0, 2500), slice(2500, 5000), slice(5000, 7500), slice(7500, None)):
        assert agreement(stream.y[part], rule(stream.x[part])) == pytest.approx(right, abs=0.02 if right < 1 else 0)


def test_drifts_where_they_are_asked_for() -> None:
    stream = synthetic.sine1(seed=0, n=4000, batches=40, drifts=(10, 30), noise=0.0, width=0)
    below = stream.x[:, 1] <= stream.x[:, 0].sin()
    assert stream.drifts == (10, 30)
    for batches, right in ((slice(0, 1000), 1.0), (slice(1000, 3000), 0.0), (slice(3000, None), 1.0)):
        assert agreement(stream.y[batches], below[batches]) == right
    again = synthetic.sea(seed=0, n=1200, batches=12, drifts=(2, 4, 6, 8, 10))
    for k, threshold in enumerate((7.0, 9.0, 9.5, 8.0, 7.0, 9.0)):  # around again after the last
        part = slice(200 * k, 200 * k + 200)
        assert agreement(again.y[part], again.x[part, :2].sum(1) <= threshold) == 1
    turned = synthetic.circles(seed=0, n=4000, batches=40, drifts=(20,), noise=0.0, width=0)
    second = (turned.x[2000:] - torch.tensor([0.4, 0.5])).square().sum(1) > 0.2**2
    assert (turned.drifts, agreement(turned.y[2000:], second)) == ((20,), 1.0)


def test_a_stream_whose_length_the_concepts_do_not_divide_ends_in_the_last_one() -> None:
    stream = synthetic.sine1(seed=0, n=1004, batches=10, noise=0.0)
    assert agreement(stream.y[-4:], stream.x[-4:, 1] <= stream.x[-4:, 0].sin()) == 1


@pytest.mark.parametrize("drifts", [(0,), (5, 3), (3, 3), (10,)])
def test_drifts_outside_the_stream(drifts: tuple[int, ...]) -> None:
    for make in (synthetic.sea, synthetic.sine1, synthetic.mixed, concepts.stagger):
        with refused(ValueError, make.__name__, r"drifts must rise, each in \(0, 10\)"):
            make(seed=0, n=100, batches=10, drifts=drifts)


def test_sea_changes_slowly() -> None:
    stream = synthetic.sea_gradual(seed=1, n=50_000)
    between = (stream.x[:, :2].sum(1) > 7.0) & (stream.x[:, :2].sum(1) <= 9.5)
    shares = []
    for k in range(5):  # of the points that the two concepts label differently
        part = slice(10_000 * k, 10_000 * (k + 1))
        shares.append(float((stream.y[part][between[part]] > 0).double().mean()))
    assert stream.drifts == (40, 60)
    assert shares[:2] == [0, 0]
    assert shares[3:] == [1, 1]
    # classes alternate, so each is denser where the other concept's share of the square is smaller
    assert shares[2] == pytest.approx(0.45125**-1 / (0.45125**-1 + 0.755**-1), abs=0.05)


def test_stagger() -> None:
    stream = concepts.stagger(seed=3, n=3000, batches=30)
    which = torch.arange(3000) // 1000
    assert agreement(stream.y, stagger_rule(stream.x, which)) == 1
    shares = [float((stream.y[which == k] > 0).double().mean()) for k in range(3)]
    assert shares == pytest.approx([1 / 9, 5 / 9, 2 / 3], abs=0.05)
    noisy = concepts.stagger(seed=3, n=3000, batches=30, noise=0.2)
    assert agreement(noisy.y, stagger_rule(noisy.x, which)) == pytest.approx(0.8, abs=0.03)


def test_coordinates_turn_round_at_the_sides() -> None:
    """The twin in words: move, stop at the side, turn round."""
    g = torch.Generator().manual_seed(0)
    start, speed = torch.rand(20, dtype=torch.float64, generator=g), torch.rand(20, dtype=torch.float64, generator=g)
    speed[0] = 0
    found, place, way = bounced(start, speed, torch.arange(60)), start.clone(), speed.clone()
    for step in range(60):
        torch.testing.assert_close(found[step], place)
        place = place + way
        way = torch.where((place > 1) | (place < 0), -way, way)
        place = place.clamp(0, 1)


def test_centroids_move() -> None:
    still, moving = concepts.rbf(0.0, seed=4, n=20_000), concepts.rbf(0.01, seed=4, n=20_000)
    assert (still.name, moving.name, still.drifts) == ("RBF-0", "RBF-0.01", ())
    assert torch.equal(still.y, moving.y)  # the same centroids, in the same order
    way = (moving.x - still.x).norm(dim=1)
    assert float(way[0]) == pytest.approx(0.01)
    assert bool((way <= 0.01 * torch.arange(1, 20_001) + 1e-6).all())
    assert 0.3 < float(way.mean()) < 2  # of a cube whose diagonal is 3.2
    with refused(ValueError, "rbf", "speed must not be negative", "-1"):
        concepts.rbf(-1, seed=0)


def test_weather(shared_data: Callable[[str], Path]) -> None:
    stream = read_stream("Weather", shared_data("streams"))
    assert (stream.x.shape, len(stream), stream.batch_size) == ((18_159, 8), 50, 363)
    assert int((stream.y > 0).sum()) == 5698
    assert float(no_change(stream).mean()) == pytest.approx(0.320, abs=1e-3)
    scaled = stream.standardised()
    first, _ = scaled.batch(0)
    assert first.mean(0).tolist() == pytest.approx([0] * 8, abs=1e-9)
    assert first.std(0, correction=0).tolist() == pytest.approx([1] * 8)


def test_labels_turned_round_in_the_middle() -> None:
    stream = DriftStream("t", torch.zeros(10, 1), torch.ones(10), 10).inverted(3, 6)
    assert stream.y.tolist() == [1, 1, 1, -1, -1, -1, 1, 1, 1, 1]
    assert stream.drifts == (3, 6)
    with refused(ValueError, "DriftStream.inverted", r"within \[0, 10\]", r"\[6, 3\)"):
        stream.inverted(6, 3)
    with refused(ValueError, "DriftStream.standardised", r"in \[1, 10\]", "0"):
        stream.standardised(0)


def test_late_labels() -> None:
    stream = DriftStream("t", torch.arange(6.0)[:, None], torch.ones(6), 6)
    shown = [None if late is None else float(late[0]) for _, late in Delayed(stream, 5)]
    assert shown == [None] * 5 + [0.0]
    assert [float(x) for x, late in Delayed(stream, 0)] == [float(late[0]) for _, late in Delayed(stream) if late]
    with refused(ValueError, "Delayed", "delay must be a whole number", "-1"):
        Delayed(stream, -1)


CSV = "when,size,colour,grade\n3,0.5,red,b\n1,1.5,blue,a\n2,2.5,red,b\n4,3.5,green,c\n"


def test_a_table(tmp_path: Path) -> None:
    pytest.importorskip("pandas", reason="the drift extra is not installed")
    file = tmp_path / "goods.csv"
    file.write_text(CSV)
    stream = read_csv(file, label="grade", time="when", positive="b", batches=2)
    assert (stream.name, stream.batch_size) == ("goods", 2)
    assert stream.x.tolist() == [[1.5, 1, 0, 0], [2.5, 0, 0, 1], [0.5, 0, 0, 1], [3.5, 0, 1, 0]]  # blue, green, red
    assert stream.y.tolist() == [-1, 1, 1, -1]
    assert read_csv(file, label="grade", positive="b", drop=("colour", "when"), batches=4).x.shape == (4, 1)


def test_tables_of_other_kinds(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas", reason="the drift extra is not installed")
    pytest.importorskip("scipy", reason="the drift extra is not installed")
    arff = tmp_path / "a.arff"
    arff.write_text("@relation t\n@attribute x real\n@attribute c {p,n}\n@data\n0.5,p\n1,n\n")
    stream = read_csv(arff, label="c", batches=2)
    assert (stream.x.tolist(), stream.y.tolist()) == ([[0.5], [1.0]], [1.0, -1.0])
    frame = pandas.DataFrame({"flag": [True, False], "y": [0, 1]})
    assert from_frame(frame, label="y", batches=1).x.tolist() == [[1.0], [0.0]]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ({"label": "mark"}, ("must have a column 'mark'", "when, size, colour, grade")),
        ({"label": "grade", "time": "day"}, ("must have a column 'day'",)),
        ({"label": "grade"}, ("there must be two labels", "'a', 'b', 'c'")),
        ({"label": "grade", "positive": "x"}, ("'x' must be a label", "'a', 'b', 'c'")),
        ({"label": "grade", "positive": "b", "drop": ("size", "colour", "when")}, ("must have a feature",)),
    ],
)
def test_what_a_table_lacks(arguments: dict, parts: tuple[str, ...], tmp_path: Path) -> None:
    pytest.importorskip("pandas", reason="the drift extra is not installed")
    file = tmp_path / "goods.csv"
    file.write_text(CSV)
    with refused(ValueError, "read_csv", *parts):
        read_csv(file, **arguments)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("x,y\n1,a\n,b\n", ("no value may be missing", "x: 1")),
        ("x,y\ninf,a\n1,b\n", ("features must be finite",)),
        ("", ("needs rows of equal length", "No columns")),
        ("x,y\n1,2\n1,2,3,4\n", ("needs rows of equal length",)),
    ],
)
def test_broken_tables(text: str, parts: tuple[str, ...], tmp_path: Path) -> None:
    pytest.importorskip("pandas", reason="the drift extra is not installed")
    file = tmp_path / "b.csv"
    file.write_text(text)
    with refused(ValueError, "read_csv", *parts):
        read_csv(file, label="y", batches=1)


def test_pandas_may_be_absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"edgeops\[drift\]"):
        read_csv(tmp_path / "a.csv", label="y")
