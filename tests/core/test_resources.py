from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krepes_ooc.core import resources
from krepes_ooc.errors import RecipeError, UsageError

HERE = Path(resources.__file__).parent


@pytest.fixture
def load(tmp_path: Path):
    def load_text(text: str | bytes):
        path = tmp_path / "a.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return resources.load_yaml(path)

    return load_text


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A package folder of our own, as if installed."""
    (tmp_path / "package").mkdir()
    monkeypatch.setattr(resources, "files", lambda _: tmp_path / "package")
    return tmp_path


@pytest.mark.parametrize("kind", ["pipelines", "stores"])
def test_a_checkout_has_the_folders_beside_the_package(kind: str):
    assert resources.folder(kind) == HERE.parents[1] / kind
    assert resources.folder(kind).is_dir()


def test_an_installed_package_has_the_folders_inside(shipped: Path):
    (shipped / "stores").mkdir()
    assert resources.folder("stores") == shipped / "stores"
    (shipped / "package" / "stores").mkdir()
    assert resources.folder("stores") == shipped / "package" / "stores"


def test_names_are_sorted_and_only_yaml(shipped: Path):
    (shipped / "stores" / "hpc").mkdir(parents=True)
    for name in ("b.yaml", "a.yaml", "c.txt", "hpc/d.yaml"):
        (shipped / "stores" / name).touch()
    assert resources.names("stores") == ["a", "b"]
    assert resources.find("stores", "a") == shipped / "stores" / "a.yaml"


@pytest.mark.parametrize("name", ["c", "", "../stores/a", "a.yaml", "hpc/d"])
def test_an_unknown_name_is_refused_with_the_known_ones(shipped: Path, name: str):
    (shipped / "stores").mkdir()
    for known in "ab":
        (shipped / "stores" / f"{known}.yaml").touch()
    with pytest.raises(UsageError) as caught:
        resources.find("stores", name)
    assert str(caught.value) == f"no {name!r} in stores; expected one of a, b"


@pytest.mark.parametrize("kind", ["pipelines", "stores"])
def test_every_shipped_declaration_parses(kind: str):
    for name in resources.names(kind):
        assert resources.load_yaml(resources.find(kind, name))


def test_plain_yaml_is_read(load):
    assert load("a: 1\nb: [x, {c: 2.5}]\n'on': off\nd: ~\n") == {
        "a": 1,
        "b": ["x", {"c": 2.5}],
        "on": False,
        "d": None,
    }
    assert load("é: ü\n") == {"é": "ü"}
    assert load(b"\xef\xbb\xbfa: 1\n") == {"a": 1}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &x 1\nb: *x\n", "aliases are not allowed"),
        ("a: &x [1]\nb: [*x, *x]\n", "aliases are not allowed"),
        ("a: 1\nb: 2\na: 3\n", "key 'a' stands twice, line "),
        ("x:\n  c: {a: 1, a: 1}\n", "key 'a' stands twice, line "),
        ("1: a\n1: b\n", "key '1' stands twice, line "),
        ("a: !!python/object/apply:os.system [exit]\n", "python/object/apply:os.system"),
        ("a: !!python/name:os.system\n", "tag"),
        ("a: !mine 3\n", "tag '!mine'"),
        ("<<: {a: 1}\nb: 2\n", "could not determine a constructor"),
        ("? [a, b]\n: 1\n", "unhashable key"),
        ("a: [1\n", "expected ',' or ']'"),
        ("a: 1\n---\nb: 2\n", "but found another document"),
        ("a: 2001-99-99\n", "month must be in 1..12"),
        ("a: \x00\n", "special characters are not allowed"),
        ("[" * 20_000, "recursion"),
    ],
)
def test_anything_but_plain_yaml_is_refused(load, text: str, said: str):
    with pytest.raises(RecipeError) as caught:
        load(text)
    assert "a.yaml: not plain YAML: " in str(caught.value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "# nothing\n", "3\n", "- a\n- b\n", "text\n", "~\n"])
def test_no_mapping_at_the_top_is_refused(load, text: str):
    with pytest.raises(RecipeError) as caught:
        load(text)
    assert str(caught.value).endswith("a.yaml: no mapping at the top; expected keys with values")


def test_a_file_that_is_too_long_is_refused_unread(load):
    with pytest.raises(RecipeError) as caught:
        load("a: " + "x" * 2**20)
    assert str(caught.value).endswith("a.yaml: 1048579 bytes; expected at most 1048576 bytes")


@pytest.mark.parametrize(
    ("name", "said"), [("missing.yaml", "no such file; "), ("", "cannot read: ")]
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, said: str):
    with pytest.raises(UsageError) as caught:
        resources.load_yaml(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: {said}")
    assert str(caught.value).endswith("; expected a YAML file")
    assert not isinstance(caught.value, RecipeError)


def test_bytes_that_are_no_text_are_named(load):
    with pytest.raises(UsageError, match=r"a\.yaml: cannot read: 'utf-8' codec"):
        load(b"a: \xff\xfe\n")


@given(st.text(max_size=40) | st.text("{}[]:,-?!&*<|>%@'\"# \nab1.", max_size=40))
def test_any_text_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(text.encode(errors="replace"))
    try:
        result = resources.load_yaml(path)
    except UsageError as error:
        result = str(error)
    assert isinstance(result, dict) or len(result.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("true", True),
        ("[a, 1]", ["a", 1]),
        ("text", "text"),
        ("{a: 1}", {"a": 1}),
        ("", None),
    ],
)
def test_one_value_from_the_command_line(text: str, value: object):
    assert resources.parse_value(text) == value


@pytest.mark.parametrize("text", ["[1", "*x", "!!python/name:os.system", "{a: 1, a: 2}", "@"])
def test_one_value_that_is_no_yaml_is_refused(text: str):
    with pytest.raises(UsageError) as caught:
        resources.parse_value(text)
    assert str(caught.value) == f"--set: {text!r} is no YAML value"


WORDS = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=9)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(WORDS, PLAIN, max_size=4))
def test_dumped_values_read_back(tmp_path_factory: pytest.TempPathFactory, values: dict):
    path = tmp_path_factory.getbasetemp() / "dumped.yaml"
    path.write_text(resources.dump_yaml(values), encoding="utf-8")
    assert resources.load_yaml(path) == values
    assert list(resources.load_yaml(path)) == list(values)


def test_a_value_that_occurs_twice_reads_back(load):
    shared = [1, 2]
    assert load(resources.dump_yaml({"a": shared, "b": shared})) == {"a": [1, 2], "b": [1, 2]}


@pytest.mark.parametrize(
    "text", ["a: !!set {b, c}", "a: !!binary aGk=", "a: !!str 1", "a: !!int ''", "a: !!bool x"]
)
def test_no_tag_passes(load, text: str):
    with pytest.raises(RecipeError, match="tag"):
        load(text)
