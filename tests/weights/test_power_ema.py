"""Averages whose length is chosen after training, against closed forms and against averages kept all along."""

import numpy as np
import pytest
from scipy import integrate

from brainldm.cli import main
from brainldm.runtime.errors import UserError
from brainldm.weights.power_ema import (
    LENGTHS,
    Profile,
    average_of_length,
    coefficients,
    exponent,
    snapshot_steps,
    write_snapshot,
)

STEPS, EVERY = 3000, 250


def _quiet(text):
    pass


def _weight(gamma, t):
    return lambda tau: (gamma + 1) * tau**gamma / t ** (gamma + 1)


@pytest.mark.parametrize(("length", "gamma"), [(0.05, 16.97), (0.10, 6.94)])
def test_the_papers_lengths_have_the_papers_exponents(length, gamma):
    assert exponent(length) == pytest.approx(gamma, abs=0.005)


@pytest.mark.parametrize("length", [0.01, 0.07, 0.25])
def test_a_length_is_the_standard_deviation_of_the_weights(length):
    weight = _weight(exponent(length), 1.0)
    total, mean, square = (integrate.quad(lambda tau, k=k: tau**k * weight(tau), 0, 1)[0] for k in range(3))
    assert total == pytest.approx(1) and np.sqrt(square - mean**2) == pytest.approx(length, rel=1e-5)


def test_products_of_weights_are_their_integrals():
    for one, other in [((17.0, 30.0), (7.0, 100.0)), ((7.0, 100.0), (7.0, 60.0)), ((3.0, 50.0), (3.0, 50.0))]:
        weights = _weight(*one), _weight(*other)
        expected = integrate.quad(lambda tau, w=weights: w[0](tau) * w[1](tau), 0, min(one[1], other[1]))[0]
        assert Profile(*one).product(Profile(*other)) == pytest.approx(expected, rel=1e-8)
    assert np.isfinite(Profile(300.0, 1.0).product(Profile(300.0, 1e7)))


def test_a_kept_average_is_found_again_by_itself():
    kept = [Profile(exponent(length), t) for t in (1000.0, 2000.0) for length in LENGTHS.values()]
    factors, off = coefficients(kept, kept[-1])
    np.testing.assert_allclose(factors, [0, 0, 0, 1], atol=1e-6)
    assert off < 1e-6


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """A random walk of parameters [STEPS, 40] and the snapshots of its averages."""
    folder = tmp_path_factory.mktemp("training") / "averages"
    walk = np.cumsum(np.random.default_rng(0).standard_normal((STEPS, 40)), axis=0)
    kept = {name: _kept(walk, length) for name, length in LENGTHS.items()}
    for step in range(EVERY, STEPS + 1, EVERY):
        trees = {name: {"a": {"b": all_steps[step - 1].astype(np.float32)}} for name, all_steps in kept.items()}
        write_snapshot(folder, step, trees)
    return walk, folder


def _kept(walk, length):
    """The average of `length` after every step, by eq. 2 of the paper."""
    gamma, average, found = exponent(length), np.zeros(walk.shape[1]), []
    for t, params in enumerate(walk, 1):
        rest = (1 - 1 / t) ** (gamma + 1)
        average = rest * average + (1 - rest) * params
        found.append(average)
    return np.stack(found)


@pytest.mark.parametrize("length", [0.04, 0.07, 0.15, 0.2])
@pytest.mark.parametrize("last", [STEPS, 2000])
def test_any_length_is_as_if_it_had_been_kept(training, length, last):
    walk, folder = training
    said = []
    found = average_of_length(folder, last, length, said.append)["a"]["b"]
    expected = _kept(walk[:last], length)[-1]
    apart = np.abs(found - _kept(walk[:last], 0.10)[-1]).mean()
    assert np.abs(found - expected).mean() < 0.08 * apart
    assert f"average of length {length:g} from {2 * last // EVERY} snapshots" in said[-1]


def test_the_last_snapshot_counts_and_it_is_said(training):
    walk, folder = training
    said = []
    found = average_of_length(folder, 2100, 0.10, said.append)["a"]["b"]
    np.testing.assert_allclose(found, _kept(walk[:2000], 0.10)[-1], rtol=1e-4, atol=1e-3)
    assert "that of step 2000" in said[0] and "2100 steps are done" in said[0]


@pytest.mark.parametrize(
    ("last", "length", "said"),
    [(STEPS, 0.5, "0.01 to 0.25"), (STEPS, float("nan"), "0.01 to 0.25"), (100, 0.1, "no snapshots of averages")],
)
def test_what_cannot_be_made_is_refused(training, last, length, said):
    with pytest.raises(UserError, match=said):
        average_of_length(training[1], last, length, _quiet)


def test_too_few_snapshots_are_refused_and_a_damaged_one_is_named(training, tmp_path):
    tree = {"a": np.zeros(3, np.float32)}
    write_snapshot(tmp_path, 10, {name: tree for name in LENGTHS})
    with pytest.raises(UserError, match=r"\(1\) give its weights with an error of .*ema_snapshots"):
        average_of_length(tmp_path, 10, 0.2, _quiet)
    (tmp_path / "20").mkdir()  # an unfinished one does not count
    assert snapshot_steps(tmp_path, 20) == [10]
    path = tmp_path / "10" / "averages.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match=r"averages.safetensors: changed"):
        average_of_length(tmp_path, 10, 0.1, _quiet)


def test_a_length_without_a_denoising_network_is_refused(tmp_path, capsys):
    assert main(["export", str(tmp_path), str(tmp_path / "model"), "--ema-length", "0.1"]) == 2
    assert "work dir of none is given" in capsys.readouterr().err


def test_a_model_folder_holds_the_average_that_is_asked_for(demo_run, tmp_path):
    import shutil

    import jax

    from brainldm.training.restore import read_config, restore_state
    from brainldm.weights.model_folder import load_model

    workdir = shutil.copytree(demo_run / "diffusion", tmp_path / "diffusion")
    state = restore_state(read_config(workdir), workdir)
    for step in (24, 48, 72):  # of a network that stayed what it is
        write_snapshot(workdir / "averages", step, {name: state.params for name in LENGTHS})
    command = ["export", str(demo_run / "autoencoder"), str(workdir), str(tmp_path / "model"), "--ema-length", "0.1"]
    assert main(command) == 0
    model = load_model(tmp_path / "model")
    assert model.spec.provenance["ema_length"] == 0.1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), model.unet, state.params)
