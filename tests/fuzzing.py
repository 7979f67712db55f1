"""Runs `brainldm` with mistyped arguments, odd config values, odd tables and hostile files, and looks at how it ends.

    python tests/fuzzing.py --minutes 10 --seed 1 [--world FOLDER]

Every case is decided by its seed: `--case N` repeats one and shows what it said. FOLDER is what `brainldm demo --tiny`
made; without one a smaller world is made up, without checkpoints or generated brains. A case passes when the exit code
is 0, 1, 2 or 75, what goes wrong is said in words and not as a trace, and no file outside the output is touched.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import stat
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

CODES = {0, 1, 2, 75}
AT_WORK = "at work"

COMMANDS = (
    "check population",
    "check population --full --json --html out.html",
    "prepare population out --registered --grid paper-4mm --workers 1",
    "measure population out",
    "measure population out --fill-covariates --shard 1/2",
    "population out --n 1 --spacing 4 --seed 3 --workers 1",
    "generate model out --n 1 --steps 1 --seed 5 --age 63:70 --sex F",
    "generate model out --participants population/participants.tsv --steps 1 --extrapolate",
    "generate model out --n 2 --guidance 2 --guidance-interval 0.2:0.8 --eta 0.5 --batch-size 1",
    "evaluate synthetic held_out out --pairs 2 --seed 1",
    "evaluate synthetic held_out out --model model",
    "convert model out",
    "export autoencoder diffusion out",
    "status synthetic --json",
    "verify synthetic --full",
    "finalize synthetic",
    "regenerate model synthetic sub-0001 --to out.nii.gz",
    "train --config demo_autoencoder:tiny --workdir out --config.data.path=population",
    "train --config demo_ldm:tiny --workdir out --config.data.path=population --config.autoencoder=model",
    "train --config demo_ldm:tiny --workdir diffusion --config.data.path=population --config.autoencoder=autoencoder",
    "train --config lsgan:tiny --workdir out --config.data.path=population --config.seed=3",
    "plan --config demo_ldm:tiny --programs train --no-search --devices 1",
    "doctor --json",
    "demo out --tiny",
)
OUTPUTS = ("out", "out.html", "out.nii.gz")
WORLD = ("population", "held_out", "model", "autoencoder", "diffusion", "synthetic")
KEEPS = {"finalize": ("synthetic",), "train": ("diffusion",)}
"""Folders that a command changes besides its output."""

WORDS = (
    *("", " ", "-", "--", "x", "nan", "inf", "-inf", "1e308", "-1", "0", "1", "2", "3.5", "1e9", "10" * 30, "1" * 5000),
    *(
        "..",
        "/",
        "/dev/null",
        "/dev/zero",
        "/proc/self/mem",
        "/proc/x/y",
        "n" * 300,
        "a/" * 100,
        "pipe",
        "loop",
        "none",
    ),
    *("participants.tsv", "model", "population", "synthetic", "true", "None", "()", "(1,", "[[", "{}", "5:1", "1:2:3"),
    *("age=", "=", "age=60", "F", "=cmd|' /C calc'!A0", "é\u202e", "\t", "a\nb", "%s%n", "$(touch x)", "1/0", "0/0"),
    *("2/1", "*", "[", "**/*", "sub-0001", "--help", "--seed", "--n", "--json", "--config.seed", "--config.seed=x"),
)
CELLS = (
    *(
        "",
        "n/a",
        "nan",
        "inf",
        "-1",
        "1e308",
        "1" * 400,
        "M",
        "F",
        "x",
        '"',
        "'",
        "a\tb",
        "a\nb",
        "\0",
        "é\u202e",
        "\ufeff",
    ),
    *("<script>", "=1+1", "sub-0001", "../../x", "/etc/passwd", "63,5", "63.5 years", "1,310", "True", "{}", ";", "0"),
)
HEADERS = (*CELLS, "participant_id", "session_id", "age", "sex", "Age (months)", "ventricles_ml", "brain_ml", "split")
KEYS = (
    *("seed", "stage", "batch_size", "num_steps", "data.path", "data.spacing_mm", "data.validation_fraction"),
    *("model.channels", "model.num_res_blocks", "model.norm_num_groups", "model.dtype", "optimizer.learning_rate"),
    *("loss.prediction", "sampling.num_steps", "sampling.guidance_interval", "covariates.names", "covariates.extra"),
    *("covariates.ranges.age", "mesh.data", "mesh.fsdp", "mesh.rules", "every.log", "init_from", "autoencoder"),
    *("latents.path", "checkpoints.keep_last", "profile.first_step", "loss.perceptual", "schedule.kind", "nonsense"),
)


def make_world(folder: Path) -> None:
    """A dataset of three people, an untrained model and the beginning of a work dir."""
    import numpy as np
    import random_models

    from brainldm.training.flags import load_config
    from brainldm.volumes.grids import training_grid
    from brainldm.volumes.nifti import write_volume

    grid, rng = training_grid(4), np.random.default_rng(0)
    for name, people in (("population", 3), ("held_out", 2)):
        root, lines = folder / name, ["participant_id\tsex\tage\tventricles_ml\tbrain_ml"]
        for number in range(1, people + 1):
            anat = root / f"sub-{number:04d}/anat"
            anat.mkdir(parents=True)
            content = np.zeros(grid.shape, np.float32)
            content[8:-8, 8:-8, 8:-8] = rng.random(tuple(side - 16 for side in grid.shape))
            write_volume(anat / f"sub-{number:04d}_T1w.nii.gz", content, grid.affine)
            lines.append(f"sub-{number:04d}\t{'FM'[number % 2]}\t{60 + number}\t{20 + number}.5\t1450")
        (root / "participants.tsv").write_text("\n".join(lines) + "\n")
        about = {"Name": name, "BIDSVersion": "1.10.0", "GeneratedBy": [{"Name": "brainldm"}]}
        (root / "dataset_description.json").write_text(json.dumps(about))
        (root / "participants.json").write_text(json.dumps({"age": {"Units": "years"}}))
    configs = [load_config(f"{name}:tiny", {"data.path": "population"}) for name in ("demo_autoencoder", "demo_ldm")]
    random_models.save_random_model(folder / "model", *configs)
    for name, config in zip(("autoencoder", "diffusion"), configs, strict=True):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(config.to_json())
        run = {"scans_training": 3, "scans_validation": 1, "latent_shape": [10, 14, 10, 8]}
        (folder / name / "run.json").write_text(json.dumps(run))
        (folder / name / "metrics.jsonl").write_text('{"split": "train", "step": 3, "loss": 0.5}\n')


# what is done to a case


def mutate_arguments(rng: random.Random, arguments: list[str], place: Path) -> str:
    """One argument replaced, left out, doubled or added."""
    kind, at = rng.randrange(5), rng.randrange(1, len(arguments) + 1)
    if kind == 0 and at < len(arguments):
        arguments[at] = rng.choice(WORDS)
    elif kind == 1 and at < len(arguments):
        del arguments[at]
    elif kind == 2 and at < len(arguments):
        arguments.insert(at, arguments[at])
    elif kind == 3:
        arguments[at:at] = [rng.choice(WORDS)]
    else:
        values = [k for k in range(2, len(arguments)) if arguments[k - 1].startswith("--")] or [len(arguments) - 1]
        arguments[rng.choice(values)] = rng.choice(WORDS)
    return "arguments"


def mutate_config(rng: random.Random, arguments: list[str], place: Path) -> str:
    """One key of a config set to a word."""
    key, word = rng.choice(KEYS), rng.choice(WORDS)
    arguments.append(f"--config.{key}={word}")
    return f"config.{key}"


def mutate_table(rng: random.Random, arguments: list[str], place: Path) -> str:
    """One cell, name, line or byte of participants.tsv changed."""
    sets = [name for name in ("population", "synthetic", "held_out") if any(name in word for word in arguments)]
    if not sets:
        return mutate_arguments(rng, arguments, place)
    table = place / rng.choice(sets) / "participants.tsv"
    if not table.is_file():
        return mutate_arguments(rng, arguments, place)
    lines = [line.split("\t") for line in table.read_text(errors="replace").splitlines()] or [[""]]
    kind = rng.randrange(6)
    row, column = rng.randrange(len(lines)), rng.randrange(len(lines[0]))
    if kind == 0:
        lines[0][column] = rng.choice(HEADERS)
    elif kind == 1:
        lines = [line[:column] + line[column + 1 :] for line in lines]
    elif kind == 2:
        lines.insert(row, list(rng.choice(lines)))
    elif kind == 3:
        del lines[row]
    else:
        lines[row][column : column + 1] = [rng.choice(CELLS)]
    content = "\n".join("\t".join(line) for line in lines).encode(errors="replace") + b"\n"
    if kind == 4 and content:
        at = rng.randrange(len(content))
        content = content[:at] + rng.randbytes(rng.randrange(4)) + content[at + 1 :]
    table.write_bytes(content)
    return f"{table.parent.name}/participants.tsv"


def mutate_file(rng: random.Random, arguments: list[str], place: Path) -> str:
    """One file damaged, or something else in its place; the checksums are made to agree half of the time."""
    named = [folder for folder in arguments if folder in WORLD and (place / folder).is_dir()]
    if not named:
        return mutate_arguments(rng, arguments, place)
    files = sorted(path for path in (place / rng.choice(named)).rglob("*") if path.is_file())
    texts = [path for path in files if path.suffix in (".json", ".tsv", ".jsonl", "") or path.name == "SHA256SUMS"]
    path = rng.choice(rng.choice([files, texts or files]))
    content, how = path.read_bytes(), rng.randrange(14)
    path.unlink()
    if how == 0:
        os.mkfifo(path)
    elif how == 1:
        path.symlink_to(path.name)
    elif how == 2:
        path.mkdir()
    elif how == 3:
        path.symlink_to(rng.choice(["/dev/zero", "/dev/full", "/etc/passwd", "/proc/self/mem", "/", "absent"]))
    elif how == 4:
        path.write_bytes(b"[" * 100_000)
    elif how == 5:
        path.write_bytes(rng.choice([b"[1]", b"null", b"3", b'"x"', b"{}", b"[{}]", b"NaN", b'{"a": 1e999}']))
    elif how == 6:
        path.write_bytes(content[: rng.randrange(len(content) + 1)])
    elif how == 7:
        path.write_bytes(rng.randbytes(rng.choice([0, 1, 10, 1000])))
    elif how == 8 and content:
        at = rng.randrange(len(content))
        path.write_bytes(content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :])
    elif how > 8 and path.suffix == ".json":
        with contextlib.suppress(ValueError, RecursionError):  # damaged before
            content = json.dumps(_odd_value(rng, json.loads(content))).encode()
        path.write_bytes(content)
    _reseal(rng, path)
    return f"{path.relative_to(place)} (way {how})"


def _odd_value(rng: random.Random, content):
    """The content with one value, at any depth, of another kind."""
    places, queue = [], [(content, None, None)]
    while queue:
        value, holder, key = queue.pop()
        if holder is not None:
            places.append((holder, key))
        if isinstance(value, dict | list):
            named = value.items() if isinstance(value, dict) else enumerate(value)
            queue += [(part, value, name) for name, part in named]
    odd = [None, True, -1, 0, 1e308, float("nan"), "", "x", [], {}, [[1]], {"a": 1}, 10**30, "\t", [0] * 100]
    if places:
        holder, key = rng.choice(places)
        holder[key] = rng.choice(odd)
    return content


def _reseal(rng: random.Random, path: Path) -> None:
    import hashlib

    sums = path.parent / "SHA256SUMS"
    if rng.random() < 0.5 or path == sums or not (sums.is_file() and path.is_file()) or path.is_symlink():
        return
    lines = [line.partition("  ") for line in sums.read_text(errors="replace").splitlines()]
    now = hashlib.sha256(path.read_bytes()).hexdigest()
    sums.write_text("".join(f"{now if name == path.name else digest}  {name}\n" for digest, _, name in lines))


# one case


def run_case(seed: int, world: Path, limit: float, show: bool = False) -> tuple[str, str, str | None]:
    """What was run, how it ended, and what is wrong with that (None: nothing)."""
    rng = random.Random(seed)
    folder = Path(tempfile.mkdtemp(prefix="brainldm-fuzz-"))
    place = folder / "place"
    try:
        shutil.copytree(world, place)
        os.mkfifo(place / "pipe")
        (place / "loop").symlink_to("loop")
        possible = [c for c in COMMANDS if "synthetic" not in c or (place / "synthetic").exists()]
        arguments = rng.choice(possible).split()
        command = arguments[0]
        ways = [mutate_arguments, mutate_file, mutate_file, mutate_table]
        ways += [mutate_config] * 4 if command in ("train", "plan") else []
        done = [rng.choice(ways)(rng, arguments, place) for _ in range(rng.choice([1, 1, 1, 2]))]
        new = {word.split("/")[0] for word in arguments[1:] if word and not os.path.lexists(place / word.split("/")[0])}
        allowed = {*OUTPUTS, *KEEPS.get(command, ()), *new}
        before = _look(folder, allowed)
        code, said = _run(arguments, place, folder, limit)
        what = f"case {seed}: {' '.join(map(_short, arguments))}   [{', '.join(done)}]"
        if show:
            print(what, f"\nends with {code}\n{said}")
        wrong = None
        if code != AT_WORK and code not in CODES:
            wrong = f"exit code {code}"
        elif "Traceback (most recent call last)" in said:
            wrong = "a trace"
        elif code in (1, 2) and not said.strip():
            wrong = "nothing is said"
        elif changed := sorted({name for name, _ in before ^ _look(folder, allowed)}):
            wrong = f"files outside the output are changed: {', '.join(changed[:5])}"
        return what, str(code), wrong and f"{wrong}\n{said[-1500:]}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _short(word: str) -> str:
    word = word if len(word) < 60 else f"{word[:20]}...({len(word)})"
    return word if word and word.isprintable() else repr(word)


def _look(folder: Path, allowed: set[str]) -> set[tuple[str, tuple]]:
    """Name, kind, length and time of every file but those below `allowed`."""
    found = set()
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        if len(name.parts) < 2 or name.parts[1] in allowed or "derivatives" in name.parts:
            continue
        with contextlib.suppress(OSError):
            status = path.lstat()
            found.add((str(name), (status.st_mode, 0 if path.is_dir() else status.st_size, status.st_mtime_ns)))
    return {(name, rest if stat.S_ISREG(rest[0]) else rest[:1]) for name, rest in found}


def _run(arguments: list[str], place: Path, folder: Path, limit: float) -> tuple[int | str, str]:
    """Exit code (or AT_WORK) and standard error of the command in a process of its own, which is forked from this."""
    told = folder.with_name(f"{folder.name}.said")
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        _become(arguments, place, told)
    end = time.monotonic() + limit
    code: int | str = AT_WORK
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            code = os.waitstatus_to_exitcode(status)
            break
        time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    if code == AT_WORK:
        os.waitpid(child, 0)
    said = told.read_text(errors="replace")
    told.unlink()
    return code, said


def _become(arguments: list[str], place: Path, told: Path) -> None:
    import traceback

    code = 1
    try:
        os.chdir(place)
        handle = os.open(told, os.O_WRONLY | os.O_CREAT)
        os.dup2(handle, 2)
        os.dup2(os.open(os.devnull, os.O_RDWR), 1)
        os.dup2(1, 0)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", closefd=False, buffering=1, errors="backslashreplace")  # noqa: SIM115
        from brainldm.cli import main

        code = main(arguments)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code or 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--minutes", type=float, help="how long")
    parser.add_argument("--cases", type=int, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    parser.add_argument("--case", type=int, help="this one alone, and what it says")
    parser.add_argument("--world", type=Path, help="a folder that `brainldm demo --tiny` made")
    parser.add_argument("--limit", type=float, default=20.0, help="seconds after which a case counts as at work")
    options = parser.parse_args()
    import brainldm.cli
    import brainldm.commands.train
    import brainldm.evaluation.report
    import brainldm.generation.dataset
    import brainldm.training.loop  # noqa: F401   imported once, for all cases

    world = Path(tempfile.mkdtemp(prefix="brainldm-fuzz-world-"))
    try:
        if options.world:
            shutil.rmtree(world)
            leave = shutil.ignore_patterns("report", "samples", "events.out*", "*.lock", "progress.png")
            shutil.copytree(options.world, world, ignore=leave)
        else:
            make_world(world)
        if options.case is not None:
            return 1 if run_case(options.case, world, options.limit, show=True)[2] else 0
        return _many(options, world)
    finally:
        shutil.rmtree(world, ignore_errors=True)


def _many(options: argparse.Namespace, world: Path) -> int:
    end = time.monotonic() + 60 * options.minutes if options.minutes else float("inf")
    counts: dict[str, int] = {}
    bad, seed = 0, options.seed
    while time.monotonic() < end and (options.cases is None or seed < options.seed + options.cases):
        began = time.monotonic()
        what, code, wrong = run_case(seed, world, options.limit)
        counts[code] = counts.get(code, 0) + 1
        if wrong:
            bad += 1
            print(f"WRONG {what}\n  {wrong}\n", flush=True)
        elif code == AT_WORK:
            print(f"at work after {time.monotonic() - began:.0f} s: {what}", flush=True)
        seed += 1
    print(f"{seed - options.seed} cases from seed {options.seed}, {bad} wrong; codes {dict(sorted(counts.items()))}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
