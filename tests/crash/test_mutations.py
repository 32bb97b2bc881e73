"""Every planted break still applies to the code as it stands."""

from __future__ import annotations

import pytest

from tests.crash.mutations import MUTATIONS, ROOT, Mutation


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_the_text_to_break_is_there_once(mutation: Mutation) -> None:
    text = (ROOT / "krepes_ooc" / mutation.file).read_text()
    assert text.count(mutation.old) == 1
    assert (ROOT / mutation.tests.split()[0]).exists()
