"""Run an imported program on token ids, in one piece or with a cache."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tokc.ir.execute import Session
from tokc.ir.program import Program

Ids = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]


def logits(program: Program, ids: Ids, cuts: Sequence[int] = ()) -> Logits:
    """Return the logits of all positions, computed in pieces that end at `cuts`."""
    config = program.config
    empty = np.zeros((len(ids), config.kv_heads, 0, config.head_dim), np.float32)
    past = {f"present.{i}.{kind}": empty for i in range(config.layers) for kind in ("key", "value")}
    pieces, start = [], 0
    with Session(program) as session:
        for stop in (*cuts, ids.shape[1]):
            feeds: dict[str, npt.NDArray[np.generic]] = {
                name.replace("present", "past_key_values"): value for name, value in past.items()
            }
            feeds["input_ids"] = ids[:, start:stop]
            feeds["position_ids"] = np.tile(np.arange(start, stop), (len(ids), 1))
            outputs = session.run(feeds)
            pieces.append(outputs.pop("logits"))
            past, start = outputs, stop
    return np.concatenate(pieces, axis=1)
