# SPDX-License-Identifier: Apache-2.0
import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeops.perf import Samples, geomean, paired_ratio
from edgeops.perf.stats import quartiles

times = st.floats(1e-9, 1e6, allow_nan=False)
many = st.lists(times, min_size=1, max_size=30)


@given(many)
def test_quartiles_are_ordered_and_inside(values):
    low, middle, high = quartiles(values)
    assert min(values) <= low <= middle <= high <= max(values)
    assert middle == pytest.approx(statistics.median(values))


@given(many, st.randoms(use_true_random=False))
def test_quartiles_do_not_depend_on_the_order(values, random):
    shuffled = list(values)
    random.shuffle(shuffled)
    assert quartiles(shuffled) == quartiles(values)


@given(many, st.floats(0.25, 4.0))
def test_ratio_of_a_scaled_copy_is_the_scale(values, scale):
    ratio = paired_ratio(Samples(tuple(scale * v for v in values)), Samples(tuple(values)))
    assert (ratio.median, ratio.low, ratio.high) == pytest.approx((scale, scale, scale))


def test_ratio_is_taken_pair_by_pair():
    # A slow spell of a factor of ten hits rounds 2 and 3 of both; the medians alone would say 1.0.
    baseline, candidate = Samples((2.0, 20.0, 20.0, 2.0, 2.0)), Samples((1.0, 10.0, 10.0, 1.0, 10.0))
    assert paired_ratio(baseline, candidate).median == 2.0


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=20))
def test_geomean_of_inverses_is_the_inverse(values):
    assert geomean(1 / v for v in values) == pytest.approx(1 / geomean(values))


@pytest.mark.parametrize("values", [[], [1.0, 0.0], [1.0, -2.0], [math.nan], [math.inf]])
def test_geomean_refuses(values):
    with pytest.raises(ValueError, match="geomean: at least one value, each positive and finite; got"):
        geomean(values)


@pytest.mark.parametrize("seconds", [(), (0.0,), (1.0, math.nan), (1.0, -1.0), (math.inf,)])
def test_samples_refuse(seconds):
    with pytest.raises(ValueError, match="Samples: at least one sample, each positive and finite; got"):
        Samples(seconds)


def test_samples_refuse_no_calls():
    with pytest.raises(ValueError, match="calls must be 1 or more; got 0"):
        Samples((1.0,), calls=0)


@pytest.mark.parametrize("other", [Samples((1.0, 1.0)), Samples((1.0,), clock="wall")])
def test_ratio_refuses_samples_of_another_run(other):
    with pytest.raises(ValueError, match="both sides must come from one interleaved run; got 1 process and"):
        paired_ratio(Samples((1.0,)), other)


def test_quartiles_refuse_nan():
    with pytest.raises(ValueError, match="every value must be finite; got nan"):
        quartiles([1.0, math.nan])
