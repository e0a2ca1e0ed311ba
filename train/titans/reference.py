"""Titans (Behrouz, Zhong, Mirrokni 2025, arXiv:2501.00663): LMM, MAC, MAG, MAL, token by token.

Letters: L layers, d width, H memories of width e, d_m = H e, b tokens between commits, K taps, W window,
C segment, N_p persistent tokens, n position. A memory is an MLP whose matrices, [H, in, out] with
y = x W, are the state: every token moves them along the gradient of 1/2 |M(k) - v|^2.

Names and shapes of weights and state, and the choices the paper leaves open: docs/checkpoint_format.md.
"""

import math

import torch

from checkpoint import read_folder
from layers import rms, rope, silu, swiglu


def l2(x):
    return x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()


def activation(kind, z):
    """act(z) and its derivative."""
    if kind == "silu":
        s = torch.sigmoid(z)
        return z * s, s * (1 + z * (1 - s))
    if kind == "gelu_tanh":
        c = math.sqrt(2 / math.pi)
        t = torch.tanh(c * (z + 0.044715 * z ** 3))
        return z * (1 + t) / 2, (1 + t) / 2 + z / 2 * (1 - t * t) * c * (1 + 3 * 0.044715 * z * z)
    assert kind == "gelu_erf", kind
    cdf = (1 + torch.erf(z / math.sqrt(2))) / 2
    return z * cdf, cdf + z * torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)


class Memory:
    """The functional form of one layer's H memories. Weights: list of [H, in, out]; x [H, e]."""

    def __init__(self, kind, residual, norm, gain, eps):
        self.kind, self.residual, self.norm, self.gain, self.eps = kind, residual, norm, gain, eps

    def _inner(self, weights, x):
        """Inputs of every matrix, derivatives at their activations, and f before the norm."""
        inputs, slopes = [x], []
        for l, w in enumerate(weights):
            z = torch.einsum("hi,hio->ho", inputs[-1], w)
            if l + 1 < len(weights):
                a, slope = activation(self.kind, z)
                inputs.append(a)
                slopes.append(slope)
        return inputs, slopes, z

    def _normalised(self, f):
        """n and 1 / scale."""
        centred = f - f.mean(-1, keepdim=True) if self.norm == "layer" else f
        s = torch.rsqrt(centred.square().mean(-1, keepdim=True) + self.eps)
        return centred * s, s

    def read(self, weights, x):
        f = self._inner(weights, x)[2]
        if self.norm != "none":
            f = self._normalised(f)[0] * self.gain
        return x + f if self.residual else f

    def gradient(self, weights, k, v):
        """Per matrix the factors (a, delta) of the gradient outer(a, delta) of 1/2 |M(k) - v|^2."""
        inputs, slopes, f = self._inner(weights, k)
        delta = self.read(weights, k) - v
        if self.norm != "none":
            n, s = self._normalised(f)
            y = delta * self.gain
            mean = y.mean(-1, keepdim=True) if self.norm == "layer" else 0.0
            delta = s * (y - mean - n * (y * n).mean(-1, keepdim=True))
        factors = []
        for l in reversed(range(len(weights))):
            factors.insert(0, (inputs[l], delta))
            if l:
                delta = torch.einsum("ho,hio->hi", delta, weights[l]) * slopes[l - 1]
        return factors


class Titans:
    def __init__(self, config, tensors, dtype=torch.float64):
        self.w = {name: t.to(dtype) for name, t in tensors.items()}
        self.dtype = dtype
        self.variant = config["variant"]
        self.vocab_size, self.d, self.L = config["vocab_size"], config["hidden_size"], config["num_hidden_layers"]
        self.H, self.e, self.D = config["memory_heads"], config["memory_head_dim"], config.get("memory_depth", 2)
        self.d_m = self.H * self.e
        self.b, self.K = config["memory_chunk_tokens"], config.get("conv_taps", 4)
        self.token_mode = {"chunk": False, "token": True}[config.get("read_mode", "chunk")]
        assert not (self.token_mode and self.variant == "mac")
        self.decay_to_init = config.get("decay_to", "init" if self.D > 1 else "zero") == "init"
        self.theta_max, self.eta_max = config.get("theta_max", 1.0), config.get("eta_max", 0.95)
        self.forget, self.kappa = config.get("forget", True), config.get("gate_floor", 0.02)
        self.clip = config.get("gradient_clip", 1.0)
        self.heads, self.N_p = config.get("num_attention_heads"), config.get("persistent_tokens", 0)
        self.W, self.C = config.get("window_tokens"), config.get("segment_tokens")
        assert self.variant != "mac" or self.C == self.b
        self.gate_mix = config.get("gate_mix", "silu_silu")
        self.theta, self.pairing = config.get("rope_theta", 10000.0), config.get("rope_pairing", "interleaved")
        self.eps, self.tied = config.get("rms_norm_eps", 1e-6), config.get("tie_word_embeddings", False)
        norm = config.get("memory_norm", "none")
        self.memories = [
            Memory(config.get("memory_activation", "silu"), config.get("memory_residual", True), norm,
                   self.w.get(f"model.layers.{i}.memory.norm.weight"), self.eps) for i in range(self.L)]

    def init_weights(self, i):
        return [self.w[f"model.layers.{i}.memory.init.{l}"] for l in range(self.D)]

    def schema(self):
        """(layer, name, shape), in order."""
        for i in range(self.L):
            shapes = [tuple(m.shape) for m in self.init_weights(i)]
            for kind in ["memory", "momentum"] + ["running"] * self.token_mode:
                for l, shape in enumerate(shapes):
                    yield i, f"{kind}_{l}", shape
            if not self.token_mode and self.b > 1:
                yield i, "pending_k", (self.b - 1, self.d_m)
                yield i, "pending_v", (self.b - 1, self.d_m)
                yield i, "pending_rates", (self.b - 1, 3 * self.H)
            if self.K > 1:
                for stream in ["q", "k", "v"] + ["q2"] * (self.variant == "mac"):
                    yield i, "conv_" + stream, (self.K - 1, self.d_m)
            if self.variant in ("mag", "mal"):
                yield i, "k", (self.W - 1, self.d)
                yield i, "v", (self.W - 1, self.d)
            if self.variant == "mac":
                for name in ("h_k", "h_v", "x_k", "x_v"):
                    yield i, name, (self.C - 1, self.d)

    def initial_state(self):
        state = {(i, name): torch.zeros(shape, dtype=self.dtype) for i, name, shape in self.schema()}
        for i in range(self.L):
            for l, m in enumerate(self.init_weights(i)):
                for kind in ["memory", "running"]:
                    if (i, f"{kind}_{l}") in state:
                        state[i, f"{kind}_{l}"] = m.clone()
        state["position"] = 0
        return state

    @torch.no_grad()
    def forward(self, state, tokens):
        """Logits [T, V] after every token; `state` moves on."""
        block = {"lmm": self.lmm, "mal": self.mal, "mag": self.mag, "mac": self.mac}[self.variant]
        rows = []
        for token in tokens:
            x = self.w["model.embed_tokens.weight"][token]
            for i in range(self.L):
                p = f"model.layers.{i}."
                x = block(state, i, p, x)
                u = rms(x, self.w[p + "post_attention_layernorm.weight"], self.eps)
                x = x + swiglu(u, *(self.w[p + f"mlp.{n}_proj.weight"] for n in ("gate", "up", "down")))
            head = self.w["model.embed_tokens.weight" if self.tied else "lm_head.weight"]
            rows.append(head @ rms(x, self.w["model.norm.weight"], self.eps))
            state["position"] += 1
        return torch.stack(rows)

    # ---- blocks

    def lmm(self, state, i, p, x):
        return x + self.memory_layer(state, i, p, rms(x, self.w[p + "input_layernorm.weight"], self.eps))

    def mal(self, state, i, p, x):
        x = self.lmm(state, i, p, x)
        return x + self.sliding_attention(state, i, p, rms(x, self.w[p + "attention_layernorm.weight"], self.eps))

    def mag(self, state, i, p, x):
        xn = rms(x, self.w[p + "input_layernorm.weight"], self.eps)
        return x + self.mix(p, self.sliding_attention(state, i, p, xn), self.memory_layer(state, i, p, xn))

    def mac(self, state, i, p, x):
        xn = rms(x, self.w[p + "input_layernorm.weight"], self.eps)
        weights = self.committed(state, i)
        h = self.output(p, "", self.memories[i].read(weights, self.query(state, i, p, "q", xn)), xn)
        y = self.segment_attention(state, i, p, xn, h)
        yn = rms(x + y, self.w[p + "memory.input_norm.weight"], self.eps)
        k, v, rates = self.write_inputs(state, i, p, yn)
        q2 = self.query(state, i, p, "q2", yn)
        m = self.output(p, "2", self.memories[i].read(weights, q2), yn)
        self.queue(state, i, k, v, rates)
        return x + self.mix(p, y, m)

    def mix(self, p, y, m):
        y = rms(y, self.w[p + "mix.attention_norm.weight"], self.eps)
        m = rms(m, self.w[p + "mix.memory_norm.weight"], self.eps)
        both = silu(y) * silu(m) if self.gate_mix == "silu_silu" else y * torch.sigmoid(m)
        return self.w[p + "mix.o_proj.weight"] @ both

    # ---- memory

    def memory_layer(self, state, i, p, x):
        q = self.query(state, i, p, "q", x)
        k, v, rates = self.write_inputs(state, i, p, x)
        if self.token_mode:
            self.write(state, i, k, v, rates)
            y = self.memories[i].read([state[i, f"running_{l}"] for l in range(self.D)], q)
        else:
            y = self.memories[i].read(self.committed(state, i), q)
            self.queue(state, i, k, v, rates)
        return self.output(p, "", y, x)

    def committed(self, state, i):
        return [state[i, f"memory_{l}"] for l in range(self.D)]

    def convolved(self, state, i, p, stream, x):
        """silu of the causal depthwise convolution of this stream's projection, [H, e]."""
        new = self.w[p + f"memory.{stream}_proj.weight"] @ x
        taps = self.w[p + f"memory.{stream}_conv.weight"]
        y = taps[:, -1] * new
        if self.K > 1:
            tail, n = state[i, "conv_" + stream], state["position"]
            for back in range(1, self.K):  # rows of positions before 0 are zero
                y = y + taps[:, self.K - 1 - back] * tail[(n - back) % (self.K - 1)]
            tail[n % (self.K - 1)] = new
        return silu(y).view(self.H, self.e)

    def query(self, state, i, p, stream, x):
        return l2(self.convolved(state, i, p, stream, x))

    def write_inputs(self, state, i, p, x):
        """k, v [H, e] and the rates theta, eta, alpha [3, H]."""
        k = l2(self.convolved(state, i, p, "k", x))
        v = self.convolved(state, i, p, "v", x)
        s = torch.sigmoid(self.w[p + "memory.gate.weight"] @ x + self.w[p + "memory.gate.bias"]).view(3, self.H)
        floored = (s - self.kappa).clamp(min=0) / (1 - self.kappa)
        alpha = floored[2] if self.forget else torch.zeros_like(s[2])
        return k, v, torch.stack([self.theta_max * floored[0], self.eta_max * s[1], alpha])

    def output(self, p, which, y, x):
        y = rms(y, self.w[p + f"memory.output_norm{which}.weight"], self.eps).flatten()
        return self.w[p + f"memory.o{which}_proj.weight"] @ (y * silu(self.w[p + f"memory.output_gate{which}.weight"] @ x))

    def step(self, i, anchor, weights, momentum, k, v, rates):
        """One row: both lists after it, the gradient taken at `anchor`."""
        factors = self.memories[i].gradient(anchor, k, v)
        theta, eta, alpha = rates
        if self.clip:
            norm = sum(a.square().sum(-1) * g.square().sum(-1) for a, g in factors).sqrt()
            theta = torch.where(norm > self.clip, theta * self.clip / norm, theta)
        eta, theta, keep = eta[:, None, None], theta[:, None, None], (1 - alpha)[:, None, None]
        momentum = [eta * S - theta * a[:, :, None] * g[:, None, :] for S, (a, g) in zip(momentum, factors)]
        targets = [m if self.decay_to_init else 0.0 for m in self.init_weights(i)]
        return [T + keep * (M - T) + S for M, S, T in zip(weights, momentum, targets)], momentum

    def write(self, state, i, k, v, rates):
        """read_mode token: the running weights move now, the anchor every b tokens."""
        running = [state[i, f"running_{l}"] for l in range(self.D)]
        momentum = [state[i, f"momentum_{l}"] for l in range(self.D)]
        running, momentum = self.step(i, self.committed(state, i), running, momentum, k, v, rates)
        for l in range(self.D):
            state[i, f"running_{l}"], state[i, f"momentum_{l}"] = running[l], momentum[l]
            if state["position"] % self.b == self.b - 1:
                state[i, f"memory_{l}"] = running[l].clone()

    def queue(self, state, i, k, v, rates):
        """read_mode chunk: keep the row; the row that completes the chunk commits all of them."""
        row = state["position"] % self.b
        if row < self.b - 1:
            state[i, "pending_k"][row] = k.flatten()
            state[i, "pending_v"][row] = v.flatten()
            state[i, "pending_rates"][row] = rates.flatten()
            return
        anchor = self.committed(state, i)
        weights, momentum = anchor, [state[i, f"momentum_{l}"] for l in range(self.D)]
        for j in range(self.b):
            if j < self.b - 1:
                inputs = (state[i, "pending_k"][j].view(self.H, -1), state[i, "pending_v"][j].view(self.H, -1),
                          state[i, "pending_rates"][j].view(3, -1))
            else:
                inputs = (k, v, rates)
            weights, momentum = self.step(i, anchor, weights, momentum, *inputs)
        for l in range(self.D):
            state[i, f"memory_{l}"], state[i, f"momentum_{l}"] = weights[l], momentum[l]

    # ---- attention

    def rotated(self, x, position):
        return rope(x.view(1, self.heads, -1), [position], self.theta, self.pairing)[0].flatten()

    def attend(self, p, q, q_rotated, keys, values):
        """Over persistent keys (unrotated query), then `keys` [J, d], which are rotated. With o_proj."""
        hd = self.d // self.heads
        scores = torch.einsum("hk,jhk->hj", q_rotated.view(self.heads, hd), keys.view(-1, self.heads, hd))
        if self.N_p:
            persistent = self.w[p + "self_attn.persistent"]
            fixed = (persistent @ self.w[p + "self_attn.k_proj.weight"].T).view(-1, self.heads, hd)
            scores = torch.cat([torch.einsum("hk,jhk->hj", q.view(self.heads, hd), fixed), scores], 1)
            values = torch.cat([persistent @ self.w[p + "self_attn.v_proj.weight"].T, values])
        weights = (scores / math.sqrt(hd)).softmax(-1)
        y = torch.einsum("hj,jhk->hk", weights, values.view(-1, self.heads, hd))
        return self.w[p + "self_attn.o_proj.weight"] @ y.flatten()

    def qkv(self, p, x):
        return (self.w[p + f"self_attn.{n}_proj.weight"] @ x for n in "qkv")

    def sliding_attention(self, state, i, p, x):
        n, rows = state["position"], self.W - 1
        q, k, v = self.qkv(p, x)
        k = self.rotated(k, n)
        seen = [j % rows for j in range(max(0, n - rows), n)]
        keys = torch.cat([state[i, "k"][seen], k[None]])
        values = torch.cat([state[i, "v"][seen], v[None]])
        state[i, "k"][n % rows], state[i, "v"][n % rows] = k, v
        return self.attend(p, q, self.rotated(q, n), keys, values)

    def segment_attention(self, state, i, p, x, h):
        j = state["position"] % self.C
        q, k, v = self.qkv(p, x)
        h_k = self.rotated(self.w[p + "self_attn.k_proj.weight"] @ h, j)
        new = {"h_k": h_k, "h_v": self.w[p + "self_attn.v_proj.weight"] @ h, "x_k": self.rotated(k, self.C + j), "x_v": v}
        rows = {name: torch.cat([state[i, name][:j], row[None]]) for name, row in new.items()}
        if j < self.C - 1:
            for name, row in new.items():
                state[i, name][j] = row
        return self.attend(p, q, self.rotated(q, self.C + j), torch.cat([rows["h_k"], rows["x_k"]]),
                           torch.cat([rows["h_v"], rows["x_v"]]))


def load(path, dtype=torch.float64):
    return Titans(*read_folder(path), dtype)
