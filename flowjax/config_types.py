"""The keys of a config as a type checker sees them.

At run time a config is an `ml_collections.ConfigDict`, whose keys `flowjax.config.resolve` checks. These classes are
never instantiated. They declare the keys for a type checker, which then reports `config.train.stepz` as an error. A
test compares them with `flowjax.config.defaults`.

The docstrings of these classes say what the keys mean. `flowjax configs NAME`, `flowjax train --help config.KEY` and
docs/keys.md show them. The keys of methods and networks are described where these are defined.
"""

from collections.abc import ItemsView
from typing import Any

__all__ = [
    "Config",
    "CouplingKeys",
    "DataKeys",
    "EMAKeys",
    "MeshKeys",
    "MethodKeys",
    "NetworkKeys",
    "OpenKeys",
    "PathKeys",
    "Section",
    "SourceKeys",
    "TrainKeys",
]


class Section:
    """The methods that a config and its sections share, for access to keys by their names."""

    def __getitem__(self, key: str) -> Any: ...

    def __setitem__(self, key: str, value: Any) -> None: ...

    def __contains__(self, key: object) -> bool: ...

    def get(self, key: str, default: Any = None) -> Any: ...

    def items(self) -> ItemsView[str, Any]: ...

    def to_dict(self) -> dict[str, Any]: ...


class OpenKeys(Section):
    """A section whose other keys depend on its `name`: the section of a network or of a method."""

    name: str

    def __getattr__(self, key: str) -> Any: ...

    def __setattr__(self, key: str, value: Any) -> None: ...


class MethodKeys(OpenKeys):
    """What is trained.

    The other keys of this section are the fields of the method's `Settings`.

    Attributes:
        name: the method. It determines which sections a config has.
    """


class NetworkKeys(OpenKeys):
    """The network.

    The other keys of this section are keyword arguments of its constructor.

    Attributes:
        name: the network. `unet`, `adm`, `edm2` and `dit` are for images, `transformer` is for sequences, signals and
            sets, and `unet1d` for sequences and signals; `mlp` and `resmlp` take data of any shape.
    """


class SourceKeys(Section):
    """The source distribution, from which sampling starts at t = 0.

    Attributes:
        name: the distribution of x0: a normal or uniform distribution of variance 1, a density in the plane, one class
            of scikit-learn's digits, or the rows of a file of yours (`npz`), for flows from one data set to another.
        path: the .npz file of the source `npz`, whose array x holds examples like those of the data.
    """

    name: str
    path: str


class PathKeys(Section):
    """The path from the source to the data: x_t = alpha(t) x1 + sigma(t) x0, perhaps with noise.

    Attributes:
        name: the kind of path. `affine` is Gaussian wherever it can be; `gaussian` refuses the configs where it cannot.
        schedule: the noise schedule, alpha and sigma as functions of t.
        shift: the shift of the times towards more noise, for larger images: on `condot` sigma / alpha is multiplied by
            it. 1 for none.
        noise: the noise that is added to the path, for I-CFM with sigma (`constant(0.1)`), Schroedinger bridges
            (`bridge(1)`), stochastic interpolants (`sine2(1)`), and source samples of `data.pairs` (`fading(0.5)`);
            empty for none.
    """

    name: str
    schedule: str
    shift: float
    noise: str


class CouplingKeys(Section):
    """How x0 and x1 are paired in each batch.

    Attributes:
        name: the rule by which they are paired: `independent` at random, `ot` by exact optimal transport, `auction` the
            same on the device, `sinkhorn` by entropic optimal transport. `class_` pairs rows of the same class only.
    """

    name: str


class DataKeys(Section):
    """The data set, and the conditions of the network.

    Attributes:
        name: the data set: a density in the plane, images of scikit-learn or TensorFlow Datasets, or files of yours.
            Empty for the format of `data.path`, by the suffix of the file or the content of the folder; without a path
            it is `gaussians8`.
        path: the file or folder of the data set, or for TensorFlow Datasets its `data_dir`.
        cond: the arrays beside x that are conditions of the network. `label` is the array y;
            `label(dropout=0.2)` has a dropout of its own.
        cond_dropout: the probability with which training hides each condition, which classifier-free guidance needs.
        pairs: the array beside x that holds the source sample x0 of each row; empty to draw x0 from the source. It is
            `x0` for pairs that a trained model has made (`flowjax pairs`, `flowjax reflow`).
        degrade: the operator that makes the array `degraded` of a set of images, for `data.cond` or `data.pairs`: means
            of blocks of pixels, a missing square in the centre, shades of grey, or edges. Empty for none.
        dequantisation: what the integer k is in training: a random number in [k, k + 1) (`uniform`), or the number
            k + 1/2 (`none`), for models whose own noise covers the bins; `variational` learns the noise together with a
            normalizing flow.
        normalise: what shares one scale and shift: all numbers (`global`), each column (`feature`) or each channel
            (`channel`). Empty lets the data set choose.
        simulator: the simulator of the data set `simulator`: a task of the benchmark of simulation-based inference, or
            `my_module:my_simulator`.
        augment: the augmentation of images in training. `edm` passes its transforms to the network, so that they do not
            appear in samples.
        workers: the number of processes that read streamed data ahead; 0 to read in the training process.
    """

    name: str
    path: str
    cond: tuple[str, ...]
    cond_dropout: float
    pairs: str
    degrade: str
    dequantisation: str
    normalise: str
    simulator: str
    augment: str
    workers: int


class TrainKeys(Section):
    """Training: the optimizer, its schedule, and what is logged and saved.

    Attributes:
        start_from: the workdir of a trained run, from the averaged parameters of whose network training starts. The
            network must be the same; it may have a second time in addition. Empty for new parameters.
        steps: the number of optimizer steps.
        batch_size: the total number of rows in a batch, over all devices.
        accumulate: the number of parts in which each batch is computed, one after the other, to save memory.
        loss_scale: the factor of the loss during differentiation; the gradients are divided by it. With `model.dtype`
            `float16`, gradients below 6e-8 become 0 without such a factor, and those above 65504 are not finite.
        optimizer: the optimizer. `muon` updates matrices by orthogonalised momentum, and all other parameters by Adam.
        lr: the peak of the learning rate.
        beta2: the decay of the second moment of Adam.
        momentum: the momentum of `muon`; other optimizers do not read it.
        weight_decay: the weight decay of `adamw` and `muon`; `adam` does not read it.
        warmup: the number of samples over which the learning rate rises to its peak.
        schedule: the learning rate after the warm-up, as a share of its peak. `cosine(0.5)` keeps the peak for half of
            the run; `inverse_sqrt(samples)` keeps it for that many samples.
        clip: the largest global norm of a gradient, to which larger ones are scaled; 0 for no clipping.
        spike: a step is skipped if its gradient norm is more than this multiple of the running mean; 0 for no guard.
        loop: where the loop over steps runs: in one program of many steps (`device`), or with one call per step
            (`host`). `auto` is `host` for convolutional networks on a CPU, and `device` otherwise.
        peak_tflops: the peak of one device in TFLOP/s, for `mfu` in `metrics.jsonl`; 0 for the value of a known device.
        log_every: the number of steps between records of `metrics.jsonl`.
        save_every: the number of steps between checkpoints.
        keep_last: the number of latest checkpoints that are kept; the best one is always kept.
        keep_every: also keep the checkpoints at multiples of this number of steps; 0 for none.
        keep_at: also save and keep checkpoints at these steps.
    """

    start_from: str
    steps: int
    batch_size: int
    accumulate: int
    loss_scale: float
    optimizer: str
    lr: float
    beta2: float
    momentum: float
    weight_decay: float
    warmup: float
    schedule: str
    clip: float
    spike: float
    loop: str
    peak_tflops: float
    log_every: int
    save_every: int
    keep_last: int
    keep_every: int
    keep_at: tuple[int, ...]


class EMAKeys(Section):
    """The moving averages of the parameters, which sampling uses.

    Attributes:
        half_life: the half-life of the average in samples; 0 for no average.
        widths: the widths of power-function averages as shares of the run. From two of them, such as (0.05, 0.1), the
            average of any other width is computed after training (`--width 0.07`).
        snapshots: the number of snapshots of the averages of `widths` that a run saves.
    """

    half_life: float
    widths: tuple[float, ...]
    snapshots: int


class MeshKeys(Section):
    """The mesh of devices: `data` x `fsdp` x `tensor`.

    Attributes:
        data: the number of devices that split the batch and have whole parameters; 0 for all that the other axes leave.
        fsdp: the number of devices that split the batch and also the parameters (fully sharded data parallelism).
        tensor: the number of devices that split the matrices of each layer (tensor parallelism).
        rules: texts `PATTERN = AXIS, AXIS`, which say how the dimensions of the parameters whose names match are split,
            before the rules of the network; `-` stands for a dimension that is not split.
    """

    data: int
    fsdp: int
    tensor: int
    rules: tuple[str, ...]


class Config(Section):
    """A full config. `source`, `path`, `coupling`, `prediction` and `model` exist only if the method reads them.

    Attributes:
        seed: the seed of the initialisation and of all random numbers in training.
        prediction: what the network predicts, from which its velocity and score are computed. `velocity_score` is for
            paths with noise, and `noise_variance` is for the learned variance of the method `variational`.
    """

    seed: int
    method: MethodKeys
    source: SourceKeys
    path: PathKeys
    coupling: CouplingKeys
    prediction: str
    model: NetworkKeys
    data: DataKeys
    train: TrainKeys
    ema: EMAKeys
    mesh: MeshKeys
