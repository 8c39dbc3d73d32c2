"""`method.init_from`: the weights that a run starts from."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from webssl_fast.engine.checkpoint import load_weights
from webssl_fast.engine.distributed import Distributed
from webssl_fast.errors import UserError
from webssl_fast.methods.base import ContinuesFromWeights, Method
from webssl_fast.recipes.encoder_source import is_own_training, read_weights

logger = logging.getLogger(__name__)


def start_from(init_from: str | Sequence[str], method: Method, ranks: Distributed) -> None:
    """Fills `method`, initialised and sharded, with the weights of `init_from`, in place. Every rank calls this.

    An own run gives everything that its method holds. A published teacher (see encoder_source.read_weights) becomes
    teacher and student; where it comes without heads, theirs stay as initialised, loudly.

    Raises UserError where it cannot be read or does not fit the config.
    """
    sources = [init_from] if isinstance(init_from, str) else list(init_from)
    if len(sources) == 1 and is_own_training(sources[0]):
        load_weights(sources[0], method, ranks)
        return
    if not isinstance(method, ContinuesFromWeights):
        raise UserError(
            f"method.init_from is {init_from}, but {method.name} cannot start from published weights; name a "
            f"checkpoint of a run by {method.name}"
        )
    weights = read_weights(sources)
    method.start_from(weights)
    if not weights.heads and ranks.is_main:
        logger.warning(
            "NO HEADS in %s: they start from random weights beside a trained backbone. Name the _ssl_teacher file, or "
            "the _ssl_heads file as a second entry of method.init_from, to go on with the trained ones",
            weights.source,
        )
