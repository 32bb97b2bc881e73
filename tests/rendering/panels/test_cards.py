"""Cards of samples: what each shows, counts, names and folds."""

import dataclasses
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from krepes_ooc.rendering.data import (
    AuditData,
    Audited,
    Influence,
    Landmarks,
)
from krepes_ooc.rendering.drawing.sample_view import (
    LandmarkSamples,
)
from krepes_ooc.rendering.explanation import Explained, explain_rows
from krepes_ooc.rendering.landmark_links import LandmarkLink, links_of
from krepes_ooc.rendering.panels.discovered import discovered_panel
from krepes_ooc.rendering.panels.row_table import row_table
from krepes_ooc.rendering.panels.samples import samples_panel
from krepes_ooc.rendering.sample_concepts import ConceptScore, SampleConcepts
from tests.rendering.samples import N_LANDMARKS, Page, full_audit, table_audit


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
