import dataclasses
import inspect
import re

import numpy as np
import pytest

from krepes_ooc.core.figures import figure
from krepes_ooc.core.verdict import Check, Verdict
from krepes_ooc.rendering.data import (
    AuditData,
)
from krepes_ooc.rendering.drawing.sentence import percent
from krepes_ooc.rendering.measured import Groups
from krepes_ooc.rendering.panels.fidelity import fidelity_panel
from krepes_ooc.rendering.panels.group_effects import group_effects_panel
from krepes_ooc.rendering.panels.groups import groups_panel
from krepes_ooc.rendering.panels.odd import odd_panel
from krepes_ooc.rendering.panels.provenance import part_seconds, timing_panel
from krepes_ooc.rendering.panels.reliability import LIMITS, reliability_panel
from krepes_ooc.stages.verdict import criteria
from tests.figures import complete
from tests.rendering.samples import Page, full_audit, table_audit


def good(**changes) -> AuditData:
    return full_audit(**{"warnings": (), **changes})


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


# --- groups and odd samples ----------------------------------------------------------------------


def test_solutions_above_the_tolerance_are_counted_and_named():
    effects = full_audit().group_effects
    norms = dataclasses.replace(effects, gradient_norm=np.array([2e-6, 1e-7, 3e-3]), tolerance=1e-6)
    panel = group_effects_panel(full_audit(group_effects=norms))
    text = Page(panel.render()).text
    assert "2 of 3 solutions ended above the tolerance of 10⁻⁶" in text
    assert "farthest from it is landmark cluster 0 with 0.003 ." in text
    assert "Solving on" not in text
    assert panel.figures["above_tolerance"] == 2
    floor = dataclasses.replace(norms, floor=2e-7)
    panel = group_effects_panel(full_audit(group_effects=floor))
    words = "Solving on with all samples has a mean effect of"
    assert words in Page(panel.render()).text
    assert panel.figures["floor"] == 2e-7
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
