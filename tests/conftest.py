"""What all tests share: one thread a process, the folders of real data, cards, and no global randomness."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# torch reads these once, when it is imported: hence here, before any test module is.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

TESTS = Path(__file__).resolve().parent
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Without pytest-timeout, which `make gpu` does not need, its line in pyproject.toml is no error."""
    if not pluginmanager.hasplugin("timeout"):
        parser.addini("timeout", "seconds of a test; only pytest-timeout heeds it")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that processes that share the files end at about the same time.

    Tests marked `gpu` say why they are left out where there is no card.
    """
    for item in _without_their_card(items):
        item.add_marker(pytest.mark.skip(reason="needs a CUDA device: torch.cuda.is_available() is False"))
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def _without_their_card(items: list[pytest.Item]) -> list[pytest.Item]:
    wanting = [item for item in items if item.get_closest_marker("gpu")]
    if not wanting:
        return []
    import torch  # takes a second, which only tests of a card should pay

    return [] if torch.cuda.is_available() else wanting


@pytest.fixture(scope="session")
def real_cifar10() -> Path:
    """The folder with CIFAR-10's train.parquet and test.parquet, too large to ship; only `make long` asks for it."""
    folder = Path(os.environ.get("PDD_CIFAR10", ""))
    if not (folder / "train.parquet").is_file():
        pytest.skip("PDD_CIFAR10 names no folder with CIFAR-10's train.parquet and test.parquet")
    return folder


@pytest.fixture(scope="session")
def fashion_mnist() -> Path:
    """The folder with the four IDX files of Debian's package dataset-fashion-mnist."""
    if not FASHION_MNIST.is_dir():
        pytest.skip(f"no folder {FASHION_MNIST}; apt-get install dataset-fashion-mnist makes it")
    return FASHION_MNIST


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests, and the programs that they start, leave the user's cache folder alone."""
    before = os.environ.get("PDD_CACHE")
    os.environ["PDD_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["PDD_CACHE"]
    else:
        os.environ["PDD_CACHE"] = before


@pytest.fixture(autouse=True)
def global_random_state_stays_untouched(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test of `workers` that draws from, or seeds, torch's or numpy's global generator."""
    if not request.path.is_relative_to(TESTS / "workers"):
        yield
        return
    before = global_random_states()
    yield
    after = global_random_states()
    moved = [library for library in before if before[library] != after[library]]
    if moved:
        pytest.fail(
            f"the global random state of {' and '.join(moved)} moved during this test: "
            "pass an explicit generator (torch.Generator, numpy.random.Generator) to whatever draws; "
            "torch.random.fork_rng() around library code that takes none, such as gradgradcheck",
            pytrace=False,
        )


def global_random_states() -> dict[str, bytes]:
    """The global generators' states, of those libraries that are imported."""
    states = {}
    if torch := sys.modules.get("torch"):
        states["torch"] = torch.get_rng_state().numpy().tobytes()
    if numpy := sys.modules.get("numpy"):
        name, keys, position, has_gauss, gauss = numpy.random.get_state()
        states["numpy"] = keys.tobytes() + repr((name, position, has_gauss, gauss)).encode()
    return states
