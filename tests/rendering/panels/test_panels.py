import dataclasses
import inspect
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from krepes_ooc.core.figures import figure
from krepes_ooc.core.verdict import Check, Verdict
from krepes_ooc.rendering.data import (
    AuditData,
    Audited,
    Column,
    Influence,
    Landmarks,
    Samples,
)
from krepes_ooc.rendering.drawing.sample_view import (
    LandmarkSamples,
    SampleView,
    agreement,
    cell,
    class_name,
    column_spans,
)
from krepes_ooc.rendering.drawing.sentence import percent
from krepes_ooc.rendering.explanation import Explained, explain_rows
from krepes_ooc.rendering.landmark_links import LandmarkLink, links_of
from krepes_ooc.rendering.measured import Groups
from krepes_ooc.rendering.panels.discovered import discovered_panel
from krepes_ooc.rendering.panels.fidelity import fidelity_panel
from krepes_ooc.rendering.panels.group_effects import group_effects_panel
from krepes_ooc.rendering.panels.groups import groups_panel
from krepes_ooc.rendering.panels.landmarks import landmarks_panel
from krepes_ooc.rendering.panels.odd import odd_panel
from krepes_ooc.rendering.panels.provenance import part_seconds, timing_panel
from krepes_ooc.rendering.panels.reliability import LIMITS, reliability_panel
from krepes_ooc.rendering.panels.row_table import row_table
from krepes_ooc.rendering.panels.samples import samples_panel
from krepes_ooc.rendering.sample_concepts import ConceptScore, SampleConcepts
from krepes_ooc.stages.verdict import criteria
from tests.figures import complete
from tests.rendering.samples import N_LANDMARKS, Page, full_audit, table_audit


def with_attributes(audit: AuditData, **changes) -> AuditData:
    attributes = {**audit.newton.attributes, **changes}
    return dataclasses.replace(
        audit, newton=dataclasses.replace(audit.newton, attributes=attributes)
    )


def good(**changes) -> AuditData:
    return full_audit(**{"warnings": (), **changes})


def figured(
    key: str, value: float, interval: tuple[float, float] | None = None, **controls: float
) -> AuditData:
    """The same with one fidelity figure."""
    return good(fidelity={key: complete(key, value, interval, **controls)})


def kernel_alone(value: float, control: float, interval: tuple[float, float] | None) -> AuditData:
    """A drop far above chance, beside that of the landmarks the plain kernel ranks first."""
    return figured("confidence_drop", value, interval, random=0.001, kernel_only=control)


# --- reliability ---------------------------------------------------------------------------------


CHECKS = (
    Check("rows", "Rows carry it", "R² at least .5", "pass", "R² is {r}.", {"r": 0.918}, True),
    Check("raw", "Raw inputs do as well", "above 0", "fail", "From {low} on.", {"low": -0.25}),
    Check("probe", "Probe", "reaches the ceiling", "unknown", "No probe: {x}.", {"x": None}),
)


def test_every_check_stands_with_its_criterion_and_figures():
    panel = reliability_panel(good(verdict=Verdict(CHECKS)))
    page = Page(panel.render())
    assert "1 of 3 checks passed." in page.text
    assert "passed Rows carry it R² is 0.918 . R² at least .5" in page.text
    assert "reservation Raw inputs do as well From −0.25 on." in page.text
    assert "not measured Probe No probe: not measured ." in page.text
    # What limits the use comes first
    assert page.text.index("Raw inputs") < page.text.index("Probe") < page.text.index("Rows carry")
    assert panel.figures["verdict"] == Verdict(CHECKS).to_json()


def test_a_reservation_says_what_it_limits_and_lists_its_figures():
    figures = {"tau": 0.5, "tau_most": 0.6, "cka": 0.7, "cka_most": 0.8}
    words = "tau: {tau}, random weights up to {tau_most}; cka: {cka}, random up to {cka_most}."
    failed = Check("learned_figures", "As well", "above", "fail", words, figures)
    html = reliability_panel(full_audit(verdict=Verdict((failed,)))).render()
    assert LIMITS["learned_figures"] in html
    assert html.partition("</table>")[0].count("<li>") == 2
    passed = dataclasses.replace(failed, outcome="pass")
    html = reliability_panel(full_audit(verdict=Verdict((passed,)))).render()
    assert LIMITS["learned_figures"] not in html


def test_every_check_that_may_limit_an_audit_says_how():
    keys = set(re.findall(r'Check\(\s*"(\w+)"', inspect.getsource(criteria)))
    keys |= {"raw_inputs", "plain_kernel"}
    # These stop the run or make the audit unusable, and are measured always
    assert keys - set(LIMITS) == {"self_check", "solver", "step"}
    assert set(LIMITS) <= keys


def test_a_blocking_failure_is_marked_as_one():
    blocked = dataclasses.replace(CHECKS[0], outcome="fail")
    page = Page(reliability_panel(good(verdict=Verdict((blocked, *CHECKS[1:])))).render())
    assert "✗ failed Rows carry it" in page.text
    assert page.text.index("Rows carry it") < page.text.index("Raw inputs")


def test_without_a_verdict_the_panel_says_so():
    panel = reliability_panel(good(verdict=None, warnings=("rows in source order",)))
    assert panel.figures["missing"] in Page(panel.render()).text
    assert "rows in source order" in Page(panel.render()).text


# --- samples -------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_views_of_one_sample_are_taken_together(ids):
    samples = LandmarkSamples(Landmarks(np.array(ids)))
    seen = list(dict.fromkeys(ids))
    values = np.random.default_rng(0).normal(size=(3, len(ids)))
    naive = np.array(
        [[sum(v for i, v in zip(ids, row, strict=True) if i == s) for s in seen] for row in values]
    )
    assert np.allclose(samples.total(values), naive)
    assert np.allclose(samples.mean(values), naive / [ids.count(s) for s in seen])
    assert [ids[row] for row in samples.first_row] == seen
    assert [seen[s] for s in samples.sample_of_row] == ids


def test_links_index_landmark_samples_not_rows():
    landmarks = Landmarks(np.array([40, 30, 40, 20]))
    influence = Influence(
        np.array([[2, 0, -1]]),
        np.array([[3.0, 2.0, 0.0]]),
        np.array([[-1.0, 1.0, 0.0]]),
        kernel=np.array([[0.5, 0.1, 0.7, 0.9]]),
    )
    ranked = [LandmarkLink(3, 1, 3.0, -1.0, 0.9), LandmarkLink(0, 2, 2.0, 1.0, pytest.approx(0.6))]
    assert links_of(landmarks, influence, [0]) == [(ranked, None)]
    pushing = dataclasses.replace(
        influence,
        repelling_landmark=np.array([[2, 1, -1]]),
        repelling=np.array([[-1.0, -0.5, 0.0]]),
    )
    ((again, pushed),) = links_of(landmarks, pushing, [0])
    # The first is ranked already; the last is none.
    assert again == ranked
    assert [(link.row, link.rank, link.contribution, link.kernel) for link in pushed] == [
        (1, None, -0.5, 0.1)
    ]
    assert np.isnan(pushed[0].score)


@pytest.mark.parametrize(
    ("signed", "kind"), [(0.1, "attract"), (0.0, "attract"), (-0.1, "repel"), (np.nan, "neutral")]
)
def test_the_sign_tells_attraction_from_repulsion(signed, kind):
    assert LandmarkLink(0, 1, 1.0, signed, 1.0).kind == kind


def test_cards_show_audit_samples_only():
    panel = samples_panel(full_audit())
    assert [card["name"] for card in panel.figures["samples"]] == [f"name {i}" for i in range(5)]
    assert (panel.figures["shown"], panel.figures["total"]) == (5, 5)
    cards = [d for d in Page(panel.render()).all("details") if d.get("class") == "card"]
    assert [card["id"] for card in cards] == [f"sample-{i}" for i in range(5)]
    assert all("open" not in card for card in cards)
    fewer = samples_panel(full_audit(cards=2))
    assert (fewer.figures["shown"], fewer.figures["total"]) == (2, 5)
    assert "No sample was chosen" in samples_panel(full_audit(cards=0)).render()


def test_a_card_counts_what_it_shows():
    audit = full_audit()
    card = samples_panel(audit).figures["samples"][1]
    top, signed = audit.influence.top_landmark[1], audit.influence.contribution[1]
    assert card["attract"] == (signed >= 0).sum()
    assert card["repel"] == (signed < 0).sum()
    assert card["same_class"] == (audit.landmarks.label[top] == 1).sum()
    assert [mark["sample_id"] for mark in card["landmarks"]] == (100 + top).tolist()
    assert [mark["kernel"] for mark in card["landmarks"]] == audit.influence.kernel[1, top].tolist()


def test_cards_show_the_concepts_that_their_sample_shows_and_moves_along():
    def score(name, value, shows=False, reliable=True):
        return ConceptScore(name, "discovered", (), reliable, value, 0.5, shows)

    scores = [score("round <b>", -0.31), score("a", 0.01), score("b", 0.2, reliable=False)]
    many = [score(f"concept {i}", 0.001 * i, shows=i == 4) for i in range(100)]
    known = tuple(SampleConcepts(each, {}) for each in (scores, many, ()))
    panel = samples_panel(full_audit(sample_concepts=known))
    html = panel.render()
    assert "round &lt;b&gt;" in html
    assert "round <b>" not in html
    lines = [line for line in Page(html).text.split("\n") if "Concepts: " in line]
    words = " ".join(" ".join(lines).split())
    assert words.count("Concepts: ") == 2, "a sample without concepts has no such line"
    first, second = words.split("Concepts: ")[1:]
    places = [first.index(name) for name in ("round", "b, unstable", "a")]
    assert places[0] < places[1]
    # The one that it shows, then those of largest score, and no other of a hundred
    assert second.index("shows concept 4") < second.index("concept 99") < second.index("concept 98")
    assert "concept 97" not in second
    cards = panel.figures["samples"]
    assert [len(card.get("concepts", ())) for card in cards] == [3, 100, 0, 0, 0]
    assert cards[0]["concepts"][0]["score"] == -0.31
    assert "Concepts: " not in samples_panel(full_audit()).render()


def test_a_sample_that_no_landmark_is_near_says_so():
    audit = full_audit()
    kernel = audit.influence.kernel.copy()
    kernel[1] = 1e-9
    far = dataclasses.replace(audit.influence, kernel=kernel)
    html = samples_panel(full_audit(influence=far)).render()
    assert html.count("No landmark is near it") == 1
    assert [one.is_far for one in explain_rows(full_audit(influence=far), range(5))] == [
        *(False, True, False, False, False)
    ]
    unknown = dataclasses.replace(audit.influence, kernel=None)
    assert "No landmark is near it" not in samples_panel(full_audit(influence=unknown)).render()


def test_a_hundred_concepts_are_folded_and_stable_ones_come_first():
    draw = np.random.default_rng(0)
    two = full_audit().discovered
    stability = draw.uniform(0.5, 1.0, 100)
    found = dataclasses.replace(
        two,
        names=tuple(f"concept {i}" for i in range(100)),
        share=np.full(100, 0.01),
        stability=stability,
        stable=stability >= 0.8,
        view_agreement=draw.uniform(size=100),
        best_class=draw.integers(0, 3, 100),
        precision=draw.uniform(size=100),
        top_samples=draw.integers(0, 5, (100, 3)),
        top_landmark=draw.integers(0, N_LANDMARKS, (100, 1)),
        differences=((),) * 100,
    )
    panel = discovered_panel(full_audit(discovered=found))
    page = Page(panel.render())
    assert "94 more concepts" in page.text
    shown = panel.render().split("<details")[0]
    assert shown.count("<tr") <= 6 + 6, "six concepts, heads, and the table of controls"
    first = np.flatnonzero(stability >= 0.8)[:6]
    assert all(f"concept {i}<" in shown for i in first)


def test_attracting_and_repelling_stand_apart_in_words_and_colour():
    html = samples_panel(full_audit()).render()
    assert "+ attracting" in html
    assert "− repelling" in html
    assert 'class="fill attract"' in html
    assert 'class="fill repel"' in html
    unsigned = dataclasses.replace(full_audit().influence, contribution=None)
    neutral = samples_panel(full_audit(influence=unsigned)).render()
    assert "strongest" in neutral
    assert "+ attracting" not in neutral


def calm(audit: AuditData, row: int) -> AuditData:
    """One sample that nothing pushes, ranked or not."""
    signed = audit.influence.contribution.copy()
    signed[row] = abs(signed[row])
    pushing = audit.influence.repelling_landmark.copy()
    pushing[row] = -1
    influence = dataclasses.replace(
        audit.influence, contribution=signed, repelling_landmark=pushing
    )
    return dataclasses.replace(audit, influence=influence)


@pytest.mark.parametrize("make", [full_audit, table_audit])
def test_a_card_says_that_nothing_pushes(make):
    audit = calm(make(), 1)
    panel = samples_panel(audit)
    cards = panel.render().split('<details class="card"')[1:]
    said = ["No landmark repels it." in card for card in cards]
    told = [c["repel"] == 0 and not c["repelling"] for c in panel.figures["samples"]]
    assert said == told
    assert said[1]
    silent = dataclasses.replace(audit.influence, repelling_landmark=None, repelling=None)
    html = samples_panel(dataclasses.replace(audit, influence=silent)).render()
    assert "No landmark repels" not in html


def test_cards_show_what_pushes_besides_the_ranked():
    audit = full_audit()
    panel = samples_panel(audit)
    cards = panel.render().split('<details class="card"')[1:]
    deck = panel.figures["deck"]
    for row, (figures, card) in enumerate(zip(panel.figures["samples"], cards, strict=True)):
        ranked = set(audit.influence.top_landmark[row].tolist())
        pushing = audit.influence.repelling_landmark[row].tolist()
        further = [i for i in pushing if i >= 0 and i not in ranked]
        assert [mark["sample_id"] for mark in figures["repelling"]] == [100 + i for i in further]
        assert figures["further_repel"] == len(further)
        shown = [*figures["landmarks"], *figures["repelling"]]
        assert card.partition('id="found"')[0].count("<li>") == len(shown)
        strip = card.partition("− repelling")[2]
        assert strip.partition('id="found"')[0].count("<li>") == figures["repel"] + len(further)
        assert card.count('title="not ranked') == len(further), "a dash where a score would stand"
        sample = deck["samples"][row]
        assert [deck["landmarks"][at]["id"] for at, *_ in sample["repelling"]] == [
            100 + i for i in further
        ]
        assert [score for _, score, _, _ in sample["repelling"]] == [None] * len(further)


@pytest.mark.parametrize("make", [full_audit, table_audit])
def test_a_card_counts_the_landmarks_that_it_draws(make):
    audit = make()
    panel = samples_panel(audit)
    cards = panel.render().split('<details class="card"')[1:]
    of_table = audit.audited.values is not None and audit.audited.image is None
    for figures, card in zip(panel.figures["samples"], cards, strict=True):
        card = card.partition('id="found"')[0]
        counted = Page(f"<details{card.partition('</summary>')[0]}</summary></details>").text
        drawn = figures["drawn"]
        assert f"{drawn['attract']} attract, {drawn['repel']} repel" in counted.replace(" ,", ",")
        for kind in ("attract", "repel"):
            _, _, strip = card.partition(f'<h4 class="{kind}"')
            shown = strip.partition("</ol>")[0].count("<li>")
            if of_table:
                shown = len(re.findall(rf'<th scope="col" class="{kind}"', card))
            assert shown == drawn[kind], figures["name"]


def test_figures_of_a_card_are_named_and_explained():
    for audit in (full_audit(), table_audit()):
        panel = samples_panel(audit)
        html = panel.render()
        for key in ("score", "contribution", "k"):
            assert re.search(rf'title="{key}: [^"]+">(<abbr [^>]+>)?{key}<', html), key
        assert set(panel.figures["deck"]["meanings"]) >= {"score", "contribution", "k", "agree"}
    assert 'title="lift: ' in html


def test_bars_of_what_repels_compare_the_contribution():
    landmarks = full_audit().landmarks
    influence = Influence(
        np.array([[0]]), np.array([[5.0]]), np.array([[0.4]]),
        repelling_landmark=np.array([[1, 2]]), repelling=np.array([[-0.2, -0.1]]),
    )  # fmt: skip
    audited = Audited(np.array([3]), image=landmarks.image[:1])
    html = samples_panel(full_audit(audited=audited, influence=influence)).render()
    assert re.findall(r'width="([\d.]+%)"[^>]*class="fill (\w+)"', html) == [
        ("100.0%", "attract"), ("50.0%", "repel"), ("25.0%", "repel"),
    ]  # fmt: skip


def test_a_table_shows_what_pushes_behind_the_ranked():
    audit = table_audit()
    one = explain_rows(audit, [0])[0]
    assert len(one.repelling_only) == 3 - len(
        set(audit.influence.top_landmark[0]) & set(audit.influence.repelling_landmark[0])
    )
    drawn, _ = row_table(one)
    page = Page(drawn)
    heads = [th["class"] for th in page.all("th") if "class" in th]
    assert len(heads) == len(one.links) + min(2, len(one.repelling_only))
    assert heads == sorted(heads)
    scores = [row for row in drawn.split("<tr") if ">score<" in row]
    assert scores[0].count("<data") == len(one.links)
    contributions = [row for row in drawn.split("<tr") if ">contribution<" in row]
    assert contributions[0].count("<data") == len(heads)


def test_a_ranked_one_that_repels_far_down_takes_the_place_of_one_that_pushes():
    links = [LandmarkLink(i, i + 1, 1.0, 1.0, 1.0) for i in range(9)]
    links[8] = LandmarkLink(8, 9, 1.0, -1.0, 1.0)
    pushed = [LandmarkLink(i, None, np.nan, -1.0, 1.0) for i in (20, 21)]
    one = Explained(full_audit(), 0, links, np.zeros(0), pushed)
    assert [link.row for _, link in one.beside(8, 2)] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 20]
    assert [place for place, _ in one.beside(2, 1)] == [0, 1, 8]
    assert [place for place, _ in one.beside(12, 1)] == [*range(9), 9]


def test_zero_scores_draw_empty_bars():
    zero = dataclasses.replace(full_audit().influence, score=np.zeros((7, 4)))
    assert 'width="0.0%"' in samples_panel(full_audit(influence=zero)).render()


# --- groups and odd samples ----------------------------------------------------------------------


def test_solutions_above_the_tolerance_are_counted_and_named():
    effects = full_audit().group_effects
    norms = dataclasses.replace(effects, gradient_norm=np.array([2e-6, 1e-7, 3e-3]), tolerance=1e-6)
    panel = group_effects_panel(full_audit(group_effects=norms))
    text = Page(panel.render()).text
    assert "2 of 3 solutions ended above the tolerance of 10⁻⁶" in text
    assert "farthest from it is landmark cluster 0 with 0.003 ." in text
    assert panel.figures["above_tolerance"] == 2
    reached = dataclasses.replace(norms, tolerance=0.01, converged=True)
    text = Page(group_effects_panel(full_audit(group_effects=reached)).render()).text
    assert "tolerance" not in text


def test_tables_of_groups_say_what_is_outlined_and_keep_names():
    effects = full_audit().group_effects
    name = "label = Asian-Pac-Islander"
    named = dataclasses.replace(effects, names=(name, *effects.names[1:]))
    html = group_effects_panel(full_audit(group_effects=named)).render()
    text = Page(html).text
    assert "Outlined in the tables: effect on the group's own samples" in text
    assert html.count(">Asian-Pac-Islander<") == 2, "as line and as column"
    assert "network is not trained again" in text


def test_landmarks_of_another_class_are_named():
    share = np.array([[0.996, 0.004, 0.0], [0.2, 0.8, 0.0], [0.0, 0.1, 0.9]])
    groups = Groups(
        ("cat", "dog", "hen"), np.array([40, 15, 3]), np.array([3, 3, 3]), share,
        np.full((3, 3), 0.002), share, np.full(3, 1 / 3),
    )  # fmt: skip
    html = groups_panel(full_audit(groups={"label": groups})).render()
    lines = html.split("<tr>")[2:]
    # Landmarks 1 and 2 are of dog and hen, prototypes have no class on them
    assert re.findall(r'class="badge"><bdi>(\w+)', lines[0]) == ["dog", "hen"]
    assert "0.4 %" in lines[0], "no 0 % beside pictures of confusion"


def test_rows_of_a_near_duplicate_stand_together():
    html = odd_panel(table_audit()).render()
    pairs = html.partition("Near duplicates")[2].partition("Mixed")[0]
    assert pairs.count("first-of-pair") == 1
    assert '<th scope="row">and ' in pairs
    # A cell that is cut has its whole value as a title
    assert 'title="age"' in pairs


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.0, "0 %"), (0.5, "50 %"), (0.004, "0.4 %"), (0.0004, "0.04 %"), (1e-6, "0 %")],
)
def test_a_small_share_is_not_printed_as_none(value, words):
    assert f">{words}<" in percent(value)


# --- table rows ----------------------------------------------------------------------------------


def test_agreement_by_the_formula():
    columns = (Column("a"), Column("b", "category", ("x", "y")), Column("c"), Column("d"))
    spans = np.array([10.0, 1.0, 0.0, 2.0])
    one, other = np.array([1.0, 0, 5, np.nan]), np.array([3.0, 1, 5, 1])
    assert agreement(one, other, columns, spans).tolist() == [0.8, 0.0, 1.0, 0.0]
    assert agreement(one, one, columns, spans).tolist() == [1, 1, 1, 0]
    assert agreement(one, one + 100, columns, spans)[0] == 0


def test_spans_are_robust_and_skip_what_is_missing():
    audit = table_audit()
    both = np.concatenate([audit.landmarks.values, audit.audited.values])
    low, high = np.nanquantile(both[:, 0], [0.01, 0.99])
    assert column_spans(audit)[0] == pytest.approx(high - low)
    assert column_spans(audit)[2] == 0
    assert column_spans(full_audit(columns=(Column("a"),))).tolist() == [0]


@pytest.mark.parametrize(
    ("value", "column", "shown"),
    [
        (3.0, Column("a"), "3"),
        (1234.0, Column("a"), "1,234"),
        (0.12345, Column("a"), "0.1235"),
        (1.0, Column("a", "category", ("x", "y")), "<bdi>y</bdi>"),
        (7.0, Column("a", "category", ("x", "y")), "<bdi>code 7</bdi>"),
        (np.nan, Column("a"), '<span class="none">missing</span>'),
    ],
)
def test_cell(value, column, shown):
    assert cell(value, column) == shown


def beside(audit, mine, theirs, links, spans):
    """The first audited sample, with this row, beside some landmarks."""
    values = np.tile(mine, (len(audit.audited.sample_id), 1))
    audited = dataclasses.replace(audit.audited, values=values)
    return Explained(dataclasses.replace(audit, audited=audited, landmarks=theirs), 0, links, spans)


def test_agreeing_cells_are_marked():
    audit = table_audit()
    mine = np.array([40.0, 1.0, 1.0])
    theirs = dataclasses.replace(audit.landmarks, values=np.tile(mine, (9, 1)))
    theirs.values[1] = [90.0, 0.0, 2.0]
    links = [LandmarkLink(0, 1, 2.0, -1.0, 0.5), LandmarkLink(1, 2, 1.0, 1.0, 0.5)]
    drawn, _ = row_table(beside(audit, mine, theirs, links, np.array([10.0, 1.0, 0.0])))
    page = Page(drawn)
    cells = [td.get("class") for td in page.all("td") if td.get("class") != "own"][9 + 3 :]
    # One cell a column holds the lift
    cells = [cell for i, cell in enumerate(cells) if i % 3]
    # The attracting landmark, which differs everywhere, comes first.
    assert cells == [None, "agrees"] * 3
    assert [th["class"] for th in page.all("th") if "class" in th] == ["attract", "repel"]


def test_a_wide_table_keeps_columns_of_high_lift_and_audited_ones():
    columns = tuple(Column(f"c{i}") for i in range(20))
    audit = table_audit(columns=columns, alignment=None, audited_columns=("c0",))
    n = len(audit.audited.sample_id)
    # All samples agree in c1 to c9; in the others the explained sample differs from all
    mine = np.r_[np.zeros(10), np.full(10, 50.0)]
    values = np.zeros((n, 20))
    values[0] = mine
    audited = dataclasses.replace(audit.audited, values=values)
    audit = dataclasses.replace(audit, audited=audited)
    theirs = Landmarks(np.arange(9), values=np.tile(mine, (9, 1)))
    theirs.values[:, 0] = 30.0
    one = Explained(
        dataclasses.replace(audit, landmarks=theirs), 0, [LandmarkLink(0, 1, 1.0, 1.0, 1.0)],
        np.full(20, 20.0),
    )  # fmt: skip
    drawn, lift = row_table(one)
    # Of five explained samples one agrees with itself: lift 5; the audited column has 0
    assert lift == {**{f"c{i}": 5.0 for i in range(10, 20)}, "c0": 0.0}
    page = Page(drawn)
    assert "c0 audited" in page.text
    assert page.text.index("c10") < page.text.index("c19") < page.text.index("c0 audited")
    assert "9 further columns of smaller lift are left out." in page.text


# --- gallery -------------------------------------------------------------------------------------


def test_gallery_is_ordered_by_the_step_row():
    audit = full_audit()
    panel = landmarks_panel(audit)
    norms = np.linalg.norm(audit.newton.step, axis=1)
    sizes = [entry["size"] for entry in panel.figures["landmarks"]]
    assert sizes == pytest.approx(sorted(norms, reverse=True))
    assert [e["sample_id"] for e in panel.figures["landmarks"]] == (
        100 + np.argsort(-norms)
    ).tolist()


def test_gallery_without_a_step_falls_back_on_the_weight():
    audit = full_audit(newton=None)
    panel = landmarks_panel(audit)
    assert [e["weight"] for e in panel.figures["landmarks"]] == sorted(
        audit.landmarks.weight, reverse=True
    )
    assert "no step was computed" in panel.render()


def test_table_landmarks_are_a_table():
    page = Page(landmarks_panel(table_audit()).render())
    assert len(page.all("tr")) == 10
    assert not page.all("ol")


@pytest.mark.parametrize(("given", "shown"), [("", "#7"), ("7", "#7"), (" a ", "a"), ("8", "8")])
def test_a_name_that_is_only_the_position_is_shown_as_one(given, shown):
    samples = Samples(np.array([7]), sample_name=np.array([given]))
    assert SampleView(samples, full_audit()).name(0) == shown


def test_class_names():
    assert [class_name(code, ("a",)) for code in (-1, 0, 3)] == ["", "a", "class 3"]


# --- timing --------------------------------------------------------------------------------------


def test_kernel_and_optimisation_are_timed_apart():
    audit = full_audit()
    assert part_seconds(audit.stages) == {"kernel": 41.25, "optimisation": 1.5}
    page = Page(timing_panel(audit).render())
    assert "41 s kernel 1.50 s optimisation" in page.text
    assert "116.3 MiB" in page.text


def test_an_untimed_part_is_not_measured():
    stages = (
        dataclasses.replace(
            full_audit().stages[0], seconds=float("nan"), blocks=-1, bytes_written=-1
        ),
    )
    assert np.isnan(part_seconds(stages)["kernel"])
    assert "not measured" in timing_panel(full_audit(stages=stages)).render()


def test_a_figure_shows_its_ceiling_and_its_paired_differences() -> None:
    pairs = {"step_against_kernel": (-0.02, (-0.05, 0.01)), "against_inputs": (0.1, None)}
    measured = complete("kendall_tau", 0.93, (0.9, 0.95), noise_ceiling=0.92)
    controls = {**measured.values, "raw_inputs": 0.83}
    found = figure("kendall_tau", 0.93, controls, (0.9, 0.95), paired=pairs)
    panel = fidelity_panel(good(fidelity={"kendall_tau": found}))
    assert "at the ceiling" in panel.body
    assert "the figure minus kernel rows, paired" in panel.body
    shown = panel.figures["figures"]["kendall_tau"]
    assert shown["at_ceiling"] is True
    assert shown["paired"]["step_against_kernel"]["interval"] == (-0.05, 0.01)
    below = complete("kendall_tau", 0.91, noise_ceiling=0.92)
    assert "at the ceiling" not in fidelity_panel(good(fidelity={"kendall_tau": below})).body


def test_columns_without_groups_are_listed_with_the_key_that_makes_them_groups() -> None:
    audit = full_audit()
    assert audit.group_effects is not None
    effects = dataclasses.replace(audit.group_effects, left_out={"school <b>": 16, "country": 42})
    panel = group_effects_panel(dataclasses.replace(audit, group_effects=effects))
    text = re.sub(r"<[^>]*>", "", str(panel.lead))
    assert "school &lt;b&gt; (16 levels), country (42 levels)" in text
    assert "stages.groups.columns" in str(panel.lead)
    assert panel.figures["left_out"] == {"school <b>": 16, "country": 42}
    plain = group_effects_panel(audit)
    assert "stages.groups.columns" not in str(plain.lead)
    assert plain.figures["left_out"] == {}


def test_a_figure_stands_beside_random_weights_where_they_were_measured() -> None:
    figures = {"cka": complete("cka", 0.8), "stability": complete("stability", 0.9)}
    random = {
        "cka": {"value": 0.75, "draws": [0.3, 0.4, 0.5], "low": 0.1, "high": 0.7},
        "stability": {"value": None, "draws": [], "low": None, "high": None},
    }
    panel = fidelity_panel(good(fidelity=figures, random_fidelity=random))
    assert "random weights" in panel.body
    assert panel.body.count("this network on the same rows") == 1
    assert '<span class="none">not measured</span>' in panel.body
    shown = panel.figures["figures"]
    assert shown["cka"]["random_weights"] == random["cka"]
    assert shown["stability"]["random_weights"] is None
