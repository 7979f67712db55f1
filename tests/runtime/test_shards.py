"""Which share of a job a process does."""

import pytest

from brainldm.runtime.errors import UserError
from brainldm.runtime.shards import parse_shard, shard_from_environment


def test_a_shard_as_it_is_written():
    assert parse_shard("3/40") == (3, 40)
    for text in ("3", "a/b", "1/2/3", "-1/2", "0/2", "3/2"):
        with pytest.raises(UserError, match="--shard"):
            parse_shard(text)


ARRAY = {"SLURM_ARRAY_TASK_MIN": "5", "SLURM_ARRAY_TASK_MAX": "14", "SLURM_ARRAY_TASK_STEP": "3"}


@pytest.mark.parametrize(
    "count, environment, number, variable",
    [
        (4, {"SLURM_ARRAY_TASK_ID": "8", **ARRAY}, 2, "SLURM_ARRAY_TASK_ID"),
        (4, {"SLURM_ARRAY_TASK_ID": "14", **ARRAY, "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, 4, "SLURM_ARRAY_TASK_ID"),
        (3, {"SLURM_PROCID": "2", "SLURM_NTASKS": "3"}, 3, "SLURM_PROCID"),
        (3, {"JOB_COMPLETION_INDEX": "0"}, 1, "JOB_COMPLETION_INDEX"),
        (3, {"PBS_ARRAY_INDEX": "3"}, 3, "PBS_ARRAY_INDEX"),
        (
            3,
            {"SGE_TASK_ID": "2", "SGE_TASK_FIRST": "1", "SGE_TASK_LAST": "3", "SGE_TASK_STEPSIZE": "1"},
            2,
            "SGE_TASK_ID",
        ),
        (3, {"SGE_TASK_ID": "undefined", "JOB_COMPLETION_INDEX": "2"}, 3, "JOB_COMPLETION_INDEX"),
        (3, {"LSB_JOBINDEX": "0", "PBS_ARRAY_INDEX": "1"}, 1, "PBS_ARRAY_INDEX"),
        (2, {"TPU_WORKER_ID": "1", "TPU_WORKER_HOSTNAMES": "a,b"}, 2, "TPU_WORKER_ID"),
    ],
)
def test_schedulers_number_their_tasks(count, environment, number, variable):
    assert shard_from_environment(count, environment) == ((number, count), variable)


@pytest.mark.parametrize(
    "count, environment, said",
    [
        (3, {}, "nothing here says which.*--shard i/3"),
        (3, {"JOB_COMPLETION_INDEX": "3"}, "JOB_COMPLETION_INDEX=3 is none of them"),
        (3, {"PBS_ARRAY_INDEX": "0"}, "PBS_ARRAY_INDEX=0 is none of them"),
        (
            3,
            {"JOB_COMPLETION_INDEX": "1", "PBS_ARRAY_INDEX": "1"},
            "JOB_COMPLETION_INDEX says 2, PBS_ARRAY_INDEX says 1",
        ),
        (5, {"SLURM_ARRAY_TASK_ID": "8", **ARRAY}, "array has 4 tasks"),
        (5, {"SLURM_PROCID": "2", "SLURM_NTASKS": "3"}, "step has 3 tasks"),
    ],
)
def test_what_schedulers_say_must_be_one_share_that_there_is(count, environment, said):
    with pytest.raises(UserError, match=said):
        shard_from_environment(count, environment)
