"""Fetch the emoji pictures and sort them into a folder for each category.

    python examples/vision-transformer/emoji.py

They come out of a pinned package of the npm registry (Twemoji, CC-BY 4.0), which is not installed.
Pictures of one emoji in other skin tones are left out. Everything lands in the folder .cache beside
this file.
"""

from __future__ import annotations

import json
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from benchmarks.fetch import Package, download  # noqa: E402

EMOJI = Package(
    "npm",
    "emoji-datasource-twitter",
    "15.1.2",
    "d0a0fe56a746fac2f360ebde72c7d6949ee0fc0c683758a288d82bd6b75e15d6",
)
PICTURES = HERE / ".cache" / "emoji"
LIST, IMAGES = "package/emoji.json", "package/img/twitter/64/"


def unpack(package: Path, folder: Path) -> int:
    """Write the pictures of a package into a folder for each category; returns their number.

    Args:
        package: the .tgz file.
        folder: becomes the source of the recipe.
    """
    with tarfile.open(package) as tar:
        listed = tar.extractfile(LIST)
        assert listed is not None, f"{package.name} holds no {LIST}"
        known = json.load(listed)
        # Five components, such as hair, are no emoji of their own.
        category = {
            IMAGES + each["image"]: each["category"]
            for each in known
            if each["has_img_twitter"] and each["category"] != "Component"
        }
        n_pictures = 0
        for member in tar:
            if member.name not in category:
                continue
            stream = tar.extractfile(member)
            assert stream is not None
            target = folder / category[member.name] / Path(member.name).name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(stream.read())
            n_pictures += 1
    return n_pictures


def main() -> None:
    """Download, check, unpack."""
    with tempfile.TemporaryDirectory(prefix="emoji-") as temporary:
        n_pictures = unpack(download(EMOJI, Path(temporary)), PICTURES)
    print(f"{n_pictures} pictures in {PICTURES}")


if __name__ == "__main__":
    main()
