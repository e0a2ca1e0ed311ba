"""Titans for training: LMM, MAL, MAG, MAC with memories read at the last commit (read_mode chunk).

Projections, convolutions, gates and attention of a stretch are computed at once, and so are the coefficients with which
the rows of a chunk enter its commit; only the memories walk from chunk to chunk (MAC: everything in a layer).

Letters as in reference.py; B sequences, c chunks of b tokens.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F

from titans.reference import Memory as ReferenceMemory
from titans.reference import activation, l2
from trainable import Trainable, kept, matrix, normal, openness, repeated_gate, rms, rope, window_attention


def new(generator, variant="mag", d=128, L=4, H=4, e=32, h=64, F=None, b=16, W=64, N_p=4, K=4, **options):
    """(config, weights)"""
    F = F or -(-8 * d // 3 // 16) * 16
    config = {"model_type": "titans", "mneme_config_version": 1, "variant": variant, "vocab_size": 256,
              "hidden_size": d, "num_hidden_layers": L, "intermediate_size": F, "memory_heads": H,
              "memory_head_dim": e, "memory_depth": 2, "memory_hidden_dim": h, "memory_chunk_tokens": b,
              "read_mode": "chunk", "theta_max": 1.0, "eta_max": 0.95, "gate_floor": 0.02, "gradient_clip": 1.0,
              "conv_taps": K, "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "tokenizer": "bytes"}
    if variant != "lmm":
        config.update(num_attention_heads=H, persistent_tokens=N_p)
    if variant in ("mag", "mal"):
        config["window_tokens"] = W
    if variant == "mac":
        config["segment_tokens"] = b
    config.update(options)
    w = {"model.embed_tokens.weight": normal(generator, 256, d, std=0.5), "model.norm.weight": torch.ones(d),
         "lm_head.weight": matrix(generator, 256, d)}
    for i in range(L):
        p, m = f"model.layers.{i}.", f"model.layers.{i}.memory."
        w[p + "input_layernorm.weight"], w[p + "post_attention_layernorm.weight"] = torch.ones(d), torch.ones(d)
        w[p + "mlp.gate_proj.weight"], w[p + "mlp.up_proj.weight"] = matrix(generator, F, d), matrix(generator, F, d)
        w[p + "mlp.down_proj.weight"] = matrix(generator, d, F, 0.5)
        for stream in ["q", "k", "v"] + ["q2"] * (variant == "mac"):
            w[m + stream + "_proj.weight"] = matrix(generator, H * e, d)
            taps = normal(generator, H * e, K, std=0.02)
            taps[:, -1] += 1
            w[m + stream + "_conv.weight"] = taps
        w[m + "gate.weight"] = matrix(generator, 3 * H, d)
        w[m + "gate.bias"] = torch.tensor([-1.0, 0.0, -3.5]).repeat_interleave(H)
        w[m + "init.0"], w[m + "init.1"] = normal(generator, H, e, h, std=e ** -0.5), normal(generator, H, h, e, std=0.1 * h ** -0.5)
        for which in ["", "2"] if variant == "mac" else [""]:
            w[m + f"output_norm{which}.weight"] = torch.ones(e)
            w[m + f"output_gate{which}.weight"] = matrix(generator, H * e, d)
            w[m + f"o{which}_proj.weight"] = matrix(generator, d, H * e)
        if variant == "mac":
            w[m + "input_norm.weight"] = torch.ones(d)
        if variant != "lmm":
            for f in "qkvo":
                w[p + f"self_attn.{f}_proj.weight"] = matrix(generator, d, d)
            if N_p:
                w[p + "self_attn.persistent"] = normal(generator, N_p, d)
        if variant == "mal":
            w[p + "attention_layernorm.weight"] = torch.ones(d)
        if variant in ("mac", "mag"):
            w[p + "mix.attention_norm.weight"], w[p + "mix.memory_norm.weight"] = torch.ones(d), torch.ones(d)
            w[p + "mix.o_proj.weight"] = matrix(generator, d, d, 0.5)
    return config, w


class Memory(ReferenceMemory):
    """The same functions on rows: weights [B, H, in, out], x [B, H, rows, in]."""

    def __init__(self, kind, residual, norm, gain, eps):
        super().__init__(kind, residual, norm, gain[:, None] if gain is not None else None, eps)

    def _inner(self, weights, x):
        inputs, slopes = [x], []
        for l, w in enumerate(weights):
            z = inputs[-1] @ w
            if l + 1 < len(weights):
                a, slope = activation(self.kind, z)
                inputs.append(a)
                slopes.append(slope)
        return inputs, slopes, z

    def output(self, x, f):
        if self.norm != "none":
            f = self._normalised(f)[0] * self.gain
        return x + f if self.residual else f

    def read(self, weights, x):
        return self.output(x, self._inner(weights, x)[2])

    def read_and_gradient(self, weights, q, k, v):
        """The read at q, and per matrix (a, delta) of the gradients at the rows k, v."""
        rows = q.shape[2]
        inputs, slopes, f = self._inner(weights, torch.cat([q, k], 2))
        y = self.output(inputs[0], f)
        inputs, slopes, f = [a[:, :, rows:] for a in inputs], [s[:, :, rows:] for s in slopes], f[:, :, rows:]
        delta = y[:, :, rows:] - v
        if self.norm != "none":
            n, s = self._normalised(f)
            g = delta * self.gain
            mean = g.mean(-1, keepdim=True) if self.norm == "layer" else 0.0
            delta = s * (g - mean - n * (g * n).mean(-1, keepdim=True))
        factors = []
        for l in reversed(range(len(weights))):
            factors.insert(0, (inputs[l], delta))
            if l:
                delta = (delta @ weights[l].transpose(-1, -2)) * slopes[l - 1]
        return y[:, :, :rows], factors


def commit_coefficients(eta, alpha):
    """eta, alpha [..., b] of a chunk's rows, its first row first -> a, epsilon [..., b] with which the gradients of the
    rows enter weights and momentum; p, beta, carry [...] with which the old momentum and the old weights do."""
    b = eta.shape[-1]
    eta, keep = eta.unbind(-1), (1 - alpha).unbind(-1)
    epsilon, a = [torch.ones_like(eta[0])], [torch.ones_like(eta[0])]
    G = torch.ones_like(eta[0])
    for j in reversed(range(b - 1)):
        epsilon.append(eta[j + 1] * epsilon[-1])
        G = G * keep[j + 1]
        a.append(G + eta[j + 1] * a[-1])
    return (torch.stack(a[::-1], -1), torch.stack(epsilon[::-1], -1), eta[0] * a[-1], keep[0] * G, eta[0] * epsilon[-1])


class Model(Trainable):
    def __init__(self, config, weights, dtype=torch.float32):
        super().__init__(config, weights, dtype)
        self.variant, self.d, self.L = config["variant"], config["hidden_size"], config["num_hidden_layers"]
        self.H, self.e, self.D = config["memory_heads"], config["memory_head_dim"], config.get("memory_depth", 2)
        self.b, self.K = config["memory_chunk_tokens"], config.get("conv_taps", 4)
        assert config.get("read_mode", "chunk") == "chunk", "read_mode token has no training form"
        self.align = self.b
        self.decay_to_init = config.get("decay_to", "init" if self.D > 1 else "zero") == "init"
        self.theta_max, self.eta_max = config.get("theta_max", 1.0), config.get("eta_max", 0.95)
        self.forget, self.kappa = config.get("forget", True), config.get("gate_floor", 0.02)
        self.clip = config.get("gradient_clip", 1.0)
        self.heads, self.N_p = config.get("num_attention_heads"), config.get("persistent_tokens", 0)
        self.W = config.get("window_tokens")
        self.gate_mix = config.get("gate_mix", "silu_silu")
        self.theta, self.pairing = config.get("rope_theta", 10000.0), config.get("rope_pairing", "interleaved")
        self.gates = {}

    def memory(self, i):
        return Memory(self.config.get("memory_activation", "silu"), self.config.get("memory_residual", True),
                      self.config.get("memory_norm", "none"), self.w.get(f"model.layers.{i}.memory.norm.weight"), self.eps)

    def is_gate(self, name):
        return name.endswith("memory.gate.bias")

    def init_weights(self, i):
        return [self.w[f"model.layers.{i}.memory.init.{l}"] for l in range(self.D)]

    def cost(self, filler):
        pieces = len(self.opened) // self.L
        layers = [torch.cat(self.opened[i * pieces:(i + 1) * pieces], -1) for i in range(self.L)]
        return sum(openness(x.transpose(1, 2), filler, 1e-3) for x in layers) / self.L

    def statistics(self):
        return {name: value.item() for name, value in self.gates.items()}

    def initial_state(self, B):
        state = {"position": 0}
        for i in range(self.L):
            for l, m in enumerate(self.init_weights(i)):
                state[f"memory_{l}_{i}"] = m[None].expand(B, *m.shape)
                state[f"momentum_{l}_{i}"] = torch.zeros(B, *m.shape, dtype=self.dtype)
            for stream in ["q", "k", "v"] + ["q2"] * (self.variant == "mac"):
                state[f"conv_{stream}_{i}"] = torch.zeros(B, self.K - 1, self.H * self.e, dtype=self.dtype)
            if self.variant in ("mag", "mal"):
                for f in "kv":
                    state[f"{f}_{i}"] = torch.zeros(B, self.W - 1, self.d, dtype=self.dtype)
        return state

    def forward(self, tokens, state, dilution=None):
        B, T = tokens.shape
        self.until = T - T % self.b
        self.opened = []
        x = F.embedding(tokens, self.w["model.embed_tokens.weight"])
        out = {"position": state["position"] + self.until}
        block = {"lmm": self.lmm, "mal": self.mal, "mag": self.mag, "mac": self.mac}[self.variant]
        for i in range(self.L):
            p = f"model.layers.{i}."
            x = block(i, p, x, state, out, dilution)
            x = x + self.swiglu(self.rms(x, p + "post_attention_layernorm.weight"), p)
        return self.logits(x), out

    # ---- blocks

    def lmm(self, i, p, x, state, out, dilution):
        return x + self.memory_layer(i, p, self.rms(x, p + "input_layernorm.weight"), state, out, dilution)

    def mal(self, i, p, x, state, out, dilution):
        x = self.lmm(i, p, x, state, out, dilution)
        return x + self.sliding_attention(i, p, self.rms(x, p + "attention_layernorm.weight"), state, out)

    def mag(self, i, p, x, state, out, dilution):
        xn = self.rms(x, p + "input_layernorm.weight")
        y = self.sliding_attention(i, p, xn, state, out)
        return x + self.mix(p, y, self.memory_layer(i, p, xn, state, out, dilution))

    def mac(self, i, p, x, state, out, dilution):
        """Segment by segment: what a segment reads depends on what the one before it wrote."""
        B, T, _ = x.shape
        xn = self.rms(x, p + "input_layernorm.weight")
        q = self.rows(l2(self.heads_of(self.convolved(i, p, "q", xn, state, out))))
        weights, momentum = self.weights_of(state, i)
        tails = {s: state[f"conv_{s}_{i}"] for s in ("k", "v", "q2")}
        memory, outputs = self.memory(i), []
        for start in range(0, T, self.b):
            rows = slice(start, min(T, start + self.b))
            n = rows.stop - start
            h = self.memory_output(p, "", self.flat(memory.read(weights, q[:, :, rows])), xn[:, rows])
            y = self.segment_attention(p, xn[:, rows], h)
            yn = self.rms(x[:, rows] + y, p + "memory.input_norm.weight")
            k, v, q2 = (self.heads_of(self.convolved_from(p, s, yn, tails)) for s in ("k", "v", "q2"))
            theta, eta, alpha = self.rates(p, yn, None if dilution is None else dilution[:, rows])
            read, factors = memory.read_and_gradient(weights, self.rows(l2(q2)), self.rows(l2(k)), self.rows(v))
            m = self.memory_output(p, "2", self.flat(read), yn)
            if n == self.b:
                coefficients = commit_coefficients(eta, alpha)
                weights, momentum = self.commit(i, weights, momentum, factors, theta, coefficients)
                out.update({f"conv_{s}_{i}": tail for s, tail in tails.items()})
            outputs.append(x[:, rows] + self.mix(p, y, m))
        self.store(out, i, weights, momentum)
        return torch.cat(outputs, 1)

    def mix(self, p, y, m):
        y, m = self.rms(y, p + "mix.attention_norm.weight"), self.rms(m, p + "mix.memory_norm.weight")
        both = F.silu(y) * F.silu(m) if self.gate_mix == "silu_silu" else y * torch.sigmoid(m)
        return self.linear(both, p + "mix.o_proj.weight")

    # ---- memory

    def weights_of(self, state, i):
        return tuple([state[f"{kind}_{l}_{i}"] for l in range(self.D)] for kind in ("memory", "momentum"))

    def store(self, out, i, weights, momentum):
        for l in range(self.D):
            out[f"memory_{l}_{i}"], out[f"momentum_{l}_{i}"] = weights[l], momentum[l]

    def heads_of(self, x):
        return x.view(*x.shape[:-1], self.H, self.e)

    @staticmethod
    def rows(x):  # [B, T, H, e] -> [B, H, T, e]
        return x.transpose(1, 2)

    @staticmethod
    def flat(x):  # back
        return x.transpose(1, 2)

    def convolved(self, i, p, stream, x, state, out):
        """silu of the causal depthwise convolution of this stream's projection."""
        tails = {stream: state[f"conv_{stream}_{i}"]}
        y, new = self._convolve(p, stream, x, tails[stream])
        out[f"conv_{stream}_{i}"] = kept(new, tails[stream], self.until)
        return y

    def convolved_from(self, p, stream, x, tails):
        y, new = self._convolve(p, stream, x, tails[stream])
        tails[stream] = kept(new, tails[stream], x.shape[1])
        return y

    def _convolve(self, p, stream, x, tail):
        new = self.linear(x, p + f"memory.{stream}_proj.weight")
        taps, T = self.w[p + f"memory.{stream}_conv.weight"], x.shape[1]
        rows = torch.cat([tail, new], 1)
        return F.silu(sum(rows[:, j:j + T] * taps[:, j] for j in range(self.K))), new

    def rates(self, p, x, dilution):
        """theta, eta, alpha [B, H, T]."""
        z = F.linear(x, self.w[p + "memory.gate.weight"], self.w[p + "memory.gate.bias"])
        theta, eta, alpha = torch.sigmoid(z).transpose(1, 2).chunk(3, 1)
        theta, alpha = ((s - self.kappa).clamp(min=0) / (1 - self.kappa) for s in (theta, alpha))
        self.opened.append(theta + alpha)
        if not self.forget:
            alpha = torch.zeros_like(alpha)
        with torch.no_grad():
            layer = p.split(".")[2]
            self.gates[f"theta_{layer}"], self.gates[f"alpha_{layer}"] = theta.mean(), alpha.mean()
            # Of the quietest head: the share of tokens at which it writes or forgets at all.
            self.gates[f"open_{layer}"] = ((theta > 0) | (alpha > 0)).float().mean((0, 2)).min()
        if dilution is not None:
            R = dilution[:, None]
            theta, alpha = repeated_gate(theta, R), repeated_gate(alpha, R)
        return self.theta_max * theta, self.eta_max * eta, alpha

    def memory_output(self, p, which, y, x):
        y = rms(y, self.w[p + f"memory.output_norm{which}.weight"], self.eps).flatten(2)
        return self.linear(y * F.silu(self.linear(x, p + f"memory.output_gate{which}.weight")), p + f"memory.o{which}_proj.weight")

    def commit(self, i, weights, momentum, factors, theta, coefficients):
        """theta [B, H, b]; one chunk, closed form."""
        a, epsilon, p, beta, carry = coefficients
        if self.clip:
            norm = sum(x.square().sum(-1) * g.square().sum(-1) for x, g in factors)
            theta = theta * (self.clip * torch.rsqrt(norm + 1e-12)).clamp(max=1)
        a, epsilon = (theta * a)[..., None], (theta * epsilon)[..., None]
        p, beta, carry = p[..., None, None], beta[..., None, None], carry[..., None, None]
        new_weights, new_momentum = [], []
        for W, S, T, (x, g) in zip(weights, momentum, self.init_weights(i), factors):
            to_weights, to_momentum = (x.transpose(-1, -2) @ torch.cat([g * a, g * epsilon], -1)).chunk(2, -1)
            target = T - W if self.decay_to_init else -W
            new_weights.append(W + (1 - beta) * target + p * S - to_weights)
            new_momentum.append(carry * S - to_momentum)
        return new_weights, new_momentum

    def memory_layer(self, i, p, x, state, out, dilution):
        B, T, _ = x.shape
        streams = (self.heads_of(self.convolved(i, p, s, x, state, out)) for s in "qkv")
        q, k, v = (self.rows(y) for y in streams)
        q, k = l2(q), l2(k)
        theta, eta, alpha = self.rates(p, x, dilution)
        chunks, b = self.until // self.b, self.b
        memory, reads = self.memory(i), []
        weights, momentum = self.weights_of(state, i)
        if chunks:
            shape = (B, self.H, chunks, b)
            every = commit_coefficients(eta[..., :self.until].reshape(shape), alpha[..., :self.until].reshape(shape))
            every = list(zip(*(x.unbind(2) for x in every)))
        # Pieces from one split: slices would each cost a gradient of full size.
        pieces = [x.split(b, 2) for x in (q, k, v, theta)]
        for c in range(chunks):
            q_c, k_c, v_c, theta_c = (piece[c] for piece in pieces)
            read, factors = memory.read_and_gradient(weights, q_c, k_c, v_c)
            reads.append(read)
            weights, momentum = self.commit(i, weights, momentum, factors, theta_c, every[c])
        if self.until < T:
            reads.append(memory.read(weights, pieces[0][chunks]))
        self.store(out, i, weights, momentum)
        return self.memory_output(p, "", self.flat(torch.cat(reads, 2)), x)

    # ---- attention

    def qkv(self, p, x):
        return (self.linear(x, p + f"self_attn.{n}_proj.weight").view(*x.shape[:2], self.heads, -1) for n in "qkv")

    def persistent(self, p):
        if not self.N_p:
            return None
        fixed = self.w[p + "self_attn.persistent"]
        return tuple(self.linear(fixed, p + f"self_attn.{n}_proj.weight").view(self.N_p, self.heads, -1) for n in "kv")

    def sliding_attention(self, i, p, x, state, out):
        B, T, _ = x.shape
        q, k, v = self.qkv(p, x)
        past = [state[f"{f}_{i}"].view(B, self.W - 1, self.heads, -1) for f in "kv"]
        y = window_attention(q, k, v, *past, min(state["position"], self.W - 1), self.W, self.theta, self.pairing,
                             self.persistent(p))
        out[f"k_{i}"], out[f"v_{i}"] = (kept(new.flatten(2), state[f"{f}_{i}"], self.until) for f, new in (("k", k), ("v", v)))
        return self.linear(y.flatten(2), p + "self_attn.o_proj.weight")

    def segment_attention(self, p, x, h):
        n = x.shape[1]
        q, k, v = self.qkv(p, x)
        h_k, h_v = (self.linear(h, p + f"self_attn.{f}_proj.weight").view_as(k) for f in "kv")
        keys = torch.cat([rope(h_k, 0, self.theta, self.pairing), rope(k, self.b, self.theta, self.pairing)], 1).transpose(1, 2)
        values = torch.cat([h_v, v], 1).transpose(1, 2)
        scores = rope(q, self.b, self.theta, self.pairing).transpose(1, 2) @ keys.transpose(-1, -2)
        future = torch.ones(n, n, dtype=torch.bool).triu(1)
        scores = scores.masked_fill(torch.cat([future, future], 1), -math.inf)
        fixed = self.persistent(p)
        if fixed is not None:
            scores = torch.cat([q.transpose(1, 2) @ fixed[0].permute(1, 2, 0), scores], -1)
            values = torch.cat([fixed[1].transpose(0, 1).expand(x.shape[0], -1, -1, -1), values], 2)
        y = (scores / math.sqrt(k.shape[-1])).softmax(-1) @ values
        return self.linear(y.transpose(1, 2).flatten(2), p + "self_attn.o_proj.weight")
