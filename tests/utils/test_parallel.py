"""Jobs side by side: in order, with one thread each, and with the number of threads that there was."""

import threading

import pytest
import torch

from geosparse.utils.parallel import mapped


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    assert torch.get_num_threads() == request.param
    torch.set_num_threads(before)


def test_results_come_in_the_order_of_the_jobs(threads):
    drawn = []

    def jobs():
        for job in range(40):
            drawn.append(job)
            yield job

    taken = []
    for result in mapped(lambda job: (job, torch.is_grad_enabled()), jobs()):
        taken.append(result)
        assert len(drawn) - len(taken) < 2 * threads
    assert taken == [(job, False) for job in range(40)]
    assert torch.is_grad_enabled()


def test_each_job_computes_with_one_thread(threads):
    found = list(mapped(lambda job: (torch.get_num_threads(), threading.current_thread().name), range(8)))
    assert {count for count, _ in found} == {1}
    here = {name for _, name in found} == {threading.current_thread().name}
    assert here == (threads == 1)


def test_without_threads_everything_happens_here(threads):
    names = set(mapped(lambda job: threading.current_thread().name, range(4), parallel=False))
    assert names == {threading.current_thread().name}


def test_what_a_job_raises_is_raised_here_and_ends_the_others(threads):
    done = []

    def fail(job):
        if job == 2:
            raise ValueError("two")
        done.append(job)

    with pytest.raises(ValueError, match="two"):
        list(mapped(fail, range(1000)))
    assert len(done) < 100
