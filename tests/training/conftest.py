"""Processes that tests kill."""

import multiprocessing

import pytest


@pytest.fixture(scope="session")
def start():
    """start(function, *arguments) runs a function of save_loop in a process of its own, which has jax imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["save_loop"])
    started = []

    def start(function, *arguments) -> multiprocessing.Process:
        process = context.Process(target=function, args=arguments)
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()
