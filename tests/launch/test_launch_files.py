"""The files of launch/: valid, readable, complete, and in agreement with each other."""

import math
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
SOURCED = {"lib.sh", "flags.sh"}
SCRIPTS = sorted(path.name for path in LAUNCH.iterdir() if path.suffix in (".sh", ".sbatch"))


def test_the_scripts_are_found():
    assert {"demo.sh", "test.sh", "slurm.sbatch", "tpu_pod.sh"} | SOURCED <= set(SCRIPTS)


@pytest.mark.parametrize("script", SCRIPTS)
def test_launch_script_is_valid_short_and_executable_unless_sourced(script):
    path = LAUNCH / script
    done = subprocess.run(["bash", "-n", path], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    text = path.read_text()
    assert len(text.splitlines()) <= 120 and max(map(len, text.splitlines())) <= 120
    if script in SOURCED:
        assert "Sourced, never run" in text and not os.access(path, os.X_OK)
        return
    assert os.access(path, os.X_OK) and text.startswith("#!/usr/bin/env bash\n#")
    # slurm_task.sh wants the code of a command that fails.
    assert "\nset -euo pipefail\n" in text or script == "slurm_task.sh"
    assert f"#   launch/{script}" in text


def test_shellcheck_finds_nothing():
    scripts = sysconfig.get_path("scripts")
    program = shutil.which("shellcheck", path=f"{scripts}{os.pathsep}{os.environ['PATH']}")
    if not program:
        pytest.skip("shellcheck is not installed (the extra dev has it): scripts not checked by it")
    files = [*(LAUNCH / script for script in SCRIPTS), ROOT / ".ci/run"]
    done = subprocess.run(
        [program, "--external-sources", *files], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_jaxlib_knows_the_flags(place):
    """An unknown XLA flag ends the process. The GPU's are known to every jaxlib, on the CPU too."""
    shown = place.run("run.sh", "--dry-run", "train", BRAINLDM_PLATFORM="gpu").stdout
    flags = re.findall(r"--xla_\w+=\w+", shown)
    assert flags

    def starts(flags):
        code = "import jax; print(jax.device_count())"
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
        return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, timeout=120)

    assert starts(" ".join(flags)).returncode == 0
    assert b"Unknown flag" in starts("--xla_gpu_of_no_kind=true").stderr


def test_no_flag_is_set_in_the_library():
    """Except by what compiles for a machine that is not there, in a process of its own that runs nothing."""
    found = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "brainldm").rglob("*.py")
        for line in path.read_text().splitlines()
        if re.search(r"--xla_|LIBTPU_INIT_ARGS.*=|environ.*XLA_FLAGS.*=(?!=)", line)
    ]
    assert found == ["brainldm/planning/compiler.py"]


# ---- JobSet


@pytest.fixture(scope="module")
def jobset() -> dict:
    return yaml.safe_load((LAUNCH / "jobset.yaml").read_text())


def test_jobset_hosts_and_chips_make_up_the_topology(jobset):
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    chips = math.prod(map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")))
    assert job["parallelism"] == job["completions"]
    assert job["completions"] * container["resources"]["limits"]["google.com/tpu"] == chips


def test_jobset_restarts_on_all_but_failures_of_ours_and_of_the_user(jobset):
    policy = jobset["spec"]["failurePolicy"]
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["values"] == [1, 2]
    assert rule["onExitCodes"]["containerName"] == job["template"]["spec"]["containers"][0]["name"]
    assert policy["rules"] == [{"name": "failed", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}]
    # A pod failure policy needs pods that do not restart by themselves.
    assert job["template"]["spec"]["restartPolicy"] == "Never" and job["backoffLimit"] == 0
    assert policy["maxRestarts"] > 0 and job["template"]["spec"]["terminationGracePeriodSeconds"] >= 120


def test_jobset_runs_what_the_container_holds_and_writes_to_the_shared_volume(jobset):
    pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    container = pod["containers"][0]
    inside = re.search(r"^WORKDIR (\S+)$", (LAUNCH / "Containerfile").read_text(), re.M)[1]
    assert container["command"] == [f"{inside}/launch/run.sh", "train"]
    options = dict(word.partition("=")[::2] for word in container["args"])
    assert "--distributed" in options
    config = options["--config"].removeprefix(f"{inside}/")
    assert (ROOT / config).is_file()
    (mount,) = container["volumeMounts"]
    assert mount["name"] == pod["volumes"][0]["name"]
    assert all(options[name].startswith(mount["mountPath"] + "/") for name in ("--workdir", "--config.data.path"))
    assert all(isinstance(variable["value"], str) for variable in container["env"])


# ---- container


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"\\\n", " ", (LAUNCH / "Containerfile").read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines]


def test_container_copies_what_there_is_and_what_the_ignore_file_lets_through():
    ignore = [line for line in (LAUNCH / "Containerfile.dockerignore").read_text().splitlines() if line[:1] != "#"]
    assert ignore[0] == "*"
    sources = [source for word, rest in instructions() if word == "COPY" for source in rest.split()[:-1]]
    for source in sources:
        assert (ROOT / source).exists() and f"!{source}" in ignore
    assert {line[1:] for line in ignore if line.startswith("!")} == set(sources)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {project["readme"], *project["license-files"], "launch", "configs", "brainldm"} <= set(sources)


def test_container_extra_is_a_build_argument_and_empty_by_default():
    words = [word for word, _ in instructions()]
    assert words[:3] == ["ARG", "FROM", "ARG"] and words[-2:] == ["ENTRYPOINT", "CMD"]
    assert ("ARG", 'EXTRA=""') in instructions()
    (user,) = [rest for word, rest in instructions() if word == "USER"]
    assert user != "root"
    (command,) = [rest for word, rest in instructions() if word == "RUN" and "EXTRA" in rest]
    spelt = re.search(r'--editable (".*")', command)[1]
    for extra, wanted in (("", "."), ("tpu", ".[tpu]"), ("cuda13", ".[cuda13]")):
        shown = subprocess.run(["sh", "-c", f"echo {spelt}"], env={"EXTRA": extra}, capture_output=True, text=True)
        assert shown.stdout.strip() == wanted


def test_container_python_is_one_that_the_package_admits():
    (version,) = [rest.partition("=")[2] for word, rest in instructions() if rest.startswith("PYTHON=")]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    oldest = project["requires-python"].removeprefix(">=")
    assert tuple(map(int, version.split("."))) >= tuple(map(int, oldest.split(".")))


# ---- generation on Kubernetes


def test_an_indexed_job_has_as_many_tasks_as_shards_and_restarts_on_all_but_failures():
    job = yaml.safe_load((LAUNCH / "generate.yaml").read_text())
    spec, container = job["spec"], job["spec"]["template"]["spec"]["containers"][0]
    assert (job["apiVersion"], job["kind"], spec["completionMode"]) == ("batch/v1", "Job", "Indexed")
    assert f"--shards={spec['completions']}" in container["args"]
    assert spec["podFailurePolicy"]["rules"][0]["onExitCodes"] == {
        "containerName": container["name"],
        "operator": "In",
        "values": [1, 2],
    }
    assert container["command"] == ["/opt/brainldm/launch/run.sh", "generate"]


# ---- the page


def test_the_page_names_every_file_and_no_other():
    page = (LAUNCH / "README.md").read_text()
    files = {path.name for path in LAUNCH.iterdir() if path.is_file()} - {"README.md", "Containerfile.dockerignore"}
    assert files <= set(re.findall(r"[\w.]+", page))
    named = set(re.findall(r"launch/([\w.]+\w)", page))
    assert named <= files | {"Containerfile.dockerignore"}


def test_every_file_says_what_was_not_run():
    for name in (
        "tpu_pod.sh",
        "jobset.yaml",
        "generate.yaml",
        "Containerfile",
        "slurm.sbatch",
        "processes.sh",
        "flags.sh",
    ):
        head = (LAUNCH / name).read_text().split("\nset -euo")[0][:2500]
        assert re.search(r"[Nn]ot (run|built)|not run|[Nn]o speed was measured", head), name
