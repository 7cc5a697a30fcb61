"""The PyTorch half of `unet_gpu.py`: torchcfm's CIFAR-10 network as fast as plain compiled PyTorch makes it.

    python scripts/benchmarks/torch_unet.py [--batch 512] [--sample_batch 500]

bfloat16 autocast, channels_last, torch.compile, fused Adam, moving average by `torch._foreach_lerp_`; images drawn,
flipped and dequantised on the device, no dropout. Sampling times the forward pass alone. One JSON line on stdout. Needs
torch and torchcfm 1.0.7.
"""

# pyright: reportMissingImports=false, reportPrivateUsage=false
import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torchcfm.models.unet.unet import UNetModelWrapper


def network() -> torch.nn.Module:
    """The network of torchcfm's examples/images/cifar10, without its dropout."""
    net = UNetModelWrapper(
        dim=(3, 32, 32),
        num_res_blocks=2,
        num_channels=128,
        channel_mult=[1, 2, 2, 2],
        num_heads=4,
        num_head_channels=64,
        attention_resolutions="16",
        dropout=0.0,
    )
    return net.cuda().to(memory_format=torch.channels_last)


def training(batch: int) -> Callable[[], None]:
    net = network()
    compiled = torch.compile(net)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-4, fused=True)
    average = [p.detach().clone() for p in net.parameters()]
    data = torch.randint(0, 256, (50_000, 3, 32, 32), dtype=torch.uint8, device="cuda")

    def step() -> None:
        rows = torch.randint(0, len(data), (batch,), device="cuda")
        x1 = data[rows].float().add_(torch.rand(batch, 3, 32, 32, device="cuda")).div_(127.5).sub_(1)
        x1 = torch.where(torch.rand(batch, 1, 1, 1, device="cuda") < 0.5, x1, x1.flip(3))
        x1 = x1.contiguous(memory_format=torch.channels_last)
        x0, t = torch.randn_like(x1), torch.rand(batch, device="cuda")
        w = t[:, None, None, None]
        with torch.autocast("cuda", torch.bfloat16):
            v = compiled(t, (1 - w) * x0 + w * x1)
        loss = torch.mean((v.float() - (x1 - x0)) ** 2)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch._foreach_lerp_(average, list(net.parameters()), 1e-4)

    return step


def forward(batch: int) -> Callable[[], None]:
    net = network().eval()
    compiled = torch.compile(net)
    x = torch.randn(batch, 3, 32, 32, device="cuda").contiguous(memory_format=torch.channels_last)
    t = torch.rand(batch, device="cuda")

    @torch.no_grad()
    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            compiled(t, x)

    return step


def rate(step: Callable[[], None], batch: int, n: int) -> dict[str, float]:
    """Images a second: the median of three stretches of n steps after a warm-up."""
    start = time.perf_counter()
    step()
    torch.cuda.synchronize()
    first = time.perf_counter() - start
    for _ in range(5):
        step()
    torch.cuda.synchronize()
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(n):
            step()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return {"images_per_second": batch * n / statistics.median(seconds), "compile_seconds": first}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--sample_batch", type=int, default=500)
    args = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    result = {
        "train": rate(training(args.batch), args.batch, 20),
        "sample": rate(forward(args.sample_batch), args.sample_batch, 20),
    }
    print(json.dumps({"torch": torch.__version__, "device": torch.cuda.get_device_name(), **result}))


if __name__ == "__main__":
    main()
