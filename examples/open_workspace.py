"""Read a finished audit with xarray and zarr alone: krepes is not imported.

python examples/open_workspace.py WORKSPACE
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import xarray
import zarr


def main(workspace: Path) -> None:
    """Show the tree, rebuild one embedding, and find a sample's strongest landmark."""
    tree = xarray.open_datatree(workspace / "audit.zarr", engine="zarr")
    print(", ".join(sorted(tree.children)))

    # f = K A + gamma, from the stored kernel rows of the audited samples.
    kernel = tree["influence/kernel"].values
    coefficients = tree["newton/coefficients"].values
    offset = tree["spectrum/offset"].values
    embedding = kernel @ coefficients + offset
    print("rebuilt within", np.abs(embedding - tree["influence/embedding"].values).max())

    group = zarr.open_group(workspace / "audit.zarr", mode="r")
    top = group["influence/top_landmark"][0, 0]
    names = group["landmarks/sample_name"].attrs["categories"]
    print("sample", group["audited/sample_id"][0], "is held most by landmark", names[top])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
