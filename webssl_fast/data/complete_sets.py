"""Whether a published data set is whole, which alone makes a score comparable with published ones."""

from __future__ import annotations

import logging

from webssl_fast.errors import UserError

logger = logging.getLogger(__name__)


def check_complete(
    section: str,
    split: str,
    found: str,
    num_found: int,
    num_expected: int,
    data_set: str,
    *,
    allow_subset: bool,
    setting: str = "source",
) -> bool:
    """Whether all samples are there.

    section   of the config whose `allow_subset` is spoken of, e.g. "eval.depth"
    setting   there, that says where the data are
    found     what is there, in words
    data_set  the set's name

    Raises UserError where they are not and the config does not allow it; warns where it does.
    """
    if num_found == num_expected:
        return True
    if not allow_subset:
        raise UserError(
            f"{section}.{setting}: {found}, but the whole set has {num_expected:,} in {split}. Fetch or unpack it "
            f"again, or set {section}.allow_subset=true; scores are then not {data_set}'s"
        )
    logger.warning("%s on a subset: %d of %d in %s", section, num_found, num_expected, split)
    return False
