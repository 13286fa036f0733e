"""The process settles on threads, a device and an allocator."""

import platform
import sys
from collections.abc import Iterator

import pytest
import torch

from workers.runtime.process import device_of_choice, keep_freed_pages, prepare_process


@pytest.fixture(autouse=True)
def _threads_put_back() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_device_is_cuda_only_where_there_is_one() -> None:
    assert device_of_choice().type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_threads_are_set() -> None:
    prepare_process(threads=2)
    assert torch.get_num_threads() == 2
    prepare_process()
    assert torch.get_num_threads() == 1


def test_less_than_one_thread_is_refused() -> None:
    with pytest.raises(ValueError, match="threads is 0"):
        prepare_process(threads=0)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is glibc's")
def test_glibc_agrees_to_keep_freed_pages() -> None:
    assert keep_freed_pages()


def test_elsewhere_than_on_linux_the_allocator_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr("ctypes.CDLL", lambda _: pytest.fail("the C library was opened"))
    assert not keep_freed_pages()
