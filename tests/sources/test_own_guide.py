"""Every line of the tables "What we do with ..." of docs/own.md, and the test that runs it."""

from __future__ import annotations

import ast
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from krepes_ooc.sources.base import SourceSpec
from krepes_ooc.sources.map_dataset import DatasetRows
from krepes_ooc.sources.open import open_source

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "own.md").read_text()
TABLES = "tests/sources/tables/test_table_kinds.py::test_"
ROWS = "tests/sources/test_sources.py::test_"
REFUSED = "tests/sources/tables/test_refused_tables.py::test_"
CHARACTERS = "tests/sources/tables/test_table_characters.py::test_"
NEW_ROWS = "tests/sources/tables/test_table_new_rows.py::test_"
INDICES = "tests/sources/tables/test_table_indices.py::test_"
READING = "tests/sources/tables/test_csv_reading.py::test_"
ENCODED = "tests/sources/tables/test_table_encoding.py::test_"
FOLDERS = "tests/sources/tables/test_table_folder.py::test_"
STATED = "tests/network/test_preprocessing.py::test_"
KINDS = "tests/sources/pictures/test_image_kinds.py::test_"
DAMAGED = "tests/sources/pictures/test_damaged_pictures.py::test_"
CONTAINERS = "tests/sources/pictures/test_picture_containers.py::test_"
SKIPPED = "tests/runner/test_skipped_pictures.py::test_"
HOLES = "tests/sources/arrays/test_array_holes.py::test_"
ARRAYS = "tests/sources/arrays/test_array_source.py::test_"
TIFF = "tests/sources/pictures/test_tiff_values.py::test_"
ITEMS = "tests/sources/test_dataset_items.py::test_"
VIEWS = "tests/views/test_user_views.py::test_"
GUIDED = "tests/sources/test_own_guide.py::test_"

# Section of the guide -> how a line begins -> the test of what it says.
CLAIMS = {
    "A table": {
        "columns that": TABLES + "categories_that_are_declared_are_those_of_the_file",
        "other columns": TABLES + "numbers_that_may_be_codes_are_pointed_out",
        "another separator": CHARACTERS + "one_wide_column_asks_for_the_delimiter",
        "another character": CHARACTERS + "bytes_that_are_not_utf_8",
        "decimal commas": TABLES + "decimal_commas",
        "percent signs": TABLES + "formatted_numbers_are_pointed_out",
        "dates such": TABLES + "dates_that_were_read_as_texts_are_pointed_out",
        "numbers, and `?`": TABLES + "words_for_missing_numbers",
        "numbers, and other": TABLES + "other_texts_among_numbers_are_pointed_out",
        "spaces around": NEW_ROWS + "new_rows_are_trimmed_like_the_source",
        "NA, NaN": NEW_ROWS + "a_word_is_a_category_in_new_rows_too",
        "a missing number": REFUSED + "a_bad_number_is_named",
        "a missing text": ROWS + "rows_labels_and_names_are_those_of_the_file",
        "indices of": INDICES + "an_index_is_no_input",
        "dates and times": TABLES + "dates_can_be_labels_names_and_categories",
        "lists, structures": TABLES + "columns_of_other_types",
        "equal rows": ENCODED + "rows_that_repeat_another_are_counted",
        "a file that changes": READING + "a_file_that_changes_while_it_is_parsed",
        "a label with": TABLES + "a_continuous_label",
        "a text over": TABLES + "quotes_that_are_not_closed_are_pointed_out",
        "a folder of": FOLDERS + "part_files_without_keys",
        "files of a folder": FOLDERS + "folders_that_cannot_be",
        "`.csv.gz`": ROWS + "other_formats_give_the_same_samples",
    },
    "Images": {
        "8 bit": KINDS + "one_picture_with_colour_makes_all_coloured",
        "16 bit, grey": KINDS + "16_bit_pictures_keep_every_level",
        "floats within": KINDS + "float_tiff",
        "other floats": KINDS + "32_bit_tiff_needs_a_range",
        "8 beside 16": KINDS + "depths_are_brought_together_or_refused",
        "grey beside": KINDS + "one_picture_with_colour_makes_all_coloured",
        "TIFF whose": TIFF + "values_that_are_decoded_as_others_are_refused",
        "TIFF with": TIFF + "channels_that_are_left_out_are_said",
        "alpha": KINDS + "alpha",
        "several pages": KINDS + "pages_are_chosen_or_refused",
        "sizes and scaling": STATED + "pictures_arrive_as_the_network_states",
        "other sizes": KINDS + "the_central_square_is_said_to_be_cut",
        "rotation": KINDS + "sizes_are_those_after_the_rotation_of_the_camera",
        "links to folders": KINDS + "links_are_followed_once",
        "names with a dot": KINDS + "hidden_names_are_no_samples_and_others_are_counted",
        "other suffixes": KINDS + "hidden_names_are_no_samples_and_others_are_counted",
        "files that cannot": DAMAGED + "damaged_files_are_skipped_and_recorded",
        "files that you may not": SKIPPED + "a_permission_is_no_damage",
        "the same picture": GUIDED + "the_same_picture_twice_is_two_samples",
    },
    "Pictures inside parquet and tar": {
        "parquet with": CONTAINERS + "columns_of_parquet",
        "a class label": CONTAINERS + "pictures_labels_and_names",
        "a column `label`": CONTAINERS + "missing_labels",
        "tar shards": CONTAINERS + "members_of_tar",
        "members `.cls`": CONTAINERS + "pictures_labels_and_names",
        "a tar without": CONTAINERS + "members_of_tar",
        "other columns": CONTAINERS + "members_of_tar",
        "a row without": CONTAINERS + "damaged_pictures_are_named_or_skipped",
        "a tar that is cut": CONTAINERS + "a_shard_that_changes_or_is_cut_is_refused",
        "compressed tar": CONTAINERS + "other_containers_are_refused_by_name",
        "LMDB": CONTAINERS + "other_containers_are_refused_by_name",
    },
    "Arrays": {
        "a chunk of Zarr": HOLES + "rows_of_hdf5_that_were_never_written",
        "attributes `scale": HOLES + "packed_integers_in_zarr",
        "a value equal": HOLES + "packed_integers_in_hdf5",
        "whole numbers [sample, y": HOLES + "whole_numbers_that_look_like_pictures_are_pointed_out",
        "the parts of": HOLES + "parts_of_a_sparse_matrix_are_named",
        "an HDF5 link": HOLES + "links_of_hdf5",
        "uint8 [sample": HOLES + "grey_pictures_in_hdf5_are_those_of_npy",
        "values of variable": HOLES + "contents_of_hdf5_that_are_no_numbers",
        "whole numbers [sample, column": ARRAYS + "views_of_whole_numbers_have_no_noise",
        "labels that are": HOLES + "labels_beside_an_array",
        "other labels": HOLES + "labels_that_are_none",
    },
    "Text, and anything else": {
        "a dict with": ITEMS + "the_sample_of_an_item",
        "`source.key`": ITEMS + "the_sample_of_an_item",
        "a list of": ITEMS + "the_sample_of_an_item",
        "`targets` (or": ITEMS + "labels_are_kept",
        "`targets` of": ITEMS + "labels_of_a_data_set_inside_another_are_kept",
        "masked values": ITEMS + "samples_without_plain_values_are_refused",
        "a tensor with": ITEMS + "tensors_and_arrays_of_any_form_are_read",
        "floats [channel": ITEMS + "pictures_that_no_one_has_scaled_are_pointed_out",
        "labels inside": ITEMS + "labels_of_many_items_are_not_read",
        "labels of another": ITEMS + "labels_that_are_not_used_are_named",
        "a sample that differs": ITEMS + "items_that_differ_at_the_second_read",
        "a factory that": ITEMS + "a_factory_that_draws_anew",
        "a view that differs": VIEWS + "views_that_differ_at_the_second_call",
        "one buffer": ITEMS + "the_second_call_is_made_once_and_buffers_are_copied",
    },
}


def lines() -> list[tuple[str, str]]:
    """Section and first cell of every line of the tables "What we do with ..."."""
    found: list[tuple[str, str]] = []
    section, inside, row = "", False, 0
    for line in GUIDE.splitlines():
        if line.startswith("#"):
            section, inside = line.lstrip("# "), False
        elif line.startswith("What we do with"):
            inside, row = True, 0
        elif inside and line.startswith("|"):
            row += 1
            # The first two lines are the head.
            found += [(section, line.strip("| ").split(" | ")[0])] if row > 2 else []
        elif inside and line:
            inside = False
    return found


@pytest.mark.parametrize(("section", "cell"), lines(), ids=lambda value: str(value)[:30])
def test_every_line_has_its_test(section: str, cell: str) -> None:
    named = {test for start, test in CLAIMS[section].items() if cell.startswith(start)}
    assert len(named) == 1, f"no one test for {cell!r} in section {section!r}"
    file, _, name = named.pop().partition("::")
    tree = ast.parse((ROOT / file).read_text())
    tests = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert any(test.startswith(name) for test in tests), name


def test_no_test_is_named_in_vain() -> None:
    written = {section: [c for s, c in lines() if s == section] for section in CLAIMS}
    for section, claims in CLAIMS.items():
        for start in claims:
            assert any(cell.startswith(start) for cell in written[section]), (section, start)
    assert len(lines()) >= 46


def test_the_sections_of_the_first_table_exist() -> None:
    anchors = {
        re.sub(r"[^\w -]", "", line.lstrip("# ")).lower().replace(" ", "-")
        for line in GUIDE.splitlines()
        if line.startswith("#")
    }
    linked = re.findall(r"\]\(#([\w-]+)\)", GUIDE)
    assert len(linked) >= 4
    assert set(linked) <= anchors


def test_the_same_picture_twice_is_two_samples(tmp_path: Path) -> None:
    (tmp_path / "img").mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(np.full((4, 4), 9, np.uint8)).save(tmp_path / "img" / name)
    source = open_source(SourceSpec(kind="images", path="img"), tmp_path, tmp_path / "cache")
    assert source.n_samples == 2
    assert source.names(np.arange(2)) == ["a.png", "b.png"]


def shown_code(name: str) -> Any:
    """An object that a Python block of the guide defines."""
    block = next(
        text
        for text in re.findall(r"^```python\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
        if re.search(rf"^(def|class) {name}\b", text, re.MULTILINE)
    )
    space: dict[str, Any] = {}
    exec(block, space)
    return space[name]


def encoded(pixels: np.ndarray[Any, Any], kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def test_the_shard_that_the_guide_writes_is_read(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    contents = [encoded(image, ["PNG", "JPEG"][i % 2]) for i, image in enumerate(pixels)]
    labels = ["cat", "dog", "cat", "eel"]
    shown_code("write_shard")(tmp_path / "x.tar", zip(contents, labels, strict=True))
    source = open_source(SourceSpec(kind="images", path="x.tar"), tmp_path, tmp_path / "cache")
    decoded = [np.asarray(Image.open(io.BytesIO(content))) for content in contents]
    assert np.array_equal(source.read(np.arange(4)), decoded)
    assert [source.classes[i] for i in source.labels(np.arange(4))] == labels


def test_the_data_set_that_the_guide_shows_is_read(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    code = next(text for text in GUIDE.split("```python\n") if "class Records" in text)
    store = f"{{i: open(f'{tmp_path}/{{i}}.png', 'rb').read() for i in range(4)}}"
    build = f"\n\ndef build():\n    return Records({store}, range(4), [0, 1, 0, 1])\n"
    (tmp_path / "records.py").write_text(code.split("```")[0] + build)
    for i, image in enumerate(pixels):
        (tmp_path / f"{i}.png").write_bytes(encoded(image, "PNG"))
    rows = DatasetRows("records.py:build", {}, tmp_path, None)
    assert np.array_equal(rows.take(np.arange(4)), pixels)
    spec = SourceSpec(kind="factory", factory="records.py:build")
    source = open_source(spec, tmp_path, tmp_path / "cache")
    assert source.kind == "image"
    assert source.labels(np.arange(4)).tolist() == [0, 1, 0, 1]
