"""What the trainer asks of a model, and what the models share.

Letters: B sequences, T tokens of a call, L layers, d width, H heads, V vocabulary.

A trainable model computes whole stretches of many sequences at once, from the same weights, under the same
names, as the reference beside it (reference.py, token by token), to which train/check_train.py holds it.
"""

import contextlib
import ctypes
import functools
import math

import numpy as np
import torch
import torch.nn.functional as F


class Trainable:
    """`w`: {checkpoint name: leaf tensor}. A state is a dict of tensors [B, ...] and "position", an int that
    all B sequences share; it exists after multiples of `align` tokens only."""

    align = 1

    def __init__(self, config, weights, dtype=torch.float32):
        self.config = config
        self.dtype = dtype
        self.w = {name: torch.as_tensor(t).to(dtype).clone().requires_grad_() for name, t in weights.items()}
        self.eps = config.get("rms_norm_eps", 1e-6)

    def initial_state(self, B):
        raise NotImplementedError

    def forward(self, tokens, state, dilution=None):
        """tokens [B, T]; dilution [B, T] >= 1 or None: this token acts on the memory as so many would.
        Returns logits [B, T, V] and the state after the last multiple of `align` within T (state["position"]
        must be such a multiple at the start)."""
        raise NotImplementedError

    def is_gate(self, name):
        """Gates learn ten times as fast."""
        return False

    def decays(self, name):
        """Weight decay: matrices that are read by every token, nothing else."""
        t = self.w[name]
        return t.dim() == 2 and name.endswith(("proj.weight", "lm_head.weight")) and not self.is_gate(name)

    def frozen(self, name):
        """Stays what `new` made it."""
        return False

    def practise(self, length):
        """Sequences are at most so long for now. A size that no weight depends on may be smaller as long as they are short."""

    def cost(self, filler):
        """filler [B, T]: how far the gates that write or forget were open on it in the last forward pass, on a
        logarithmic scale (every factor of ten on the way to closed is worth the same). What --gate-cost prices."""
        return torch.zeros(())

    def statistics(self):
        """{name: float}: what the gates did in the last forward pass."""
        return {}

    def parameters(self):
        return sum(t.numel() for t in self.w.values())

    def linear(self, x, name):
        return F.linear(x, self.w[name])

    def rms(self, x, name):
        return rms(x, self.w[name], self.eps)

    def swiglu(self, x, p):
        return self.linear(F.silu(self.linear(x, p + "mlp.gate_proj.weight")) * self.linear(x, p + "mlp.up_proj.weight"),
                           p + "mlp.down_proj.weight")

    def logits(self, x):
        head = "lm_head.weight" if "lm_head.weight" in self.w else "model.embed_tokens.weight"
        return self.linear(self.rms(x, "model.norm.weight"), head)


def set_threads(n):
    """Debian's OpenBLAS keeps threads of its own, which spin: beside another run a step once took nine times as long."""
    torch.set_num_threads(n)
    with contextlib.suppress(OSError):
        ctypes.CDLL("libopenblas.so.0").openblas_set_num_threads(n)


def rms(x, weight, eps):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def detached(state):
    return {k: v if isinstance(v, int) else v.detach() for k, v in state.items()}


def selected(state, rows):
    """The sequences `rows` of a state."""
    return {k: v if isinstance(v, int) else v[rows] for k, v in state.items()}


def normal(generator, *shape, std=1.0, mean=0.0):
    return torch.from_numpy(generator.normal(mean, std, shape).astype(np.float32))


def matrix(generator, rows, columns, gain=1.0):
    return normal(generator, rows, columns, std=gain / math.sqrt(columns))


def decoder_layer(generator, p, d, H, dk, F):
    """Weights of the usual block around an attention of H heads of width dk, named with the prefix p."""
    w = {p + norm + ".weight": torch.ones(d) for norm in ("input_layernorm", "post_attention_layernorm")}
    for f in "qkv":
        w[p + f"self_attn.{f}_proj.weight"] = matrix(generator, H * dk, d)
    w[p + "self_attn.o_proj.weight"] = matrix(generator, d, H * dk, 0.5)
    w[p + "mlp.gate_proj.weight"] = matrix(generator, F, d)
    w[p + "mlp.up_proj.weight"] = matrix(generator, F, d)
    w[p + "mlp.down_proj.weight"] = matrix(generator, d, F, 0.5)
    return w


@functools.lru_cache(64)
def angles(first, count, D, theta, dtype):
    """cos and sin [count, 1, D/2] of positions first..first+count-1, from f64."""
    frequency = theta ** (-torch.arange(0, D, 2, dtype=torch.float64) / D)
    angle = torch.arange(first, first + count).double()[:, None] * frequency
    return angle.cos().to(dtype)[:, None], angle.sin().to(dtype)[:, None]


def rope(x, first, theta, pairing):
    """x [..., T, H, D] at positions first, first + 1, ..."""
    cos, sin = angles(first, x.shape[-3], x.shape[-1], theta, x.dtype)
    if pairing == "half":
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)


def repeated_gate(s, dilution):
    """What a gate s in [0, 1] amounts to when its token comes `dilution` times: 1 - (1 - s)^R."""
    if dilution is None:
        return s
    return -torch.expm1(dilution * torch.log1p(-s.clamp(max=1 - 1e-6)))


def openness(gates, filler, smallest):
    """Mean of log(1 + gate / smallest) over filler; gates [B, T, ...]."""
    weight = filler.to(gates.dtype).view(*filler.shape, *[1] * (gates.dim() - 2)).expand_as(gates)
    return (torch.log1p(gates / smallest) * weight).sum() / weight.sum().clamp(min=1)


def window_attention(q, k, v, past_k, past_v, seen, W, theta, pairing, persistent=None):
    """Each query over the last W positions, its own included.

    q [B, T, H, D], k, v [B, T, Hk, D], not rotated; past_k, past_v [B, W-1, Hk, D] the rows before them, of which
    only the last `seen` exist; persistent: (k, v) [N_p, H, D], always visible and never rotated. Blocks of W queries
    meet the 2 W keys that any of them may see. -> [B, T, H, D]
    """
    B, T, H, D = q.shape
    group = H // k.shape[2]
    blocks = -(-T // W)
    pad = blocks * W - T

    def blocked(new, past):
        rows = torch.cat([new.new_zeros(B, 1, *new.shape[2:]), past, new], 1)  # one dummy row: W rows before the first
        return F.pad(rows, (0, 0, 0, 0, 0, pad))

    k_rows, v_rows = blocked(k, past_k), blocked(v, past_v)
    k_rows = rope(k_rows, 0, theta, pairing)  # only differences matter: the first query stands at W
    q_rows = F.pad(q, (0, 0, 0, 0, 0, pad))
    rotated = rope(q_rows, W, theta, pairing).view(B, blocks, W, H, D).permute(0, 1, 3, 2, 4)

    def pairs(rows):
        rows = rows.view(B, blocks + 1, W, -1, D).permute(0, 1, 3, 2, 4)
        rows = torch.cat([rows[:, :-1], rows[:, 1:]], 3)  # [B, blocks, Hk, 2W, D]
        return rows.repeat_interleave(group, 2) if group > 1 else rows

    keys, values = pairs(k_rows), pairs(v_rows)
    scores = rotated @ keys.transpose(-1, -2)  # [B, blocks, H, W, 2W]
    row, column = torch.arange(W)[:, None], torch.arange(2 * W)
    hidden = ((column <= row) | (column > row + W))[None].expand(blocks, W, 2 * W)
    exists = (torch.arange(blocks)[:, None] * W + column) >= W - seen
    hidden = (hidden | ~exists[:, None])[:, None]
    scores = scores.masked_fill(hidden, -math.inf)
    if persistent is not None:
        plain = q_rows.view(B, blocks, W, H, D).permute(0, 1, 3, 2, 4)
        scores = torch.cat([plain @ persistent[0].permute(1, 2, 0), scores], -1)
        fixed = persistent[1].permute(1, 0, 2).expand(B, blocks, -1, -1, -1)
        values = torch.cat([fixed, values], 3)
    y = (scores / math.sqrt(D)).softmax(-1) @ values
    return y.permute(0, 1, 3, 2, 4).reshape(B, blocks * W, H, D)[:, :T]


def kept(rows, past, until):
    """The last past.shape[1] rows before position `until` of `rows`, those of `past` before them."""
    n = past.shape[1]
    return torch.cat([past, rows[:, :until]], 1)[:, until:until + n]
