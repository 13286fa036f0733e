"""Networks have the published shapes, start from the caller's generator, and live in one flat vector."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jobs.architectures import ARCHITECTURES
from jobs.errors import BadInput
from jobs.specs import NetworkSpec
from workers.training.compute import images_at_a_time
from workers.training.networks import (
    ConvNet,
    Network,
    ResNet,
    _strides,
    build,
    features,
    flatten,
    initialise,
    load_flat,
    parameter_count,
    unflatten,
)


def _net(
    architecture: str = "convnet",
    *,
    channels: int = 3,
    size: int = 32,
    classes: int = 10,
    width: int | None = None,
    depth: int | None = None,
    norm: str = "instance",
    pooling: str = "average",
    activation: str = "relu",
    seed: int = 0,
) -> Network:
    return build(
        architecture,
        channels=channels,
        size=size,
        classes=classes,
        width=width,
        depth=depth,
        norm=norm,
        pooling=pooling,
        activation=activation,
        generator=torch.Generator().manual_seed(seed),
    )


def _images(n: int, size: int = 8, channels: int = 3) -> Tensor:
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(1))


def _small(seed: int = 0, norm: str = "instance") -> Network:
    return _net(size=8, width=4, depth=2, norm=norm, seed=seed)


@pytest.mark.parametrize(
    ("architecture", "channels", "size", "classes", "depth", "published"),
    [
        ("convnet", 3, 32, 10, None, 320_010),
        ("convnet", 3, 32, 100, None, 504_420),
        ("convnet", 3, 64, 200, 4, 857_160),
        ("convnet", 3, 64, 200, 3, 1_938_120),
        ("convnet", 1, 28, 10, None, 317_706),
        ("resnet18", 3, 32, 10, None, 11_173_962),
        ("resnet10", 3, 32, 10, None, 4_903_242),
        ("resnet18", 3, 32, 100, None, 11_220_132),
        ("resnet10", 3, 32, 100, None, 4_949_412),
        ("idc_resnet10", 3, 32, 10, None, 1_228_970),
        ("idc_resnet18", 3, 32, 10, None, 2_797_610),
        ("idc_resnet10", 3, 32, 100, None, 1_252_100),
        ("idc_resnet18", 3, 32, 100, None, 2_820_740),
        ("vgg11", 3, 32, 10, None, 9_231_114),
        ("vgg11", 1, 28, 10, None, 9_229_962),
    ],
)
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_parameter_counts_are_the_published_ones(
    architecture: str, channels: int, size: int, classes: int, depth: int | None, published: int, norm: str
) -> None:
    net = _net(architecture, channels=channels, size=size, classes=classes, depth=depth, norm=norm)
    assert parameter_count(net) == published


@pytest.mark.parametrize(
    ("architecture", "channels", "size", "published"),
    [
        ("alexnet", 3, 32, 1_872_202),
        ("alexnet", 1, 28, 1_865_802),
        ("lenet", 3, 32, 62_006),
        ("lenet", 1, 28, 61_706),
        ("mlp", 3, 32, 411_146),
        ("mlp", 1, 28, 118_282),
        ("vit", 3, 32, 48 * 192 + 192 + 6 * (12 * 192**2 + 13 * 192) + 2 * 192 + 1930),
    ],
)
def test_parameter_counts_of_networks_without_a_norm_to_choose(
    architecture: str, channels: int, size: int, published: int
) -> None:
    assert parameter_count(_net(architecture, channels=channels, size=size)) == published


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 28), (1, 8)])
def test_the_weights_and_outputs_that_are_counted_for_memory_are_those_of_the_network(
    architecture: str, channels: int, size: int
) -> None:
    net = _net(architecture, channels=channels, size=size, width=64)
    layers = NetworkSpec.model_validate({"architecture": architecture, "width": 64}).layers(channels, size, 10)
    outputs = [x.numel() for x in _outputs(net, (nn.Conv2d, nn.Linear), _images(1, size, channels))]
    assert sum(layer.weights for layer in layers) == parameter_count(net)
    attention = 0 if architecture != "vit" else 6 * ((tokens := (-(-size // 4)) ** 2) ** 2 + tokens * 64)
    assert sum(layer.outputs for layer in layers) == sum(outputs) + attention


def test_vgg_is_the_one_of_eight_convolutions_with_a_pooling_behind_five_of_them() -> None:
    net = _net("vgg11", size=32, width=2, norm="none")
    sides = [x.shape[1:] for x in _outputs(net, nn.MaxPool2d, _images(1, 32))]
    assert sides == [(2, 16, 16), (4, 8, 8), (8, 4, 4), (16, 2, 2), (16, 1, 1)]


def _outputs(net: nn.Module, kind: type[nn.Module] | tuple[type[nn.Module], ...], x: Tensor) -> list[Tensor]:
    """What the layers of a kind, or of several, give for images, in their order."""
    outputs: list[Tensor] = []
    for layer in net.modules():
        if isinstance(layer, kind):
            layer.register_forward_hook(lambda _layer, _inputs, output: outputs.append(output))
    net(x)
    return outputs


def test_attention_is_that_of_the_library() -> None:
    net = _net("vit", size=8, width=128, depth=1)
    block, x = net.blocks[0], torch.randn(2, 4, 128, generator=torch.Generator().manual_seed(3))
    with torch.random.fork_rng():
        library = nn.MultiheadAttention(128, 2, batch_first=True)
    with torch.no_grad():
        library.in_proj_weight.copy_(block.query_key_value.weight)
        library.in_proj_bias.copy_(block.query_key_value.bias)
        library.out_proj.load_state_dict(block.join.state_dict())
    torch.testing.assert_close(block.join(block._attend(x)), library(x, x, x)[0])


def test_a_vit_fills_the_last_patches_up_and_knows_where_a_patch_stands() -> None:
    net, x = _net("vit", size=6, width=64, depth=1), _images(2, 6)
    filled = F.pad(x, (0, 2, 0, 2))
    assert torch.equal(net(x), _net("vit", size=8, width=64, depth=1)(filled))
    assert len({tuple(row) for row in net.positions.tolist()}) == 4
    assert not torch.allclose(net(filled[:, :, :6, :6]), net(filled.roll(4, 3)[:, :, :6, :6]))


@pytest.mark.parametrize("architecture", ["vgg11", "alexnet", "lenet", "mlp", "vit"])
def test_the_networks_of_the_cross_table_can_be_matched_through(architecture: str) -> None:
    net, x = _net(architecture, size=8, width=64), _images(3).requires_grad_()
    gradients = torch.autograd.grad(net(x).logsumexp(1).sum(), list(net.parameters()), create_graph=True)
    (second,) = torch.autograd.grad(sum(g.square().sum() for g in gradients), x)
    assert second.isfinite().all() and second.abs().sum() > 0


def test_the_width_of_a_resnet_scales_all_four_groups() -> None:
    net = _net("resnet10", width=4)
    assert net.classifier.in_features == 8 * 4
    assert isinstance(net, ResNet)
    assert [len(block.get_parameter("first.weight")) for block in net.groups] == [4, 8, 16, 32]


def test_the_convnet_computes_what_a_ten_line_reference_computes() -> None:
    net, x = _small(), _images(5)
    p = list(net.parameters())
    hidden = x
    for conv, bias, gain, shift in (p[0:4], p[4:8]):
        hidden = F.conv2d(hidden, conv, bias, padding=1)
        mean, var = hidden.mean((2, 3), keepdim=True), hidden.var((2, 3), keepdim=True, unbiased=False)
        hidden = (hidden - mean) / (var + 1e-5).sqrt() * gain.view(-1, 1, 1) + shift.view(-1, 1, 1)
        hidden = F.avg_pool2d(hidden.relu(), 2)
    torch.testing.assert_close(features(net, x), hidden.flatten(1))
    torch.testing.assert_close(net(x), hidden.flatten(1) @ p[8].T + p[9])


@pytest.mark.parametrize(
    ("chosen", "published"),
    [
        ({"norm": "none"}, 320_010 - 3 * 256),
        ({"norm": "batch"}, 320_010),
        ({"norm": "group"}, 320_010),
        ({"norm": "layer"}, 320_010 + 256 * (1024 - 1 + 256 - 1 + 64 - 1)),
        ({"pooling": "max"}, 320_010),
        ({"pooling": "none"}, 320_010 + 10 * 128 * (1024 - 16)),
        ({"activation": "sigmoid"}, 320_010),
    ],
)
def test_parameter_counts_of_the_convnets_variations(chosen: dict[str, str], published: int) -> None:
    assert parameter_count(_net(**chosen)) == published


@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("relu", torch.relu),
        ("leaky_relu", lambda x: torch.where(x > 0, x, 0.01 * x)),
        ("sigmoid", torch.sigmoid),
        ("swish", lambda x: x * torch.sigmoid(x)),
    ],
)
@pytest.mark.parametrize("pooling", ["average", "max", "none"])
def test_a_block_is_convolution_norm_activation_and_pooling(
    activation: str, function: Callable[[Tensor], Tensor], pooling: str
) -> None:
    net, x = _net(size=8, width=8, depth=1, norm="group", activation=activation, pooling=pooling), _images(3)
    weight, bias, *_ = net.parameters()
    hidden = F.conv2d(x, weight, bias, padding=1).reshape(3, 4, -1)
    hidden = (hidden - hidden.mean(2, keepdim=True)) / (hidden.var(2, keepdim=True, unbiased=False) + 1e-5).sqrt()
    hidden = function(hidden.reshape(3, 8, 8, 8))
    pooled = {"average": F.avg_pool2d, "max": F.max_pool2d, "none": lambda y, _: y}[pooling](hidden, 2)
    torch.testing.assert_close(features(net, x), pooled.flatten(1))


@pytest.mark.parametrize("norm", ["batch", "layer", "instance", "group", "none"])
@pytest.mark.parametrize("architecture", ["resnet18", "idc_resnet10", "vgg11"])
def test_resnets_and_vgg_take_any_norm(architecture: str, norm: str) -> None:
    net = _net(architecture, size=16, width=4, norm=norm)
    assert net(_images(2, 16)).isfinite().all()


def test_the_maps_are_those_after_each_relu_and_the_last_one_pooled() -> None:
    net, x = _small(), _images(5)
    assert isinstance(net, ConvNet)
    conv, norm, *_ = net.blocks
    first, second, pooled = net.maps(x)
    assert torch.equal(first, norm(conv(x)).relu())
    assert [one.shape for one in (first, second, pooled)] == [(5, 4, 8, 8), (5, 4, 4, 4), (5, 4, 2, 2)]
    assert torch.equal(F.avg_pool2d(second, 2), pooled)
    assert torch.equal(pooled.flatten(1), features(net, x))


def test_gray_28_pixel_images_are_padded_to_a_32_pixel_map() -> None:
    net = _net(channels=1, size=28, width=8)
    assert isinstance(net, ConvNet)
    assert net.blocks[0](torch.zeros(1, 1, 28, 28)).shape == (1, 8, 32, 32)
    assert features(net, torch.zeros(2, 1, 28, 28)).shape == (2, 8 * 4 * 4)


def test_only_gray_28_pixel_images_are_padded() -> None:
    assert _net(channels=1, size=8, width=4, depth=2).classifier.in_features == 4 * 2 * 2
    assert _net(channels=3, size=28, width=4).classifier.in_features == 4 * 3 * 3


@pytest.mark.parametrize("norm", ["instance", "none"])
def test_without_batch_norm_train_and_eval_mode_agree_and_nothing_is_tracked(norm: str) -> None:
    net, x = _small(norm=norm), _images(3)
    assert torch.equal(net.train()(x), net.eval()(x))
    assert not list(net.buffers())


@pytest.mark.parametrize("size", range(9, 65))
def test_the_published_strides_stand_for_images_of_nine_pixels_or_more(size: int) -> None:
    assert _strides(size) == [1, 2, 2, 2]


@pytest.mark.parametrize(("size", "strides"), [(8, [1, 2, 2, 1]), (4, [1, 2, 1, 1]), (2, [1, 1, 1, 1])])
def test_smaller_images_keep_a_map_of_two_by_two(size: int, strides: list[int]) -> None:
    net = _net("resnet10", size=size, width=4)
    assert _strides(size) == strides
    assert isinstance(net, ResNet)
    assert net.groups(net.stem(_images(1, size))).shape == (1, 32, 2, 2)
    first, second = features(net, _images(2, size))
    assert not torch.allclose(first, second, atol=1e-3), "instance norm erased the input"


@pytest.mark.parametrize(
    ("architecture", "size", "expected"),
    [("resnet10", 32, 32), ("resnet10", 16, 32), ("resnet10", 64, 128), ("idc_resnet10", 64, 32)],
)
def test_pooling_is_four_by_four_in_the_mtt_family_and_global_in_the_idc_family(
    architecture: str, size: int, expected: int
) -> None:
    net = _net(architecture, size=size, width=4)
    assert features(net, _images(2, size)).shape == (2, expected)
    assert net.classifier.in_features == expected


@pytest.mark.parametrize("norm", ["instance", "batch", "none"])
def test_the_initial_weights_are_those_the_library_would_draw(norm: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        library = ConvNet(channels=3, size=8, classes=10, width=4, depth=2, norm=norm)
    ours = _small(seed=7, norm=norm)
    for name, value in library.state_dict().items():
        assert torch.equal(value, ours.state_dict()[name]), name


def test_mtt_resnets_start_as_the_library_would_too() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        library = ResNet(channels=3, size=32, classes=10, width=4, depth=2, norm="batch", fan_out_init=False)
    assert torch.equal(flatten(library), flatten(_net("resnet18", width=4, norm="batch", seed=7)))


def test_idc_convolutions_start_normal_with_variance_by_fan_out() -> None:
    net = _net("idc_resnet18", width=16)
    for conv in (m for m in net.modules() if isinstance(m, nn.Conv2d) and m.weight.numel() > 10_000):
        kernel = conv.kernel_size[0] * conv.kernel_size[1]
        scaled = conv.weight / math.sqrt(2 / (kernel * conv.out_channels))
        assert scaled.std().item() == pytest.approx(1, abs=0.03)
        assert scaled.abs().max() > 3, "a uniform draw would end at 1.73"
    bound = 1 / math.sqrt(net.classifier.in_features)
    assert net.classifier.weight.abs().max() <= bound


@pytest.mark.parametrize("architecture", ["convnet", "resnet10", "idc_resnet10"])
def test_building_leaves_the_global_random_state_alone(architecture: str) -> None:
    before = torch.get_rng_state()
    _net(architecture, width=4, norm="batch")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("architecture", ["convnet", "resnet10", "idc_resnet10"])
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(architecture: str) -> None:
    first, again, other = (flatten(_net(architecture, width=4, seed=seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_one_generator_gives_every_net_other_weights() -> None:
    net, generator = _small(), torch.Generator().manual_seed(0)
    initialise(net, generator)
    first = flatten(net)
    initialise(net, generator)
    assert not torch.equal(first, flatten(net))


def test_initialising_again_also_forgets_running_statistics() -> None:
    net = _small(norm="batch")
    net(_images(4))
    initialise(net, torch.Generator().manual_seed(0))
    fresh = _small(norm="batch").state_dict()
    assert all(torch.equal(value, fresh[name]) for name, value in net.state_dict().items())


def test_flatten_is_a_copy_that_training_does_not_move() -> None:
    net = _small()
    snapshot = flatten(net)
    kept = snapshot.clone()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1)
    assert torch.equal(snapshot, kept)
    assert (snapshot.dtype, snapshot.requires_grad) == (torch.float32, False)
    assert snapshot.shape == (parameter_count(net),)


def test_flatten_copies_even_a_module_of_a_single_parameter() -> None:
    net = nn.Linear(3, 2, bias=False, device="meta").to_empty(device="cpu")
    assert flatten(net).data_ptr() != net.weight.data_ptr()


def test_unflatten_gives_views_by_name_and_load_flat_puts_them_back() -> None:
    source, target = _small(seed=1), _small(seed=2)
    flat = flatten(source)
    views = unflatten(flat, target)
    assert list(views) == [name for name, _ in target.named_parameters()]
    assert all(view.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr() for view in views.values())
    load_flat(target, flat)
    assert torch.equal(flatten(target), flat)
    assert all(
        p.requires_grad and p.data_ptr() != v.data_ptr()
        for p, v in zip(target.parameters(), views.values(), strict=True)
    )


def test_gradients_reach_the_flat_vector_to_second_order() -> None:
    net = _net(channels=1, size=4, classes=2, width=2, depth=1, norm="none").double()
    x, y = _images(3, 4, channels=1).double(), torch.tensor([0, 1, 1])

    def loss(flat: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(net, unflatten(flat, net), (x,)), y)

    flat = flatten(net).requires_grad_()
    plain = torch.autograd.grad(F.cross_entropy(net(x), y), list(net.parameters()))
    expected = torch.cat([g.reshape(-1) for g in plain])
    (gradient,) = torch.autograd.grad(loss(flat), flat, create_graph=True)
    torch.testing.assert_close(gradient, expected)
    with torch.random.fork_rng():  # it draws the directions to check from the global generator
        assert torch.autograd.gradgradcheck(loss, (flat,))


def test_a_vector_of_another_length_is_refused_and_changes_nothing() -> None:
    net = _small()
    before = flatten(net)
    with pytest.raises(ValueError, match=f"give {len(before)} numbers"):
        load_flat(net, before[:-1])
    assert torch.equal(flatten(net), before)


def test_an_unknown_architecture_is_answered_with_the_list() -> None:
    with pytest.raises(ValueError, match="'vgg'.*convnet, resnet10, resnet18, idc_resnet10, idc_resnet18"):
        _net("vgg")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"norm": "filter"}, "norm is 'filter'.*instance, batch, layer, group, none"),
        ({"size": 8, "depth": 4}, "depth is 4: give 1 to 3 for images of 8 pixels"),
        ({"depth": 0}, "depth is 0"),
        ({"width": 0}, "width is 0"),
        ({"architecture": "resnet10", "depth": 10}, "depth is 10: leave it out"),
    ],
)
def test_what_cannot_be_built_is_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _net(**wrong)  # type: ignore[arg-type]


# Architectures from outside

LINEAR = '''
"""A linear classifier, and one with a parameter of its own."""

import torch
from torch import nn

from workers.training.networks import Network


class Linear(Network):
    def __init__(self, *, channels, size, classes, norm, width=5):
        super().__init__()
        self.hidden = nn.Linear(channels * size * size, width)
        self.classifier = nn.Linear(width, classes)

    def embed(self, x):
        return self.hidden(x.flatten(1))


class Scaled(Linear):
    def __init__(self, **sizes):
        super().__init__(**sizes)
        self.scale = nn.Parameter(torch.ones(1))
'''


@pytest.fixture
def linear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module `linear_networks` on the path."""
    (tmp_path / "linear_networks.py").write_text(LINEAR)
    monkeypatch.syspath_prepend(tmp_path)


def from_outside(name: str, width: int | None = None) -> Network:
    generator = torch.Generator().manual_seed(0)
    return build(name, channels=1, size=4, classes=3, width=width, depth=None, norm="none", generator=generator)


@pytest.mark.usefixtures("linear")
def test_an_architecture_from_outside_is_named_by_its_import_path() -> None:
    network = from_outside("linear_networks:Linear", width=7)
    assert network(torch.zeros(2, 1, 4, 4)).shape == (2, 3)
    assert parameter_count(network) == 16 * 7 + 7 + 7 * 3 + 3
    again = from_outside("linear_networks:Linear", width=7)
    assert torch.equal(flatten(network), flatten(again))
    assert parameter_count(from_outside("linear_networks:Linear")) == 16 * 5 + 5 + 5 * 3 + 3


@pytest.mark.usefixtures("linear")
def test_a_layer_without_a_rule_for_its_first_values_is_refused() -> None:
    with pytest.raises(ValueError, match="no rule for the parameters of Scaled"):
        from_outside("linear_networks:Scaled")


@pytest.mark.usefixtures("linear")
@pytest.mark.parametrize("name", ["nowhere:Linear", "linear_networks:Gone", "linear_networks:nn", "pathlib:Path"])
def test_an_import_path_of_no_network_is_refused(name: str) -> None:
    with pytest.raises(BadInput, match="network.architecture"):
        from_outside(name)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_has_the_published_sizes_of_the_registry(name: str) -> None:
    info, generator = ARCHITECTURES[name], torch.Generator().manual_seed(0)
    shape = {"channels": 3, "size": 32, "classes": 10, "norm": "instance", "generator": generator}
    named = build(name, width=None, depth=None, **shape)  # type: ignore[arg-type]
    depth = info.blocks if info.takes_depth else None
    assert parameter_count(named) == parameter_count(
        build(name, width=info.width, depth=depth, **shape)  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("name", ["convnet", "lenet", "vit"])
def test_what_becomes_of_an_image_is_the_same_whatever_the_number_at_a_time(name: str) -> None:
    network = build(name, channels=3, size=32, classes=10, width=None, depth=None, norm="instance",
                    generator=torch.Generator().manual_seed(0)).eval()  # fmt: skip
    images = torch.randn(80, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = network(images)
        for number in (8, images_at_a_time(network, images)):
            assert torch.allclose(torch.cat([network(part) for part in images.split(number)]), whole, atol=1e-5)


def test_fewer_large_images_go_through_a_small_network_at_a_time_and_many_through_a_large_one() -> None:
    shape = {"channels": 3, "size": 32, "classes": 10, "norm": "instance", "generator": torch.Generator()}
    small = build("convnet", width=128, depth=3, **shape)  # type: ignore[arg-type]
    large = build("vgg11", width=None, depth=None, **shape)  # type: ignore[arg-type]
    sides = (8, 28, 32, 64, 224)
    assert [images_at_a_time(small, torch.empty(1, 3, side, side)) for side in sides] == [512, 41, 32, 8, 8]
    assert {images_at_a_time(large, torch.empty(1, 3, side, side)) for side in sides} == {512}
    assert images_at_a_time(small, torch.empty(1, 3, 64, 64, device="meta")) == 512, "not on a CPU"
