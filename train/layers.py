"""The few layers that several references share. Rows are tokens; matrices are [out, in]."""

import torch


def rms(x, weight, eps):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def silu(x):
    return x * torch.sigmoid(x)


def swiglu(x, gate, up, down):
    return (silu(x @ gate.T) * (x @ up.T)) @ down.T


def rope(x, positions, theta, pairing):
    """x [T, heads, D] rotated at `positions` [T]; D is even, angles are computed in f64."""
    D = x.shape[-1]
    frequency = theta ** (-torch.arange(0, D, 2, dtype=torch.float64) / D)
    angle = torch.as_tensor(positions).double()[:, None] * frequency
    cos, sin = angle.cos().to(x.dtype)[:, None], angle.sin().to(x.dtype)[:, None]
    if pairing == "half":
        first, second = slice(0, D // 2), slice(D // 2, D)
    elif pairing == "interleaved":
        first, second = slice(0, D, 2), slice(1, D, 2)
    else:
        raise ValueError(pairing)
    y = torch.empty_like(x)
    y[..., first] = x[..., first] * cos - x[..., second] * sin
    y[..., second] = x[..., first] * sin + x[..., second] * cos
    return y
