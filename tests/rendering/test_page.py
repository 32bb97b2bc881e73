import base64
import dataclasses
import hashlib
import json

import numpy as np
import pytest

from krepes_ooc.core.figures import undefined_figure
from krepes_ooc.core.verdict import Check, Verdict
from krepes_ooc.rendering.data import AuditData, Column, Spectrum, StageRecord, Subject
from krepes_ooc.rendering.page import APPENDIX, PANELS, build_report
from krepes_ooc.rendering.search_data import script_policy
from tests.figures import complete
from tests.rendering.samples import HOSTILE, Page, full_audit, numbers_in, table_audit

OUR_SCRIPTS = [{"type": "application/json", "id": "deck"}, {}]
AUDITS = {"images": full_audit, "table": table_audit}
PARTS = [
    field.name
    for field in dataclasses.fields(AuditData)
    if field.default is None
    or field.default_factory is not dataclasses.MISSING
    or field.default == ()
]


@pytest.fixture(scope="module", params=AUDITS)
def report(request):
    return build_report(AUDITS[request.param]())


def without(name):
    """An audit from which one part is missing; influence goes with its samples."""
    empty = {
        f.name: getattr(AuditData(Subject("", "", "", "")), f.name)
        for f in dataclasses.fields(AuditData)
    }
    gone = {name: empty[name]}
    if name in ("landmarks", "audited"):
        gone["influence"] = None
    if name == "audited":
        gone["concepts"] = None
    return gone


def test_page_is_well_formed_and_complete(report):
    page = Page(report.html)
    assert report.html.startswith('<!doctype html>\n<html lang="en">')
    assert len(page.all("section")) == len(PANELS) + len(APPENDIX)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {link["href"].removeprefix("#") for link in page.all("a")}
    # A sample without a card in the page gets one from the script
    assert {target for target in targets if not target.startswith("sample-")} <= set(ids)
    for _, attributes in page.tags:
        for name in ("aria-labelledby",):
            assert set((attributes.get(name) or "").split()) <= set(ids)


def test_every_number_shown_is_in_the_json(report):
    known = numbers_in(report.json)
    shown = [float(data["data-value"]) for data in Page(report.html).all("data")]
    assert len(shown) > 150
    assert not [value for value in shown if value not in known]


def test_json_is_strict_and_plain(report):
    assert json.loads(json.dumps(report.json, allow_nan=False)) == report.json
    assert report.json["reliability"]["verdict"]["checks"][0]["figures"]["rho"] == 0.611
    assert report.json["report_format"] == 2


def test_nan_is_never_printed(report):
    page = Page(report.html)
    words = page.text.lower().replace(",", " ").split()
    assert not {"nan", "inf", "none", "null"} & set(words)
    assert "not measured" in page.text
    for tag, attributes in page.tags:
        assert not any(value and "nan" in value.split() for value in attributes.values()), tag


def test_nothing_is_loaded_or_run(report):
    page = Page(report.html)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"link", "iframe", "object", "embed", "base"}
    # Map and search; they have nowhere to be sent to, and the policy allows nowhere.
    assert [form.get("action") for form in page.all("form")] == [None, None]
    assert page.all("script") == OUR_SCRIPTS
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("data:image/png;base64,", "#"))
    assert "url(" not in report.html
    assert "@import" not in report.html
    policy = page.all("meta")[2]["content"]
    assert policy.startswith("default-src 'none'")
    assert policy.endswith(f"script-src {script_policy()}")
    assert "form-action 'none'" in policy


def test_policy_names_the_script_that_the_page_holds(report):
    own = report.html.rpartition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in Page(report.html).all("meta")[2]["content"]


def test_deck_holds_every_audit_sample(report):
    text = report.html.partition('id="deck">')[2].partition("</script>")[0]
    deck, told = json.loads(text), report.json["samples"]
    assert {key: value for key, value in deck.items() if key != "pictures"} == told["deck"]
    assert len(deck["samples"]) == told["total"]
    for sample, card in zip(deck["samples"], told["samples"], strict=False):
        assert sample["id"] == card["sample_id"]
        ids = [deck["landmarks"][link[0]]["id"] for link in sample["links"]]
        assert ids == [landmark["sample_id"] for landmark in card["landmarks"]]
        scores = [link[1] for link in sample["links"]]
        assert scores == [landmark["score"] for landmark in card["landmarks"]]


def test_pictures_shrink_until_they_fit():
    audit = full_audit()
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (7, 96, 96, 3), dtype=np.uint8)
    large = dataclasses.replace(audit.audited, image=noise)
    sizes = []
    for limit in (10**7, 10**5, 10):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("krepes_ooc.rendering.search_data.PICTURE_BYTES", limit)
            html = build_report(dataclasses.replace(audit, audited=large)).html
        text = html.partition('id="deck">')[2].partition("</script>")[0]
        sizes.append(len(text))
    assert sizes[0] > sizes[1] > sizes[2]
    assert "pictures" not in json.loads(text)


@pytest.mark.parametrize("make", AUDITS.values(), ids=AUDITS)
def test_same_audit_same_bytes(make):
    one, two = build_report(make()), build_report(make())
    assert one.html == two.html
    assert one.json == two.json


def test_hostile_text_everywhere_is_only_text():
    audit = table_audit()
    labelled = dataclasses.replace(complete("confidence_drop", 0.5), label=HOSTILE)
    hostile = dataclasses.replace(
        audit,
        subject=Subject(HOSTILE, HOSTILE, HOSTILE, HOSTILE, {HOSTILE: 3}),
        audited=dataclasses.replace(audit.audited, sample_name=np.array([HOSTILE] * 7)),
        landmarks=dataclasses.replace(audit.landmarks, sample_name=np.array([HOSTILE] * 9)),
        classes=(HOSTILE,) * 3,
        columns=(
            Column(HOSTILE),
            Column(HOSTILE + "2", "category", (HOSTILE, HOSTILE)),
            Column("c"),
        ),
        fidelity={
            "ridge_ceiling": undefined_figure("ridge_ceiling", HOSTILE),
            "confidence_drop": labelled,
        },
        concepts=dataclasses.replace(
            audit.concepts,
            names=(HOSTILE, HOSTILE + "2"),
        ),
        alignment=dataclasses.replace(
            audit.alignment, names=(HOSTILE,) * 4, notes={HOSTILE: HOSTILE}
        ),
        groups={
            HOSTILE: dataclasses.replace(
                audit.groups["colour"], categories=(HOSTILE,) * 4, note=HOSTILE
            ),
            HOSTILE + "2": dataclasses.replace(audit.groups["label"], note=HOSTILE),
        },
        verdict=Verdict((Check(HOSTILE, HOSTILE, HOSTILE, "fail", HOSTILE),)),
        influence=dataclasses.replace(audit.influence, measure=HOSTILE),
        newton=dataclasses.replace(
            audit.newton, attributes={**audit.newton.attributes, HOSTILE: HOSTILE}
        ),
        spectrum=dataclasses.replace(audit.spectrum, entropy={HOSTILE: 0.5}),
        stages=(StageRecord(HOSTILE, 1.0, 1, 1, digest=HOSTILE, version=1, note=HOSTILE),),
        warnings=(HOSTILE,),
        recipe_text="</pre>" + HOSTILE,
        versions={HOSTILE: HOSTILE},
        record={HOSTILE + "r": HOSTILE},
    )
    report = build_report(hostile)
    page = Page(report.html)
    assert page.all("script") == OUR_SCRIPTS
    assert report.html.lower().count("<script") == 2
    assert "\x00" not in report.html
    assert page.text.count("<script>alert('x')</script>") > 20
    report.html.encode("utf-8")
    assert report.json["subject"]["network"] == HOSTILE


def test_hostile_pictures_and_texts():
    audit = full_audit()
    hostile = dataclasses.replace(
        audit,
        classes=(HOSTILE,) * 3,
        audited=dataclasses.replace(audit.audited, image=None, text=np.array([HOSTILE] * 7)),
    )
    page = Page(build_report(hostile).html)
    assert page.all("script") == OUR_SCRIPTS
    assert any("<script>" in (image["alt"] or "") for image in page.all("img"))


def test_an_empty_audit_says_what_is_missing():
    report = build_report(AuditData(Subject("recipe", "network", "source", "SimCLR")))
    page = Page(report.html)
    for key in (
        "samples",
        "landmarks",
        "groups",
        "concepts",
        "alignment",
        "fidelity",
        "step",
        "spectrum",
        "timing",
    ):
        assert report.json[key]["missing"] in page.text
        assert report.json[key]["missing"].endswith(".")
    assert "No verdict: the stage verdict has not run." in page.text


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("make", AUDITS.values(), ids=AUDITS)
def test_any_one_part_may_be_missing(make, name):
    changes = without(name)
    if name == "columns":
        audit = make()
        changes |= {
            "landmarks": dataclasses.replace(audit.landmarks, values=None),
            "audited": dataclasses.replace(audit.audited, values=None),
        }
    report = build_report(make(**changes))
    known = numbers_in(report.json)
    assert all(float(d["data-value"]) in known for d in Page(report.html).all("data"))


@pytest.mark.parametrize("field", ["label", "sample_name", "image", "weight", "view"])
def test_any_one_column_of_the_landmarks_may_be_missing(field):
    audit = full_audit()
    landmarks = dataclasses.replace(audit.landmarks, **{field: None})
    Page(build_report(dataclasses.replace(audit, landmarks=landmarks)).html)


def test_unmeasured_spectrum_and_zero_landmark_samples():
    audit = full_audit(spectrum=Spectrum(np.zeros(4)))
    assert "Nothing to draw" in Page(build_report(audit).html).text
