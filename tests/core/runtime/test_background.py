"""Work in threads."""

from __future__ import annotations

import threading

import pytest

from maxpo.runtime.background import Background


def test_the_result_of_the_work_comes_out() -> None:
    work = Background(lambda: 3)
    assert work.result() == 3 and work.result(0) == 3 and work.done


def test_the_error_of_the_work_comes_out() -> None:
    def fail() -> None:
        raise KeyError("mine")

    work = Background(fail)
    work.wait()
    with pytest.raises(KeyError, match="mine"):
        work.result()


def test_a_deadline_leaves_the_work_behind() -> None:
    release = threading.Event()
    work = Background(release.wait)
    work.wait(0.01)
    with pytest.raises(TimeoutError, match=r"no answer within 0\.01 s"):
        work.result(0.01)
    assert not work.done
    release.set()
    assert work.result(10) is True
