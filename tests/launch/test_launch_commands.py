"""What the launch scripts would run, against recorded output, and what they do run, against recording programs."""

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TRAIN = ("--config", "configs/paper_ldm.py", "--workdir", "/mnt/shared/my run", "--config.notes=it's (1, 2) $HOME")


def recorded() -> dict[str, str]:
    """Command -> output, from expected/dry_runs.txt: a command follows "$ ", its output the command."""
    parts = re.split(r"^\$ (.*)\n", (HERE / "expected/dry_runs.txt").read_text(), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("command", recorded())
def test_dry_run_shows_what_was_recorded_and_starts_nothing(place, command):
    before = set(place.folder.rglob("*"))
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=place.checkout,
        env=place.environment | {"TMPDIR": "/tmp"},
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    shown = done.stdout.replace(str(place.checkout), "CHECKOUT").replace(place.environment["HOME"], "HOME")
    assert re.sub(r"(?<=127\.0\.0\.1:)\d+", "PORT", shown) == recorded()[command]
    assert set(place.folder.rglob("*")) - before == set()


BAD = [
    "setup.sh cuda11",
    "setup.sh cuda13 tpu",
    "run.sh",
    "run.sh --workdir x",
    "again.sh",
    "background.sh",
    "background.sh start",
    "background.sh logs more",
    "background.sh restart",
    "processes.sh",
    "processes.sh 0 --config c --workdir w",
    "processes.sh two --config c --workdir w",
    "processes.sh 2 --config c",
    "processes.sh 2 --workdir w",
    "slurm.sbatch",
    "slurm.sbatch --config c",
    "slurm.sbatch --config c --workdir w",  # outside SLURM
    "slurm_task.sh",
    "tpu_pod.sh",
    "tpu_pod.sh create",
    "tpu_pod.sh create brain us-west4-a",
    "tpu_pod.sh create brain us-west4-a v5litepod-16 --spit",
    "tpu_pod.sh create Brain us-west4-a v5litepod-16",
    "tpu_pod.sh create -brain us-west4-a v5litepod-16",
    "tpu_pod.sh create brain us-west4 v5litepod-16",
    "tpu_pod.sh create brain us-west4-a h100",
    "tpu_pod.sh setup brain us-west4-a not-an-export",
    "tpu_pod.sh run brain us-west4-a",
    "tpu_pod.sh run brain us-west4-a --config c",
    "tpu_pod.sh run brain us-west4-a --config c --workdir runs/not-shared",
    "tpu_pod.sh logs brain us-west4-a all",
    "tpu_pod.sh stop brain us-west4-a now",
    "tpu_pod.sh delete brain us-west4-a now",
    "tpu_pod.sh destroy brain us-west4-a",
]


# Those with --dry-run must refuse the same words with it.
DRY = [
    line.replace(" ", " --dry-run ", 1) if " " in line else f"{line} --dry-run"
    for line in BAD
    if line.split()[0] in ("run.sh", "processes.sh", "slurm.sbatch", "tpu_pod.sh")
    and line != "slurm.sbatch --config c --workdir w"
]


@pytest.mark.parametrize("line", BAD + DRY)
def test_bad_arguments_get_a_usage_line_and_exit_code_2_and_nothing_is_done(place, line):
    script, *words = line.split()
    before = set(place.folder.rglob("*"))
    done = place.run(script, *words)
    assert done.returncode == 2
    assert re.match(r"(usage: (sbatch .*)?launch/|error: ).*\n", done.stderr), done.stderr
    assert done.stdout == ""
    assert set(place.folder.rglob("*")) - before == set()


@pytest.mark.parametrize("name", ["brain me", "brain;x", "$(x)", "a" * 64, "brain-"])
def test_a_name_that_is_none_for_google_is_refused(place, name):
    done = place.run("tpu_pod.sh", "delete", name, "us-west4-a")
    assert done.returncode == 2 and done.stderr.startswith("usage: ") and place.calls() == []


def test_every_verb_of_tpu_pod_calls_gcloud_with_these_words(place):
    tpu = ["gcloud", "compute", "tpus", "tpu-vm"]
    zone = "--zone=us-west4-a"
    environment = {"TMPDIR": str(place.folder)}
    for name in ("pyproject.toml", "requirements.txt", "requirements-dev.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, place.checkout)
    for name in ("brainldm", "configs"):
        (place.checkout / name).mkdir()
    (place.checkout / "configs/my config.py").write_text("")
    (place.checkout / "secret.txt").write_text("not to be sent")

    def calls(verb, *words):
        place.calls_file.unlink(missing_ok=True)
        done = place.run("tpu_pod.sh", verb, "brain", "us-west4-a", *words, **environment)
        assert done.returncode == 0, done.stderr
        return place.calls()

    assert calls("create", "v6e-256", "--spot") == [
        [*tpu, "create", "brain", "--accelerator-type=v6e-256", "--version=v2-alpha-tpuv6e", "--spot", zone]
    ]
    assert calls("delete") == [[*tpu, "delete", "brain", zone]]
    assert calls("stop") == [
        [*tpu, "ssh", "brain", "--worker=all", "--command=brainldm/launch/background.sh stop", zone]
    ]
    assert calls("logs", "3") == [
        [*tpu, "ssh", "brain", "--worker=3", "--command=brainldm/launch/background.sh logs", zone]
    ]
    copied, ran = calls("setup", "10.0.0.2:/export")
    archive = place.folder / "brainldm-brain.tar.gz"
    assert copied == [*tpu, "scp", str(archive), "brain:brainldm.tar.gz", "--worker=all", zone]
    assert ran[:6] == [*tpu, "ssh", "brain"] and "mount -t nfs 10.0.0.2:/export /mnt/shared" in ran[7]
    assert ran[7].endswith("brainldm/launch/setup.sh tpu")
    sent = subprocess.run(["tar", "-tzf", archive], capture_output=True, text=True, check=True).stdout.split("\n")
    assert "configs/my config.py" in sent and "launch/setup.sh" in sent and "requirements.txt" in sent
    assert not [name for name in sent if ".venv" in name or "secret" in name]
    # What is sent is enough to install from: the package, its locks, and what pyproject.toml names.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {project["readme"], *project["license-files"]} <= set(sent)


def test_gcloud_failing_ends_the_script_with_its_code(place):
    done = place.run("tpu_pod.sh", "create", "brain", "us-west4-a", "v5litepod-16", EXIT_gcloud="3")
    assert done.returncode == 3


def test_a_type_that_is_not_known_runs_with_the_system_that_the_user_names(place):
    done = place.run("tpu_pod.sh", "--dry-run", "create", "brain", "us-west4-a", "v9-8", TPU_VERSION="v2-alpha-tpuv9")
    assert done.stdout.split()[6:8] == ["--accelerator-type=v9-8", "--version=v2-alpha-tpuv9"]


def test_words_reach_the_program_on_the_host_unchanged(place):
    """The command that gcloud would pass on, run by a shell as ssh would: two layers of quoting."""
    assert place.run("tpu_pod.sh", "run", "brain", "us-west4-a", *TRAIN).returncode == 0
    ((*_, command, _),) = place.calls()
    place.calls_file.unlink()
    host = Path(place.environment["HOME"])
    (host / "brainldm").symlink_to(place.checkout)
    subprocess.run(
        ["bash", "-c", command.removeprefix("--command=")],
        cwd=host,
        env=place.environment,
        check=True,
        timeout=120,
        capture_output=True,
        stdin=subprocess.DEVNULL,
    )
    log = place.run("background.sh", "logs")  # follows the run until it ends
    assert log.returncode == 0 and "program started 0" in log.stdout
    (call,) = place.calls()
    assert call["words"] == ["train", *TRAIN, "--distributed"]


def test_flags_go_before_those_of_the_user_and_leave_the_rest_alone(place):
    mine = {"XLA_FLAGS": "--xla_gpu_autotune_level=3", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5"}
    place.run("run.sh", "train", *TRAIN, BRAINLDM_PLATFORM="gpu", **mine)
    place.run("run.sh", "train", *TRAIN, **mine)
    on_gpu, on_cpu = place.calls()
    assert on_gpu == {
        "words": ["train", *TRAIN],
        "XLA_FLAGS": "--xla_gpu_enable_latency_hiding_scheduler=true --xla_gpu_autotune_level=3",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5",
    }
    assert on_cpu == {"words": ["train", *TRAIN], **mine}


def test_an_unknown_platform_and_a_missing_environment_are_mistakes(place):
    done = place.run("run.sh", "train", BRAINLDM_PLATFORM="gpus")
    assert done.returncode == 2 and "cpu, gpu and tpu" in done.stderr
    done = place.run("run.sh", "train", BRAINLDM_VENV=str(place.folder / "nowhere"))
    assert done.returncode == 2 and "launch/setup.sh" in done.stderr
    assert place.calls() == []


def test_platform_is_gpu_where_nvidia_smi_lists_one(place):
    done = place.run("run.sh", "--dry-run", "doctor", BRAINLDM_PLATFORM="")
    assert "--xla_gpu" in done.stdout and place.calls() == [["nvidia-smi", "-L"]]


@pytest.mark.parametrize("extra", ["", "tpu", "cuda13"])
def test_setup_adds_the_extra_to_the_pinned_packages(place, extra):
    locks = ("requirements.txt", "requirements-dev.txt", "pyproject.toml")
    for name in locks:
        shutil.copy(ROOT / name, place.checkout)
    shutil.copy(place.folder / "programs/sudo", place.checkout / ".venv/bin/python")
    state = str(place.checkout) + "\n" + "".join((ROOT / name).read_text() for name in locks)
    (place.checkout / ".venv/.brainldm-run").write_text(state)  # installed already
    done = place.run("setup.sh", *filter(None, [extra]))
    assert done.returncode == 0, done.stderr
    installs = [call[3:] for call in place.calls() if call[1:4] == ["-m", "pip", "install"]]
    constraint = ["--constraint", f"{place.checkout}/requirements.txt"]
    wanted = [["install", "--quiet", *constraint, "--editable", f"{place.checkout}[{extra}]"]] if extra else []
    assert installs == wanted
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert not extra or extra in extras


# ---- SLURM


def batch(place, code: int, *words: str, **environment: str) -> subprocess.CompletedProcess:
    """The batch script as SLURM runs it: a copy elsewhere, in the folder it was submitted from."""
    spool = place.folder / "spool"
    spool.mkdir(exist_ok=True)
    script = shutil.copy(place.checkout / "launch/slurm.sbatch", spool / "slurm_script")
    job = {"SLURM_JOB_ID": "41", "SLURM_SUBMIT_DIR": str(place.checkout), "EXIT_srun": str(code)}
    return subprocess.run(
        ["bash", script, *words],
        cwd="/",
        env=place.environment | job | environment,
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )


SRUN = ["srun", "--kill-on-bad-exit=0", "--wait=600", "--cpus-per-task=8"]


@pytest.mark.parametrize(
    ("code", "ends_with", "queues_again"),
    [(0, 0, False), (75, 75, True), (241, 1, False), (242, 2, False), (137, 137, False), (134, 134, False)],
)
def test_a_job_queues_again_on_75_and_on_nothing_else(place, code, ends_with, queues_again):
    done = batch(place, code, *TRAIN, SLURM_CPUS_PER_TASK="8")
    assert done.returncode == ends_with, done.stderr
    ran = [*SRUN, "launch/slurm_task.sh", "launch/run.sh", "train", *TRAIN, "--distributed"]
    assert place.calls() == [ran] + ([["scontrol", "requeue", "41"]] if queues_again else [])


def test_a_job_that_was_queued_again_too_often_ends(place):
    done = batch(place, 75, *TRAIN, SLURM_RESTART_COUNT="3", BRAINLDM_RESTARTS="3")
    assert done.returncode == 75 and "enough" in done.stderr
    assert [call[0] for call in place.calls()] == ["srun"]


def test_a_job_submitted_from_elsewhere_says_so(place):
    done = batch(place, 0, *TRAIN, SLURM_SUBMIT_DIR=str(place.folder))
    assert done.returncode == 2 and "submit from there" in done.stderr and place.calls() == []


@pytest.mark.parametrize(("code", "seen"), [(0, 0), (1, 241), (2, 242), (75, 75), (137, 137)])
def test_the_code_of_a_task_that_failed_outweighs_75(place, code, seen):
    done = place.run("slurm_task.sh", "launch/run.sh", "train", *TRAIN, PLAN=str(code))
    assert done.returncode == seen
    assert place.calls()[0]["words"] == ["train", *TRAIN]


def test_batch_options():
    """As submitted to a SLURM 22.05 with GPUs declared, which accepted them."""
    found = re.findall(r"^#SBATCH (\S+)$", (ROOT / "launch/slurm.sbatch").read_text(), re.M)
    options = dict(option.removeprefix("--").partition("=")[::2] for option in found)
    assert options["signal"] == "TERM@120" and "requeue" in options and options["open-mode"] == "append"
    # One task per GPU of a node; --gpus-per-task would hide a task's peers from it and break JAX's detection.
    assert options["gres"] == f"gpu:{options['ntasks-per-node']}" and "gpus-per-task" not in options
    assert "%j" in options["output"]


def test_recorder_and_real_words_agree(place):
    """A recording program sees words as they are, so that the tests above can fail."""
    done = subprocess.run(["bash", "-c", "srun 'a b' \"c'd\""], env=place.environment, check=False, timeout=120)
    assert done.returncode == 0 and place.calls() == [["srun", "a b", "c'd"]]
    assert json.loads(place.calls_file.read_text()) == ["srun", "a b", "c'd"]
