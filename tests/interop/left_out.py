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


def halves_of_key_heads(data, half):
    """Zeros in the place of the betas (half 0) or the alphas (1) of two key heads."""
    heads = data.reshape(2, 2, -1, data.shape[1]).copy()
    heads[:, half] = 0
    return heads


# Of a mixture of experts: all as the router gives them, one expert, and the router by its own experts.
EXPERTS = {
    **{f"{name}": (rf"blk\.\d+\.ffn_{name}_exps\.weight", ZEROS) for name in ("gate", "up", "down")},
    "one expert": (r"blk\.\d+\.ffn_down_exps\.weight", lambda data: data * (np.arange(len(data)) != 3)[:, None, None]),
    "the experts' order": (r"blk\.\d+\.ffn_gate_inp\.weight", reverse_rows),
}
SHARED_EXPERT = {
    "shared expert": (r"blk\.\d+\.ffn_down_shexp\.weight", ZEROS),
    "what the shared expert counts": (r"blk\.\d+\.ffn_gate_inp_shexp\.weight", ZEROS),
}
GPT_OSS = {
    **{f"{name} bias": (rf"blk\.\d+\.{name}\.bias", ZEROS)
       for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps",
                    "ffn_down_exps")},
    "sinks": (r"blk\.\d+\.attn_sinks\.weight", lambda data: np.full_like(data, -1e30)),
    "post_attention_norm": (r"blk\.\d+\.post_attention_norm\.weight", ONES),
    "the order of experts' biases": (r"blk\.\d+\.ffn_up_exps\.bias", reverse_rows),
}
# Of gated delta nets beside gated attention.
HYBRID = {
    **{f"{name}": (rf"blk\.\d+\.{name}\.weight", ONES)
       for name in ("attn_q_norm", "attn_k_norm", "post_attention_norm", "ssm_norm")},
    "gate of attention": (r"blk\.3\.attn_q\.weight", half_open),
    "gate": (r"blk\.\d+\.attn_gate\.weight", reverse_rows),
    "convolution": (r"blk\.\d+\.ssm_conv1d\.weight", newest_only),
    "decay": (r"blk\.\d+\.ssm_a", ZEROS),
    "time step": (r"blk\.\d+\.ssm_dt\.bias", ZEROS),
}
ALPHA_AND_BETA = {
    "alpha": (r"blk\.\d+\.ssm_alpha\.weight", ZEROS),
    "beta": (r"blk\.\d+\.ssm_beta\.weight", ZEROS),
}
ALPHA_WITH_BETA = {
    "alpha": (r"blk\.\d+\.ssm_ba\.weight", lambda data: halves_of_key_heads(data, 1)),
    "beta": (r"blk\.\d+\.ssm_ba\.weight", lambda data: halves_of_key_heads(data, 0)),
}
