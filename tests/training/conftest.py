"""Processes that tests kill."""

import multiprocessing

import pytest
import save_loop


@pytest.fixture(scope="session")
def start():
    """start(function, *arguments) runs a function of save_loop in a process of its own, which has jax imported.

    `log` is a file for its standard error.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["save_loop"])
    started = []

    def start(function, *arguments, log=None) -> multiprocessing.Process:
        process = context.Process(target=save_loop.call, args=(log, function, arguments))
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()
