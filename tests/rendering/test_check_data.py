import dataclasses

import numpy as np
import pytest

from krepes_ooc.errors import DataError
from krepes_ooc.rendering.check_data import check_audit
from krepes_ooc.rendering.data import AuditData, Newton, Subject
from krepes_ooc.rendering.measured import Groups
from krepes_ooc.rendering.page import build_report
from tests.rendering.samples import N_AUDITED, N_LANDMARKS, full_audit, table_audit


def changed(audit, part, **changes):
    return dataclasses.replace(
        audit, **{part: dataclasses.replace(getattr(audit, part), **changes)}
    )


def test_complete_and_empty_audits_pass():
    check_audit(full_audit())
    check_audit(table_audit())
    check_audit(AuditData(Subject("r", "n", "s", "o")))


@pytest.mark.parametrize(
    ("audit", "words"),
    [
        (
            changed(full_audit(), "landmarks", label=np.zeros(3)),
            "landmarks.label: 3 rows; expected 9 samples",
        ),
        (
            changed(full_audit(), "audited", role=np.zeros(2)),
            "audited.role: 2 rows; expected 7 samples",
        ),
        (
            changed(full_audit(), "audited", image=np.zeros((N_AUDITED, 4, 4))),
            "type float64; expected uint8",
        ),
        (
            changed(full_audit(), "audited", image=np.zeros((N_AUDITED, 4, 4, 2), np.uint8)),
            "1, 3 or 4 channels",
        ),
        (
            changed(full_audit(), "audited", image=np.zeros((N_AUDITED, 4), np.uint8)),
            "[sample, y, x]",
        ),
        (
            changed(table_audit(), "audited", values=np.zeros((N_AUDITED, 2))),
            "for 3 columns; expected [sample, column]",
        ),
        (
            changed(full_audit(), "influence", score=np.zeros((1, 4))),
            "influence.score: 1 rows; expected 7 audited",
        ),
        (
            changed(full_audit(), "influence", top_landmark=np.full((N_AUDITED, 4), N_LANDMARKS)),
            "from 9 to 9; expected -1 to 8",
        ),
        (
            changed(full_audit(), "influence", top_landmark=np.full((N_AUDITED, 4), -2)),
            "expected -1 to 8",
        ),
        (
            changed(full_audit(), "influence", repelling_landmark=np.full((N_AUDITED, 3), 9)),
            "influence.repelling_landmark: landmark indices from 9 to 9; expected -1 to 8",
        ),
        (
            changed(full_audit(), "influence", repelling=np.zeros((N_AUDITED, 2))),
            "report influence.repelling: shape (7, 2); expected (7, 3), that of",
        ),
        (full_audit(audited=None), "influence without its samples; expected audited and landmarks"),
        (
            full_audit(newton=Newton({}, np.zeros((2, 2)))),
            "newton.step: 2 rows; expected 9 landmarks",
        ),
        (
            full_audit(newton=Newton({}, sweep={"damping": np.ones(2), "loss": np.ones(3)})),
            "newton.sweep.loss: 3 rows; expected 2",
        ),
        (
            full_audit(newton=Newton({}, sweep={"loss": np.ones(3)})),
            "newton.sweep.loss: 3 rows; expected 0",
        ),
        (
            changed(table_audit(), "alignment", gap=np.zeros(2)),
            "alignment.gap: 2 rows; expected 4 columns",
        ),
        (
            changed(table_audit(), "concepts", accuracy=np.zeros(3)),
            "concepts.accuracy: 3 rows; expected 2 concepts",
        ),
        (
            changed(table_audit(), "alignment", names=(), gap=np.zeros(3)),
            "alignment.stderr: 4 rows; expected 3 columns",
        ),
        (
            changed(table_audit(), "alignment", repelling=np.zeros(1)),
            "alignment.repelling: 1 rows; expected 4 columns",
        ),
        (
            changed(table_audit(), "concepts", controls={"chance": np.zeros(1)}),
            "concepts.controls.chance: 1 rows; expected 2 concepts",
        ),
        (
            changed(table_audit(), "concepts", landmark_score=np.zeros((2, 3))),
            "concepts.landmark_score: 3 rows; expected 9 landmarks",
        ),
        (
            table_audit(groups={"g": Groups(("a", "b"))}),
            "groups.g.samples: 0 rows; expected 2 groups",
        ),
        (
            table_audit(
                groups={"g": Groups(("a",), *np.ones((2, 1)), np.ones((1, 2)), *np.ones((2, 1, 1)))}
            ),
            "groups.g.chance: 0 rows; expected 1 groups",
        ),
        (
            changed(table_audit(), "concepts", score=np.zeros((2, 1))),
            "concepts.score: 2 rows; expected 7 audited",
        ),
    ],
)
def test_parts_that_do_not_fit_are_named(audit, words):
    with pytest.raises(DataError, match="report") as caught:
        build_report(audit)
    assert words in str(caught.value)


def test_curves_need_equal_lengths():
    audit = full_audit()
    curve = dataclasses.replace(audit.curves["tau_over_components"], lines={"step": np.zeros(2)})
    with pytest.raises(
        DataError, match=r"curves\.tau_over_components\.step: 2 rows; expected 3 points"
    ):
        check_audit(full_audit(curves={"tau_over_components": curve}))
