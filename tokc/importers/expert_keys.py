"""How the configuration of a family of mixture-of-experts models names what it says of its experts."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ExpertKeys:
    """Name the key of an expert's intermediate size, and what a silent configuration means.

    `top_k` is how many a token takes where the configuration is silent. `normalize` says whether the weights
    of the chosen are made to add up to one; None leaves it to `norm_topk_prob`. `shared` says that one more
    expert takes every token, through a gate.
    """

    count: str = "num_experts"
    width: str = "moe_intermediate_size"
    top_k: int = 2
    normalize: bool | None = None
    shared: bool = False
