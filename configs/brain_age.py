"""The brain-age network of Cole et al. 2017 at full size: 160x224x160 voxels at 1 mm to an age in years.

    brainldm train --config brain_age --workdir runs/brain_age --config.data.path=UKB

What the paper tells the ages of its generated brains with. The layers and the loss are those of Cole et al.; optimizer,
batch and random changes are chosen here.

Expected figure: not measured at full size. `:demo` on 200 people of the embedded population: mean absolute error 5.9
years, r 0.52 over 28 held-out people, about the most that these images hold (docs/evaluation.md).

`:demo` is for the embedded population at 4 mm; `:tiny` shrinks that to a few steps, for tests.
"""

from brainldm.training.config import brain_age_config
from brainldm.training.config_arg import parse_arg


def get_config(arg: str = ""):
    arg = parse_arg(arg, demo=False, tiny=False)
    config = brain_age_config()
    config.data.spacing_mm = 1
    config.data.validation_fraction = 0.0125
    config.data.augment.affine_probability = 0.5
    config.data.augment.rotation_degrees = 10.0
    config.data.augment.translation_mm = 10.0
    config.data.augment.scale = 0.0
    config.model.channels = (8, 16, 32, 64, 128)
    config.model.dtype = "bfloat16"
    config.optimizer.learning_rate = 1e-4
    config.optimizer.weight_decay = 5e-5
    config.batch_size = 8
    config.num_steps = 80_000  # twenty times 31,740 scans
    config.every.log = 100
    config.every.validate = config.every.checkpoint = 4_000
    if arg.demo or arg.tiny:
        config.data.spacing_mm = 4
        config.data.validation_fraction = 0.15
        config.data.augment.affine_probability = 0.0
        config.model.channels = (8, 16, 32, 64)  # a fifth block would leave one voxel
        config.model.dtype = "float32"
        config.optimizer.learning_rate = 1e-3
        config.optimizer.warmup_steps = 20
        config.optimizer.decay = True
        config.batch_size = 8
        config.num_steps = 400
        config.every.log = 20
        config.every.validate = config.every.checkpoint = 100
    if arg.tiny:
        config.data.validation_fraction = 0.4
        config.model.channels = (2, 4)
        config.batch_size = 2
        config.num_steps = 6
        config.every.log = config.every.validate = config.every.checkpoint = 3
    return config
