"""Converted networks answer as PyTorch's do: on stored answers always, against the packages where they are installed.

float32 rounds at 6e-8; some hundred layers and the times up to 999 in the sines, at 6e-5 in the angle, make 1e-4 of the
output's largest number.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from flowjax.conditions import Field
from flowjax.interop import WeightsError, from_dit, from_sit, from_torchcfm, read_state_dict
from flowjax.interop.dit import reverse_time
from flowjax.interop.torchcfm import layers
from flowjax.interop.tree import flatten
from flowjax.models.adm import ADM
from flowjax.models.dit import DiT
from flowjax.models.embeddings import positional

DATA = Path(__file__).parent / "data"


def classes(n):
    return (Field("label", "label", num_classes=n),)


CFM = {"channels": 32, "multipliers": (1, 2), "blocks": 1, "attention": (4,), "head_width": 16, "dtype": "float32"}
TINY_DIT = {"patch": 2, "depth": 2, "width": 32, "heads": 4, "fields": classes(3), "dtype": "float32"}


class Network:
    """A module apart from its parameters.

    Attributes:
        like: the shapes of its parameters.
    """

    def __init__(self, make):
        self._graph, state = nnx.split(nnx.eval_shape(make))
        self.like = nnx.to_pure_dict(state)

    def __call__(self, params, *args):
        return jax.jit(lambda params, *args: nnx.merge(self._graph, params)(*args))(params, *args)


def cfm(**changes):
    return Network(lambda: ADM((8, 8, 3), **CFM | changes, rngs=nnx.Rngs(0)))


def dit(**changes):
    return Network(lambda: DiT((8, 8, 4), **TINY_DIT | changes, rngs=nnx.Rngs(0)))


def labels(network, y):
    """The condition of a network with classes, None for one without."""
    return {"label": y.astype(np.int32)} if "encoders" in network.like else None


def assert_agree(got, want):
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * float(np.abs(want).max()))


@pytest.mark.parametrize(
    ("name", "changes"), [("torchcfm", {}), ("torchcfm_film", {"film": True, "fields": classes(3)})]
)
def test_torchcfm_answers_as_stored(name, changes):
    network, stored = cfm(**changes), np.load(DATA / f"{name}.npz")
    params = from_torchcfm(read_state_dict(DATA / f"{name}.pt"), network.like, head_width=16)
    assert_agree(network(params, stored["t"], stored["x"], labels(network, stored["y"])), stored["out"])


def weights(shape, i):
    """The i-th array of `torchcfm_heads.npz`: uniform, of the variance that keeps the size of what passes through."""
    n = int(np.prod(shape))
    scale = np.sqrt(12 / (n // shape[0] if len(shape) > 1 else 100))
    return ((np.random.default_rng(i).random(n) - 0.5) * scale).astype(np.float32).reshape(shape)


@pytest.mark.parametrize("heads", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 4))])
def test_torchcfm_with_a_fixed_number_of_heads_answers_as_stored(heads):
    """torchcfm's default, `num_head_channels=-1`: the width of a head differs between maps of 32 and of 64 channels."""
    stored = np.load(DATA / "torchcfm_heads.npz")
    layout = [entry.split(":") for entry in stored["layout"].tolist()]
    state = {name: weights(tuple(map(int, shape.split(","))), i) for i, (name, shape) in enumerate(layout)}
    network = cfm(attention=(8, 4), heads=heads)
    got = network(from_torchcfm(state, network.like, heads=heads), stored["t"], stored["x"])
    assert_agree(got, stored[f"heads{heads}"])
    others = [stored[f"heads{n}"] for n in (1, 2, 4) if n != heads]
    assert min(np.abs(got - other).max() / np.abs(other).max() for other in others) > 0.01  # 100 times the tolerance


@pytest.mark.parametrize("given", [{}, {"head_width": 16, "heads": 2}])
def test_the_number_of_heads_is_never_guessed(given):
    with pytest.raises(WeightsError, match="give either head_width"):
        from_torchcfm({}, cfm().like, **given)


def test_a_state_dict_is_read_from_safetensors_too(tmp_path):
    known, path = read_state_dict(DATA / "torchcfm.pt"), tmp_path / "weights.safetensors"
    save_file({name: np.ascontiguousarray(a) for name, a in known.items()}, path)
    found = read_state_dict(path)
    assert sorted(found) == sorted(known)
    for name, a in known.items():
        np.testing.assert_array_equal(found[name], a)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(WeightsError, match="cannot be read"):
        read_state_dict(path)


def test_the_order_of_heads_matters():
    """What a test of the converter must be able to see: the other order is far off."""
    network, stored = cfm(), np.load(DATA / "torchcfm.npz")
    params = from_torchcfm(read_state_dict(DATA / "torchcfm.pt"), network.like, head_width=16, legacy=False)
    assert np.abs(network(params, stored["t"], stored["x"]) - stored["out"]).max() > 1e-2


def test_dit_answers_as_stored():
    """At steps 0, 500 and 999: level i + 1 of `schedules.discrete`, which stands at t = 1 - (i + 1) / 1000."""
    network, stored = dit(outputs=2), np.load(DATA / "dit.npz")
    params = from_dit(read_state_dict(DATA / "dit.pt"), network.like)
    t = 1 - (stored["i"] + 1) / 1000
    assert_agree(network(params, t, stored["x"], labels(network, stored["y"])), stored["dit"])


@pytest.mark.parametrize("outputs", [1, 2])
def test_sit_answers_as_stored(outputs):
    network, stored = dit(outputs=outputs, time_scale=1.0), np.load(DATA / "dit.npz")
    params = from_sit(read_state_dict(DATA / "dit.pt"), network.like)
    got = network(params, stored["t"], stored["x"], labels(network, stored["y"]))
    assert_agree(got[..., :4], stored["sit"])


def test_no_label_is_the_last_row_of_dits_table():
    """The third stored row has the null class, 3."""
    network, stored = dit(outputs=2), np.load(DATA / "dit.npz")
    params = from_dit(read_state_dict(DATA / "dit.pt"), network.like)
    assert_agree(network(params, 0.0, stored["x"][2:]), stored["dit"][2:])


def test_reversed_time_is_the_same_function():
    """The angles reach 999: float32 has them to 6e-5."""
    kernel = np.random.default_rng(0).normal(size=(256, 7)).astype(np.float32)
    steps = jnp.array([0.0, 1.0, 417.0, 998.0, 999.0])
    want = positional(steps, 256) @ kernel
    got = positional(1000.0 * (1 - (steps + 1) / 1000), 256) @ reverse_time(kernel, 1000)
    np.testing.assert_allclose(got, want, atol=2e-3)


def test_every_parameter_of_torchcfms_preset_has_a_name():
    network = Network(lambda: ADM((32, 32, 3), rngs=nnx.Rngs(0)))
    wanted = flatten(network.like)
    leaves = {f"{ours}.{end}" for ours, kind in layers(wanted).values() for end in ("bias", ("kernel", "scale")[kind == "norm"])}  # fmt: skip  # noqa: E501
    assert leaves == set(wanted)
    assert sum(a.size for a in wanted.values()) == 35_746_307


def without(state, name):
    return {k: a for k, a in state.items() if k != name}


def test_checkpoints_of_other_networks_are_told():
    state, film = read_state_dict(DATA / "torchcfm.pt"), read_state_dict(DATA / "torchcfm_film.pt")
    transformer = read_state_dict(DATA / "dit.pt")
    to_cfm = lambda state, **changes: from_torchcfm(state, cfm(**changes).like, head_width=16)
    for call, message in (
        (lambda: to_cfm(without(state, "out.2.bias")), "lacks out.2.bias"),
        (lambda: to_cfm({**state, "more": np.ones(3)}), "also has more"),
        (lambda: to_cfm(state, blocks=2), "lacks input_blocks"),
        (lambda: to_cfm(state, channels=64), r"block.conv1.kernel \(3, 3, 32, 32\) for \(3, 3, 64, 64\)"),
        (lambda: to_cfm(film), "also has label_emb.weight"),
        (lambda: to_cfm(film, fields=classes(3)), r"down.0.0.block.embed.bias \(64,\) for \(32,\)"),
        (lambda: to_cfm(state, fields=classes(3)), "lacks label_emb.weight"),
        (lambda: to_cfm(state, fields=(Field("augment", "vector", (2,), zero_is_null=True),)), "no augmentation"),
        (lambda: to_cfm({**state, "out.2.weight": np.ones(3)}), r"out.2.weight has shape \(3,\)"),
        (lambda: from_dit(transformer, dit().like), r"out.bias \(32,\) for \(16,\)"),
        (lambda: from_dit(transformer, dit(outputs=2, depth=1).like), "also has blocks.1"),
        (lambda: from_dit(transformer, dit(outputs=2, fields=()).like), "also has y_embedder"),
        (lambda: from_dit({**transformer, "pos_embed": np.zeros((1, 16, 32))}, dit(outputs=2).like), "pos_embed"),
        (lambda: from_dit(transformer, dit(outputs=2, qk_norm=True).like), "lacks blocks.0.k_gain"),
    ):
        with pytest.raises(WeightsError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({}, {}),
        ({"channel_mult": [1, 2, 2], "num_res_blocks": 2}, {"multipliers": (1, 2, 2), "blocks": 2}),
        ({"use_scale_shift_norm": True, "num_channels": 64}, {"film": True, "channels": 64}),
        ({"attention_resolutions": "8,4"}, {"attention": (8, 4)}),
        ({"use_new_attention_order": True}, {}),
        ({"class_cond": True, "num_classes": 5}, {"fields": classes(5)}),
    ],
)
def test_torchcfm_answers_as_installed(theirs, ours):
    torch = pytest.importorskip("torch")
    unet = pytest.importorskip("torchcfm.models.unet.unet")
    usual = {
        "dim": (3, 8, 8),
        "num_channels": 32,
        "num_res_blocks": 1,
        "channel_mult": [1, 2],
        "num_head_channels": 16,
        "attention_resolutions": "4",
    }
    torch.manual_seed(0)
    module = unet.UNetModelWrapper(**usual | theirs).eval()
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.05 * torch.randn(p.shape))  # nothing stays zero
        x, t, y = torch.randn(2, 3, 8, 8), torch.tensor([0.2, 0.9]), torch.tensor([0, 4])
        want = module(t, x, y if "class_cond" in theirs else None).permute(0, 2, 3, 1).numpy()
    network = cfm(**ours)
    state = {name: a.numpy() for name, a in module.state_dict().items()}
    legacy = not theirs.get("use_new_attention_order", False)
    params = from_torchcfm(state, network.like, head_width=16, legacy=legacy)
    assert_agree(network(params, t.numpy(), x.permute(0, 2, 3, 1).numpy(), labels(network, y.numpy())), want)
