"""Feature map of a run that begins or goes on, proven by the rows that are on record.

A store that was begun holds the probes and scales of its rows, but no seal names its documents yet,
and the record of the network's outputs may be gone. One batch, computed now, must have the bits of
the blocks on record: so a damaged probe or a changed network cannot go on unseen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.blocks import Block
from krepes_ooc.core.feature_layout import FeatureLayout
from krepes_ooc.errors import DamageError, KrepesError
from krepes_ooc.jacobian.feature_map import FeatureMap
from krepes_ooc.stages.base.inputs import OUTPUTS_FACT
from krepes_ooc.stages.base.recipe_inputs import RecipeInputs
from krepes_ooc.stages.base.stage import StageContext
from krepes_ooc.stages.base.writing import block_name
from krepes_ooc.stages.features.featurizer import Featurizer, keeps_features, on_host, self_kernel
from krepes_ooc.storage.stage_record import discard
from krepes_ooc.storage.store_reader import StoreReader

Opened = tuple[FeatureMap, FeatureLayout]


def open_rows(recipe: RecipeInputs, context: StageContext) -> Opened:
    """Feature map and layout of the rows, those of the blocks on record if there are any.

    Blocks that cannot be proven are dropped: they are computed again.

    Args:
        recipe: source, network and views.
        context: the features stage, whose seal gets the outputs of the network.

    Raises:
        WorkspaceError: the network gives other outputs than when the run began.
        DamageError: the blocks of a shard cannot be proven.
    """
    # A resumed run takes probes and scales of the store that was begun: the same bits.
    begun = _begun_attributes(context)
    opened = _open(recipe, context, begun)
    # Before the first block: the network gives the outputs that are expected.
    context.seal_facts[OUTPUTS_FACT] = recipe.check_network_outputs(context.digest)
    found = _block_on_record(context)
    if found is None or _is_same(recipe, context, opened, *found):
        return opened
    # Where the store's document is damaged, the same probes and scales are found anew.
    recipe.close_features()
    opened = _open(recipe, context, {})
    if begun and _is_same(recipe, context, opened, *found):
        return opened
    what = "the rows on record are not those that the network gives now"
    # Other processes may write beside a shard.
    if context.shard is not None:
        raise DamageError(
            what,
            where=str(context.record.folder),
            expected="the network, probes and scales that the blocks were computed with",
            advice="run the stage without --shard: it is computed again",
        )
    context.progress.note(f"{what}: all blocks are computed again")
    context.record.reset()
    discard(context.record.partials, context.record.temp)
    context.workspace.drop_reader("features")
    return opened


def _open(recipe: RecipeInputs, context: StageContext, begun: Mapping[str, Any]) -> Opened:
    shared = recipe.open_features(context.settings, begun.get("probes"))
    known = begun.get("layout")
    return shared, shared.layout if known is None else FeatureLayout.from_attributes(known)


def _begun_attributes(context: StageContext) -> dict[str, Any]:
    """Attributes of this stage's store if an earlier run began it under the same digest."""
    if "features" not in context.workspace.stores():
        return {}
    try:
        attributes = context.output().attributes
    except DamageError:
        return {}  # the document is put back: what it said is found anew, and proven
    # The store is written next, and a cached reader would keep its old metadata.
    context.workspace.drop_reader("features")
    same_digest = dict(attributes.get("krepes", {})).get("digest") == context.digest
    return attributes if same_digest else {}


def _block_on_record(context: StageContext) -> tuple[Block, npt.NDArray[Any]] | None:
    """The first undamaged block on record of this processor, and what is compared of it."""
    record = context.record
    done = record.done()
    if not done or record.store is None or not record.store.exists():
        return None
    reader = StoreReader(record.store, record=record)
    # Without stored rows their k(x, x) is compared, which depends on all of them.
    array = "values" if keeps_features(context) else "self_kernel"
    for block in context.plan.blocks():
        unit = done.get(block_name(block))
        if unit is not None and unit.numerics == context.numerics:
            try:
                return block, np.asarray(reader.block(array, block, 0))
            except KrepesError:
                continue  # a damaged chunk is named by whoever needs it
    return None


def _is_same(
    recipe: RecipeInputs,
    context: StageContext,
    opened: Opened,
    block: Block,
    stored: npt.NDArray[Any],
) -> bool:
    """Whether rows computed now, or their k(x, x), have the bits of a stored block."""
    featurizer = Featurizer(recipe, context, context.settings, *opened)
    keeps = keeps_features(context)
    # The bits of a row depend on its batch, those of k(x, x) on its block.
    stop = min(block.stop, block.start + featurizer.batch) if keeps else block.stop
    rows, _ = featurizer.rows_on_device(recipe.order.positions(block.start, stop), 0)
    device = context.device
    now = on_host(rows, device) if keeps else self_kernel(rows, opened[1], device)
    return stored[: len(now)].tobytes() == np.asarray(now).tobytes()
