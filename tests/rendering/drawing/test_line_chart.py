import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from krepes_ooc.rendering.drawing.line_chart import (
    Axis,
    Chart,
    Scale,
    bar,
    fit_scale,
    thinned_indices,
)
from tests.rendering.samples import Page

finite = st.floats(-1e6, 1e6)


def chart(**changes):
    parts = {
        "key": "c",
        "title": "A chart",
        "words": "It falls.",
        "x_axis": Axis("damping", log=True),
        "y_axis": Axis("loss"),
        "x": np.array([0.1, 1.0, 10.0]),
        "lines": {"loss": np.array([3.0, 2.0, 1.0])},
    }
    return Chart(**{**parts, **changes})


@given(st.lists(finite, min_size=1, max_size=8), st.booleans())
def test_scale_keeps_order_and_stays_inside(values, log):
    scale = fit_scale([values], log, 300.0, 20.0)
    drawable = [v for v in values if v > 0 or not log]
    if not drawable:
        assert scale is None
        return
    places = [scale.at(value) for value in sorted(drawable)]
    assert all(20 <= place <= 300 for place in places)
    assert places == sorted(places, reverse=True)
    assert all(20 - 1e-6 <= scale.at(tick) <= 300 + 1e-6 for tick in scale.ticks())


def test_scale_ends():
    scale = Scale(0.0, 10.0, 100.0, 200.0)
    assert scale.at(0.0) == 100
    assert scale.at(5.0) == 150
    assert math.isnan(scale.at(math.nan))
    assert math.isnan(Scale(-1, 1, 0, 1, log=True).at(0.0))
    assert fit_scale([[math.nan], []], False, 0, 1) is None


@pytest.mark.parametrize(
    ("scale", "ticks"),
    [
        (Scale(0.0, 1.0, 0, 1), [0, 0.5, 1]),
        (Scale(-0.4, 1.0, 0, 1), [0, 0.5, 1]),
        (Scale(0, 40, 0, 1), [0, 10, 20, 30, 40]),
        (Scale(-3, 3, 0, 1, log=True), [1e-3, 1e-1, 1e1, 1e3]),
        (Scale(-2, 1, 0, 1, log=True), [1e-2, 1e-1, 1, 10]),
        (Scale(0.5, 1.9, 0, 1, log=True), [5, 10, 20, 50]),
        (Scale(math.log10(8.1), math.log10(9.9), 0, 1, log=True), [8.5, 9, 9.5]),
    ],
)
def test_ticks(scale, ticks):
    assert scale.ticks() == pytest.approx(ticks)


def test_chart_is_described_and_tabled():
    page = Page(chart().render())
    (svg,) = page.all("svg")
    assert svg["role"] == "img"
    assert svg["aria-labelledby"] == "c-title c-desc"
    assert {"title", "desc"} <= {tag for tag, _ in page.tags}
    values = [float(data["data-value"]) for data in page.all("data")]
    assert values == [0.1, 3.0, 1.0, 2.0, 10.0, 1.0]


def test_points_are_where_the_scales_say():
    page = Page(chart().render())
    (line,) = page.all("polyline")
    points = [tuple(map(float, pair.split(","))) for pair in line["points"].split()]
    xs, ys = zip(*points, strict=True)
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.11)
    assert list(ys) == sorted(ys)


def test_a_gap_breaks_the_line():
    page = Page(chart(x=np.arange(1, 6), lines={"a": np.array([1, 2, np.nan, 4, 5.0])}).render())
    assert len(page.all("polyline")) == 2
    assert "nan" not in page.text.lower()
    assert "not measured" in page.text


def test_nothing_to_draw_is_said():
    page = Page(chart(lines={"loss": np.full(3, np.nan)}).render())
    assert not page.all("svg")
    assert "no value was measured" in page.text


def test_marks_levels_and_names():
    page = Page(
        chart(
            lines={"one": np.array([3.0, 2, 1]), "two": np.array([1.0, 2, 3])},
            marks={"in use": 1.0, "nowhere": 0.0},
            levels={"start": 2.5},
            tabled=False,
        ).render()
    )
    for words in ("one", "two", "in use", "start"):
        assert words in page.text
    assert "nowhere" not in page.text
    assert not page.all("table")


def test_words_of_a_level_stand_at_the_free_end():
    falling = chart(levels={"level": 1.0}).render()
    rising = chart(levels={"level": 1.0}, lines={"a": np.array([1.0, 2, 3])}).render()
    assert 'class="note">level' in falling
    assert 'class="note end">level' in rising


@given(st.integers(0, 5000))
def test_thin_keeps_both_ends(length):
    chosen = thinned_indices(length)
    assert chosen == sorted(set(chosen))
    assert len(chosen) <= 50
    assert chosen[:16] == list(range(min(16, length)))
    assert not length or chosen[-1] == length - 1


@pytest.mark.parametrize(
    ("share", "width"), [(0.5, "50.0%"), (2.0, "100.0%"), (-1, "0.0%"), (math.nan, "0.0%")]
)
def test_bar(share, width):
    assert Page(bar(share, "attract")).all("rect")[1]["width"] == width
