from __future__ import annotations

import pytest

from krepes_ooc.core.digests import canonical_digest, pairs_digest


@pytest.mark.parametrize(
    "names", [[], ["a"], ['"', "\\", "\n", "é", "\udce9", "\x00", "a/b c.png", "😀"]]
)
def test_a_digest_of_pairs_is_the_canonical_one(names: list[str]) -> None:
    values = [f"{index:064x}" for index in range(len(names))]
    pairs = [[name, value] for name, value in zip(names, values, strict=True)]
    assert pairs_digest(names, values) == canonical_digest(pairs)
    if names:
        assert pairs_digest(names, [*values[1:], "x"]) != canonical_digest(pairs)
        with pytest.raises(ValueError, match="zip"):
            pairs_digest(names, [])
