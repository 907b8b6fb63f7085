"""Super-resolution: PSNR by hand, patches and their splits, the network, what users are told."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ddq_search.cli.assembly import assemble, assemble_shape
from ddq_search.cli.settings import read_config
from ddq_search.config import load_config
from ddq_search.errors import ConfigError
from ddq_search.policy import uniform
from ddq_search.record import RunDirectory
from ddq_search.stages import Stages
from ddq_search.task import BEST_PSNR_DB, SuperResolution, measure
from ddq_search.training import Silent
from search_spaces.models import UPSCALERS, build_model, build_upscaler, list_models
from search_spaces.patch_source import INPUT_GRID, PatchSource, oriented
from search_spaces.patches import PATCH, PatchSplits, absolute, is_patches, load_patches, shrink, split_columns
from search_spaces.super_resolution import TRAINING


@pytest.fixture(scope="module")
def sample() -> PatchSplits:
    return load_patches("sample-images", 0)


# -- task -----------------------------------------------------------------------------------------------------


def test_psnr_by_hand() -> None:
    """Errors of 0.1 everywhere: 20 dB. One of four pixels off by 0.2: 10 log10(4 / 0.04) = 20 dB. None: the best."""
    target = torch.full((3, 1, 2, 2), 0.5)
    output = target.clone()
    output[0] += 0.1
    output[1, 0, 0, 0] -= 0.2
    found = SuperResolution().score(output, target)
    assert found.tolist() == pytest.approx([20.0, 20.0, BEST_PSNR_DB], abs=1e-5)
    both = (2 * math.log(1 + 0.01 / 1e-4) + math.log(1)) / 3
    assert float(SuperResolution().loss(output, target)) == pytest.approx(both, rel=1e-5)
    assert float(SuperResolution().distance(target, output)) == pytest.approx(both, rel=1e-5)


def test_the_loss_falls_with_psnr_below_40_db_and_its_gradient_fades_above() -> None:
    """A tenth of the squared error is 10 dB or ln 10; at 60 dB gradients are a fifth of those at 40 dB, not ten times.

    Of an image of P pixels that are all off by d, it is ``2 d / P / (d² + 10⁻⁴)`` per pixel.
    """
    task, target = SuperResolution(), torch.full((1, 1, 4, 4), 0.5)
    losses = [float(task.loss(target + error, target)) for error in (0.4, 0.4 / math.sqrt(10))]
    assert losses[0] - losses[1] == pytest.approx(math.log(10), abs=0.01)
    for error in (0.1, 0.01, 0.001):
        output = (target + error).requires_grad_()
        (gradient,) = torch.autograd.grad(task.loss(output, target), output)
        expected = 2 * error / 16 / (error**2 + 1e-4)
        torch.testing.assert_close(gradient, torch.full_like(target, expected), rtol=1e-4, atol=0)
    same = target.clone().requires_grad_()
    assert torch.autograd.grad(task.loss(same, target), same)[0].abs().max() == 0


def test_the_distance_is_to_the_reference_as_it_is_shown() -> None:
    """A reference of 1.2 is white, and so is an output that cannot be more."""
    white = torch.ones(1, 1, 2, 2)
    assert float(SuperResolution().distance(white, 1.2 * white)) == 0
    assert float(SuperResolution().distance(0.9 * white, 1.2 * white)) == pytest.approx(math.log(101), rel=1e-5)


def test_outputs_are_cut_to_the_range_of_pixels() -> None:
    task, target = SuperResolution(), torch.tensor([[[[1.0, 0.0]]]])
    assert task.score(torch.tensor([[[[7.0, -3.0]]]]), target).item() == BEST_PSNR_DB
    assert float(task.loss(torch.tensor([[[[2.0, 0.0]]]]), target)) == pytest.approx(math.log(5001)), "training sees it"


def test_the_border_does_not_count() -> None:
    task, target = SuperResolution(border=2), torch.zeros(1, 3, 5, 6)
    output = torch.ones_like(target)
    output[:, :, 2:3, 2:4] = 0.1
    assert task.score(output, target).item() == pytest.approx(20.0, abs=1e-5)
    assert float(task.loss(output, target)) == pytest.approx(math.log(101), rel=1e-5)


def test_scores_are_averaged_over_images() -> None:
    target = torch.zeros(3, 1, 2, 2)
    outputs = [(target[:2] + 0.1, target[:2]), (target[2:] + 0.01, target[2:])]
    assert measure(SuperResolution(), outputs).score == pytest.approx((20 + 20 + 40) / 3, abs=1e-4)


# -- patches --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("columns", [3, 4, 13, 40])
def test_every_column_belongs_to_one_split(columns: int, seed: int) -> None:
    runs = split_columns(columns, 0.2, np.random.default_rng(seed))
    assert [column for _, first, last in runs for column in range(first, last)] == list(range(columns))
    assert {split for split, _, _ in runs} == {"train", "validation", "test"}


def test_no_pixel_is_in_two_splits(tmp_path: Path) -> None:
    """Every pixel of the photographs is its own code (as far as bytes go): rows in one channel, columns in another."""
    for name, width in (("a.png", 144), ("b.png", 240)):
        rows, columns = np.mgrid[0:96, 0:width].astype(np.uint8)
        number = np.full_like(rows, len(name) + width // 10)
        Image.fromarray(np.stack([rows, columns, number], -1)).save(tmp_path / name)
    for seed in range(4):
        data = load_patches(f"patches:{tmp_path}", seed)
        seen = []
        for split in (data.train, data.validation, data.test):
            pixels = split.high.permute(0, 2, 3, 1).reshape(-1, 3).tolist()
            seen.append({tuple(pixel) for pixel in pixels})
        assert all(seen)
        assert len(set.union(*seen)) == sum(map(len, seen)) == 96 * (144 + 240)


def test_low_resolution_is_the_mean_of_blocks_rounded_half_up(sample: PatchSplits) -> None:
    means = F.avg_pool2d(sample.test.high.double(), 2)
    assert torch.equal(sample.test.low.double(), (means + 0.5).floor())
    assert shrink(np.array([[0, 1], [0, 1]], np.uint8), 2).item() == 1, "the mean is 1/2"
    assert shrink(np.full((2, 3, 3), 255, np.uint8), 3).ravel().tolist() == [255, 255]


def test_the_two_sample_images(sample: PatchSplits) -> None:
    """640 x 427 pixels: 13 columns and 8 rows of patches; 3 columns are for testing, 2 for validation."""
    assert (len(sample.validation), len(sample.test)) == (2 * 8 * 2, 2 * 8 * 3)
    assert sample.train.high.shape[1:] == (3, PATCH, PATCH)
    assert sample.train.low.shape[1:] == (3, PATCH // 2, PATCH // 2)
    assert load_patches("sample-images:3", 0).train.low.shape[1:] == (3, PATCH // 3, PATCH // 3)


def test_splits_repeat_and_the_seed_moves_validation_only(sample: PatchSplits) -> None:
    again, other = load_patches("sample-images", 0), load_patches("sample-images", 1)
    assert torch.equal(again.train.high, sample.train.high)
    assert again.split_sha256 == sample.split_sha256 != other.split_sha256
    assert torch.equal(other.test.high, sample.test.high)
    assert not torch.equal(other.validation.high, sample.validation.high)
    assert other.fingerprint == sample.fingerprint
    names = [PatchSource("x", data).fingerprint for data in (again, sample, other)]
    assert names[0] == names[1] != names[2]


def test_limit_keeps_training_patches(sample: PatchSplits) -> None:
    few = load_patches("sample-images", 0, limit=20)
    assert (len(few.train), len(few.validation)) == (20, len(sample.validation))


def test_batches_depend_on_seed_epoch_and_patch_only(sample: PatchSplits) -> None:
    source = PatchSource("x", sample)
    first, again, other = (list(source.train(seed=3, epoch=e, batch_size=100)) for e in (1, 1, 2))
    assert len(first) == source.train_batches(100) == len(sample.train) // 100
    assert all(torch.equal(a, b) for x, y in zip(first, again, strict=True) for a, b in zip(x, y, strict=True))
    assert not torch.equal(first[0][0], other[0][0])
    for low, high in first[:1]:
        codes = torch.round(low / INPUT_GRID.scale)
        torch.testing.assert_close(codes * INPUT_GRID.scale, low, msg="inputs are raw pixels on the input grid")
        means = (F.avg_pool2d(torch.round(high * 255).double(), 2) + 0.5).floor()
        assert torch.equal(codes.double(), means), "a patch and its original are turned alike"
    plain = torch.cat([y for _, y in source.plain("validation", 7)])
    assert torch.equal(torch.round(plain * 255).to(torch.uint8), sample.validation.high)


def test_eight_orientations() -> None:
    patch = torch.arange(4).reshape(1, 1, 2, 2)
    turned = oriented(patch.repeat(8, 1, 1, 1), torch.arange(8))
    assert turned.flatten(1).tolist() == [
        [0, 1, 2, 3], [1, 0, 3, 2], [2, 3, 0, 1], [3, 2, 1, 0], [0, 2, 1, 3], [1, 3, 0, 2], [2, 0, 3, 1], [3, 1, 2, 0],
    ]  # fmt: skip


def test_photographs_of_any_size_from_folders_and_archives(tmp_path: Path) -> None:
    import tarfile

    folder = tmp_path / "photos"
    (folder / "deep" / "er").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, size in (("deep/er/b.png", (60, 150)), ("a.png", (48, 144)), ("c.png", (100, 200))):
        Image.fromarray(rng.integers(0, 255, (*size, 3)).astype(np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("not an image")
    (folder / ".hidden.png").write_text("not read")
    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        for name in ("c.png", "deep", "a.png"):
            archive.add(folder / name, name)
    first, second = load_patches(f"patches:{folder}", 0), load_patches(f"patches:{tmp_path / 'photos.tar'}", 0)
    assert first.fingerprint == second.fingerprint
    assert torch.equal(first.train.high, second.train.high)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("sample-images:4", "the factor being 2 or 3"),
        ("sample-images:photos", "is not understood"),
        ("patches", "is not understood"),
        ("patches:nowhere", "no folder and no"),
        ("patches:{tmp}/empty", "holds no images"),
        ("patches:{tmp}/small", "100x100 pixels; at least 144x48"),
        ("patches:3:{tmp}/damaged", "broken.png is not an image"),
    ],
)
def test_what_cannot_be_cut_is_explained(spec: str, said: str, tmp_path: Path) -> None:
    for name in ("empty", "small", "damaged"):
        (tmp_path / name).mkdir()
    Image.fromarray(np.zeros((100, 100, 3), np.uint8)).save(tmp_path / "small" / "square.png")
    (tmp_path / "damaged" / "broken.png").write_text("no picture")
    with pytest.raises(ConfigError, match=said):
        load_patches(spec.format(tmp=tmp_path), 0)


# -- network --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_untrained_networks_interpolate_on_the_plane_of_value_and_slopes(channels: int, factor: int) -> None:
    """Pixel + offset · slope along rows and columns, the slope being half the difference of the neighbours."""
    x = torch.rand(2, channels, 6, 7)
    model = build_upscaler("espcn", channels, factor, (6, 7)).eval()
    with torch.no_grad():
        found = model(x)
    offsets = (torch.arange(factor) + 0.5) / factor - 0.5
    down = (x[:, :, 2:] - x[:, :, :-2])[..., 1:-1] / 2
    right = (x[..., 2:] - x[..., :-2])[:, :, 1:-1] / 2
    for (i, above), (j, left) in itertools.product(enumerate(offsets), repeat=2):
        part = found[:, :, factor + i : -factor : factor, factor + j : -factor : factor]
        torch.testing.assert_close(part, x[:, :, 1:-1, 1:-1] + above * down + left * right)


def test_blocks_of_an_untrained_network_keep_their_means() -> None:
    x = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        found = F.avg_pool2d(build_upscaler("espcn", 3, 2, (8, 8)).eval()(x), 2)
    torch.testing.assert_close(found, x)


@pytest.mark.parametrize("factor", [2, 3])
def test_untrained_networks_compute_the_same_at_any_weight_precision(factor: int) -> None:
    """What the random filters find is not used yet; rows of one magnitude are on every grid."""
    config = load_config(None, {"model.name": "espcn", "data.name": f"sample-images:{factor}", "data.limit": 16})
    problem = assemble(config)
    net = problem.supernet()
    net.calibrate([torch.from_numpy(np.random.default_rng(0).random((8, *problem.source.input_shape), np.float32))])
    x = torch.rand(2, *problem.source.input_shape)
    outputs = []
    for bits in (2, 4, 8):
        net.set_policy(uniform(problem.space, bits, 8))
        with torch.no_grad():
            outputs.append(net(x))
    torch.testing.assert_close(outputs[0], outputs[2], atol=1.01 / 255, rtol=0)
    torch.testing.assert_close(outputs[1], outputs[2], atol=1.01 / 255, rtol=0)
    assert (outputs[0] - outputs[2]).abs().mean() < 0.1 / 255


def test_output_codes_are_pixels_and_stay_so() -> None:
    """Through calibration, training and lowering, for families of every kind."""
    for families in (
        {},
        {"search.activation_quantizers": ["pact"]},
        {"search.method": "dqss"},
        {"search.method": "dq"},
    ):
        config = load_config(None, {"model.name": "espcn", "data.name": "sample-images", "data.limit": 16} | families)
        problem = assemble(config)
        net = problem.supernet()
        batches = [x for x, _ in problem.source.train(seed=0, epoch=0, batch_size=16)]
        net.calibrate(batches)
        net.set_policy(uniform(problem.space, 8, 8))
        optimizer = torch.optim.Adam(net.quantizers.parameters(), 0.1)
        (net(batches[0]) - 0.3).square().sum().backward()
        optimizer.step()
        codes = net(batches[0]).detach() * 255
        torch.testing.assert_close(codes, codes.round(), atol=2e-4, rtol=0)
        assert codes.min() >= 0
        assert codes.max() <= 255.001
        network = net.discretize(uniform(problem.space, 8, 8))
        grid = network.grids["output"]
        assert (grid.scale, grid.zero_point, grid.bits) == (pytest.approx(1 / 255), 0, 8), families


def test_size_of_espcn() -> None:
    """5·5·3·32 + 3·3·32·16 + 3·3·16·12 weights, each used once per low-resolution pixel."""
    problem = assemble_shape(load_config(None, {"model.name": "espcn"}), "3x24x24", 10)
    weights = 5 * 5 * 3 * 32 + 3 * 3 * 32 * 16 + 3 * 3 * 16 * 12
    nodes = [data["operation"] for _, data in problem.graph.nodes(data=True)]
    assert sum(op.weights for op in nodes) == weights == 8736
    assert sum(op.macs for op in nodes) == weights * 24 * 24
    assert nodes[-1].output_shape == (3, 48, 48)


def test_models_and_data_must_ask_for_the_same() -> None:
    assert set(UPSCALERS) <= set(list_models())
    with pytest.raises(ConfigError, match="'espcn' enlarges images and gives no class scores"):
        build_model("espcn", 3, 10, 32)
    for spec in ("resnet8", "torchvision:resnet18"):
        with pytest.raises(ConfigError, match="gives class scores, but this data asks for enlarged images"):
            build_upscaler(spec, 3, 2, 24)
    with pytest.raises(ConfigError, match="did you mean 'espcn'"):
        build_upscaler("espnc", 3, 2, 24)
    with pytest.raises(ConfigError, match=r"returns shape \(1, 3, 24, 24\); expected images \[N, 3, 48, 48\]"):
        build_upscaler("torch.nn:Identity", 3, 2, 24)
    assert build_upscaler("torch.nn:PixelShuffle", 1, 1, 24)(torch.zeros(1, 1, 4, 4)).shape == (1, 1, 4, 4)


# -- configuration ----------------------------------------------------------------------------------------------


def test_the_data_choose_task_and_settings_unless_the_user_does(tmp_path: Path) -> None:
    flags = {"data.name": "sample-images", "data.limit": 32, "model.name": "espcn"}
    config = read_config(None, flags, None, ["training.float_rate=0.25"])
    assert config.training.float_rate == 0.25
    assert {key: getattr(config.training, key) for key in TRAINING if key != "float_rate"} == {
        key: value for key, value in TRAINING.items() if key != "float_rate"
    }
    problem = assemble(config)
    assert (problem.task.metric, problem.task.unit, problem.task.direction) == ("PSNR", "dB", "max")
    assert isinstance(problem.task, SuperResolution)
    assert problem.task.border == 8
    assert problem.source.input_grid == INPUT_GRID
    (tmp_path / "config.toml").write_text(config.to_toml())
    assert read_config(tmp_path / "config.toml", {}, None, None) == config, "a stored run keeps its settings"
    digits = read_config(None, {"data.name": "digits"}, None, None)
    assert digits.training == load_config(None, {}).training


def test_adam_trains_the_weights(tmp_path: Path) -> None:
    """Its first step is the rate, whatever the gradient."""
    problem = assemble(
        read_config(None, {"data.name": "sample-images", "data.limit": 16, "model.name": "espcn"}, [], [])
    )
    stages = Stages(problem, RunDirectory(tmp_path), Silent())
    net = problem.supernet()
    before = net.model.conv3.weight.detach().clone()
    optimizer = stages.weight_optimizer(net)
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    x, y = next(problem.source.train(seed=0, epoch=0, batch_size=16))
    stages.loss_of(net, None)(x, y).backward()
    optimizer.step()
    moved = (net.model.conv3.weight.detach() - before).abs()
    assert moved.median().item() == pytest.approx(0.01, rel=1e-3)
    assert moved.max().item() == pytest.approx(0.01, rel=1e-3)


def test_relative_folders_are_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("patches:3:photos") == f"patches:3:{tmp_path / 'photos'}"
    assert absolute("patches:photos/") == f"patches:2:{tmp_path / 'photos'}"
    assert absolute("sample-images:3") == "sample-images:3"
    assert is_patches(absolute("patches:photos"))
