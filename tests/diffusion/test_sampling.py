"""How samples are drawn, checked before any work."""

import json
import math

import pytest

from brainldm.diffusion.sampling import Sampling
from brainldm.runtime.errors import UserError


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"num_steps": 0}, "steps is 0"),
        ({"num_steps": -3}, "whole number"),
        ({"num_steps": 2.5}, "whole number"),
        ({"num_steps": True}, "whole number"),
        ({"eta": -1.0}, "eta .* from 0 to 1"),
        ({"eta": 1.5}, "eta .* from 0 to 1"),
        ({"eta": math.nan}, "eta"),
        ({"eta": "0"}, "eta"),
        ({"guidance": math.nan}, "guidance"),
        ({"guidance": math.inf}, "guidance"),
        ({"guidance": 1e308}, "guidance .* from 0 to 100"),
        ({"guidance": None}, "guidance"),
        ({"guidance_interval": (0.5, 0.5)}, "lower one first"),
        ({"guidance_interval": (0.2, 1.5)}, "two noise levels"),
        ({"guidance_interval": (0.2, math.nan)}, "two noise levels"),
        ({"guidance_interval": 0.4}, "two noise levels"),
        ({"guidance_interval": "01"}, "two noise levels"),
        ({"sampler": "euler"}, "ddim, ddpm, dpmpp_2m"),
        ({"spacing": "linear"}, "leading, trailing, karras, log_snr, monai"),
        ({"spacing": "monai", "sampler": "dpmpp_2m"}, "deterministic DDIM"),
        ({"spacing": "monai", "eta": 0.5}, "deterministic DDIM"),
        ({"sampler": "dpmpp_2m", "eta": 0.5}, "only the sampler ddim"),
    ],
)
def test_what_cannot_be_meant_is_refused(wrong, said):
    with pytest.raises(UserError, match=said):
        Sampling(**wrong)


def test_it_is_read_from_its_json_and_from_that_of_older_models():
    sampling = Sampling(20, 0.0, 4.0, "dpmpp_2m", "karras", (0.25, 0.75))
    assert Sampling(**json.loads(json.dumps(sampling.to_json()))) == sampling
    assert Sampling(**{"num_steps": 25, "eta": 0.5, "guidance": 2.0}) == Sampling(25, 0.5, 2.0, "ddim", "leading")
