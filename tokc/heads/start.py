"""Where an eagle begins: the linear map that best predicts the next feature, its layer adding nothing yet.

A small text trains few steps, and most of what they would do first is this least-squares problem, which has
an answer in closed form. The layer's own weights begin at random, but for the two that add to the stream.
"""

from collections.abc import Sequence as Items

import numpy as np
import torch
from torch import Tensor

from tokc.heads.features import Example
from tokc.heads.modules import Eagle

MOST_TOKENS = 200_000
RIDGE = 1e-4  # of each input's own square


def begin_linear(module: Eagle, examples: Items[Example], embedding: Tensor) -> None:
    """Set `fc` to the ridge regression of feature i + 1 on [embedding of token i + 1; feature i]."""
    hidden = embedding.shape[1]
    products = torch.zeros(2 * hidden + 1, 2 * hidden + 1, device=embedding.device)
    answers = torch.zeros(2 * hidden + 1, hidden, device=embedding.device)
    tokens = 0
    for example in examples:
        features = torch.from_numpy(example.features.astype(np.float32)).to(embedding.device)
        ids = torch.from_numpy(example.passage.tokens.astype(np.int64)).to(embedding.device)
        one = torch.ones(len(ids) - 1, 1, device=embedding.device)
        inputs = torch.cat([embedding[ids[1:]], features[:-1], one], 1)
        products += inputs.T @ inputs
        answers += inputs.T @ features[1:]
        tokens += len(ids)
        if tokens > MOST_TOKENS:
            break
    diagonal = products.diagonal()
    ridge = torch.diag(RIDGE * diagonal.clamp_min(RIDGE * float(diagonal.max())))
    found = torch.linalg.solve(products + ridge, answers)
    with torch.no_grad():
        module.fc.weight.copy_(found[:-1].T)
        module.fc.bias.copy_(found[-1])
        for adding in module.adding:
            adding.weight.zero_()
