"""Devices that are not here, to compile for.

    devices("v5p:2x2x2")    a slice of TPU v5p; needs `pip install 'flowjax-research[tpu]'`
    devices("h200:8x8")     8 hosts of 8 H200s; needs `pip install 'flowjax-research[cuda13]'`

Neither needs what it compiles for. Of a GPU's program the kernels of libraries are chosen by rule, not by trying.
"""

import os
from typing import Any

_H200 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  memory_bandwidth: 4800000000000 l2_cache_size: 52428800 device_memory_size: 150000000000
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_block_limit: 65536 registers_per_core_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
}
platform_name: "CUDA"
runtime_version { major: 13 }
dnn_version_info { major: 9 minor: 12 }
device_description_str: "NVIDIA H200"
"""
"""What XLA asks of a GPU, from NVIDIA's data sheet and the limits of compute capability 9.0."""


def fuse() -> None:
    """From here on programs have the kernels of our own and of cuDNN that `flowjax.models.kernels` takes on a GPU."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn  # asks the devices that are here

    from flowjax.models import kernels

    kernels.serve = lambda forward_mode=False: not forward_mode
    cudnn.check_compute_capability = lambda *_: True
    cudnn.check_cudnn_version = lambda: 91200


OPTIONS = {"h200": {"xla_gpu_enable_triton_gemm": False}}
"""Of the compiler, by kind: where nothing can be tried, some products find no form that Triton takes."""


def devices(text: str) -> Any:
    """Those of a topology, KIND:SIZES: of a TPU the sizes of its torus, of `h200` hosts x GPUs of a host."""
    kind, _, sizes = text.partition(":")
    for name, value in (
        ("JAX_PLATFORMS", "cpu"),
        ("TPU_SKIP_MDS_QUERY", "1"),
        ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1"),
    ):
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    if kind == "h200":
        return topologies.get_topology_desc("h200", "cuda", target_config=_H200, topology=f"1x{sizes}").devices
    return topologies.get_topology_desc(platform="tpu", topology_name=text).devices
