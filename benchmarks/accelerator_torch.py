"""The torch side of `benchmarks.accelerator`: the same networks on the same device, eager or compiled.

A process of its own that answers one JSON line for each on its stdin; it computes only when asked. U-Nets are those of
diffusers, the transformer is written out below. channels_last; inference with weights in bfloat16, training by
bfloat16 autocast with float32 weights, TF32 elsewhere, fused AdamW, cuDNN told to search.
"""

import json
import sys
import time
import traceback

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    """A DiT block, adaLN-Zero."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.modulation = nn.Linear(width, 6 * width)
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.dense1, self.dense2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x, emb):
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(emb)[:, None].chunk(6, dim=-1)
        y = self.norm(x) * (1 + scale1) + shift1
        query, key, value = self.qkv(y).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + gate1 * self.proj(y)
        y = self.norm(x) * (1 + scale2) + shift2
        return x + gate2 * self.dense2(F.gelu(self.dense1(y), approximate="tanh"))


class DiT(nn.Module):
    """The diffusion transformer without classes."""

    def __init__(self, side: int, channels: int, patch: int, width: int, depth: int, heads: int):
        super().__init__()
        self.patch = patch
        self.proj_in = nn.Conv2d(channels, width, patch, patch)
        self.places = nn.Parameter(torch.randn(1, (side // patch) ** 2, width), requires_grad=False)
        self.time = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.modulation = nn.Linear(width, 2 * width)
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.proj_out = nn.Linear(width, patch**2 * channels)

    def forward(self, x, times):
        frequencies = 10 ** (-4 * torch.arange(128, device=x.device) / 128)
        angles = times[:, None].float() * frequencies
        emb = self.time(torch.cat([angles.sin(), angles.cos()], dim=-1).to(self.proj_out.weight.dtype))
        y = self.proj_in(x)
        rows, columns = y.shape[2:]
        y = y.flatten(2).transpose(1, 2) + self.places
        for block in self.blocks:
            y = block(y, emb)
        shift, scale = self.modulation(emb)[:, None].chunk(2, dim=-1)
        y = self.proj_out(self.norm(y) * (1 + scale) + shift)
        y = y.unflatten(1, (rows, columns)).unflatten(-1, (self.patch, self.patch, -1))
        return y.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def make(kind: str, options: dict) -> nn.Module:
    """The network, new."""
    if kind == "dit":
        return DiT(**options)
    import diffusers

    return getattr(diffusers, kind)(**options)


class Side:
    """One network in its two forms: weights in bfloat16 for inference, float32 ones for training."""

    def __init__(self, case: dict, compiled: bool):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(0)
        self.net = make(case["kind"], case["options"]).to(self.device, memory_format=torch.channels_last).train()
        self.half = make(case["kind"], case["options"]).to(self.device, torch.bfloat16)
        self.half = self.half.to(memory_format=torch.channels_last).eval().requires_grad_(False)
        self.run, self.infer = (torch.compile(net) if compiled else net for net in (self.net, self.half))
        self.trained = [p for p in self.net.parameters() if p.requires_grad]
        self.average = [p.detach().clone() for p in self.trained]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-4, fused=True)
        self.text, (side, channels), batches = case["text"], case["x"], case["batches"]
        self.batches = {what: self.batch(number, side, channels) for what, number in batches.items()}
        self.alpha_bar = torch.cos(torch.linspace(0, 1.5, case["steps"] + 1, device=self.device)) ** 2

    def batch(self, number, side, channels):
        x = torch.randn(number, channels, side, side, device=self.device).to(memory_format=torch.channels_last)
        text = [torch.randn(number, *self.text, device=self.device)] if self.text else []
        return x, torch.randint(0, 1000, (number,), device=self.device), text

    @staticmethod
    def call(net, x, times, text):
        out = net(x, times, *text)
        return getattr(out, "sample", out)

    def forward(self):
        x, times, text = self.batches["forward"]
        with torch.no_grad():
            return self.call(self.infer, x.bfloat16(), times, [y.bfloat16() for y in text])

    def step(self):
        x, times, text = self.batches["step"]
        noise = torch.randn_like(x)
        level = (times / 1000)[:, None, None, None]
        with torch.autocast(self.device.type, torch.bfloat16):
            out = self.call(self.run, (1 - level).sqrt() * x + level.sqrt() * noise, times, text)
        F.mse_loss(out.float(), noise).backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.trained, 1e-4)

    def sample(self):
        x, times, text = self.batches["sample"]
        text = [y.bfloat16() for y in text]
        steps = len(self.alpha_bar) - 1
        with torch.no_grad():
            for i in range(steps, 0, -1):
                here, there = self.alpha_bar[i], self.alpha_bar[i - 1]
                times.fill_(1000 * i // steps)
                noise = self.call(self.infer, x.bfloat16(), times, text).float()
                x_0 = ((x - (1 - here).sqrt() * noise) / here.sqrt()).clamp(-1, 1)
                x = there.sqrt() * x_0 + (1 - there).sqrt() * (x - here.sqrt() * x_0) / (1 - here).sqrt()
        return x

    def seconds(self, what: str, calls: int) -> float:
        """A call, the mean of that many in a row."""
        self.wait()
        began = time.perf_counter()
        for _ in range(calls):
            getattr(self, what)()
        self.wait()
        return (time.perf_counter() - began) / calls

    def wait(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def answer(sides: dict, asked: dict) -> object:
    """What was asked for: a network made and each of its calls made once, or seconds."""
    if asked["do"] == "time":
        return sides[asked["compiled"]].seconds(asked["what"], asked["calls"])
    side = sides[asked["compiled"]] = Side(asked["network"], asked["compiled"])
    took = {what: side.seconds(what, 1) for what in asked["whats"]}
    if side.device.type == "cuda":
        torch.cuda.empty_cache()  # others prepare on the same device
    return took


def main() -> None:
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    answers, sys.stdout = sys.stdout, sys.stderr
    sides: dict = {}
    for line in sys.stdin:
        try:
            reply = {"answer": answer(sides, json.loads(line))}
        except Exception as error:
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
        print(json.dumps(reply), file=answers, flush=True)


if __name__ == "__main__":
    main()
