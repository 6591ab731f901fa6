"""What a tensor would hold if the part of a model that it belongs to were left out."""

import numpy as np

ONES = np.ones_like
ZEROS = np.zeros_like


def reverse_rows(data):
    return data[::-1].copy()


def newest_only(kernel):
    """A convolution that passes each position on."""
    return np.concatenate([np.zeros_like(kernel[:, 1:]), np.ones_like(kernel[:, :1])], axis=1)


def half_open(query):
    """Gates of 1/2: of each head of 32, what stands behind the query."""
    halves = query.reshape(-1, 2, 32, query.shape[1]).copy()
    halves[:, 1] = 0
    return halves


# Of a mixture of experts: all as the router gives them, one expert, and the router by its own experts.
EXPERTS = {
    **{f"{name}": (rf"blk\.\d+\.ffn_{name}_exps\.weight", ZEROS) for name in ("gate", "up", "down")},
    "one expert": (r"blk\.\d+\.ffn_down_exps\.weight", lambda data: data * (np.arange(len(data)) != 3)[:, None, None]),
    "the experts' order": (r"blk\.\d+\.ffn_gate_inp\.weight", reverse_rows),
}
