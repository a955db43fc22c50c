"""Each model computes what it has computed: small reference outputs that a clone brings along."""

from __future__ import annotations

import numpy as np
import pytest
from fixtures import generate

from stablejax import named


@pytest.mark.parametrize("name", named.MODELS)
def test_energies_and_forces_are_those_of_the_fixture(name, x64):
    with np.load(generate.FOLDER / f"{name}.npz") as file:
        expected = dict(file)
    np.testing.assert_array_equal(expected.pop("species"), generate.SPECIES)
    np.testing.assert_array_equal(expected.pop("position"), generate.positions())
    found = generate.outputs(name)
    assert found.keys() == expected.keys()
    for what, array in expected.items():
        assert array.dtype == np.float64 and np.abs(array).max() > 1e-5
        np.testing.assert_allclose(found[what], array, rtol=1e-9, atol=1e-10, err_msg=what)
    assert np.abs(expected["open/forces"] - expected["box/forces"]).max() > 1e-6  # the box is felt
