"""The command `check`: the fingerprint of a dataset, measured against what a training config asks of it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from brainldm.runtime.console import Phases
from brainldm.runtime.errors import UserError
from brainldm.runtime.files import write_atomically

if TYPE_CHECKING:
    from brainldm.fingerprint.options import CheckOptions
    from brainldm.fingerprint.record import Fingerprint


def check(
    source: str | Path,
    options: CheckOptions,
    *,
    table: str | None = None,
    pattern: str | None = None,
    config: str | None = None,
    page: str | None = None,
) -> Fingerprint:
    """The fingerprint of `source`, with progress on standard error; `page` names the HTML file to write.

    `config` is a training config, FILE.py[:arg] or the name of a packaged one; its conditions, spacing, scaling and
    sizes replace those of `options`.
    Raises UserError when there is no source, nothing in it that could be a scan, or `page` cannot be written.
    """
    from brainldm.fingerprint.collect import collect

    if options.workers < 1 or (options.sample is not None and options.sample < 0):
        raise UserError("--workers must be at least 1, and --sample at least 0.")
    if config:
        options = with_config(options, config)
    with Phases() as progress:
        found = collect(source, table=table, pattern=pattern, options=options, progress=progress)
    if page:
        from brainldm.fingerprint.page import render

        try:
            write_atomically(page, render(found.as_dict()).encode())
        except OSError as error:
            raise UserError(f"{page}: cannot be written ({error.strerror}). Give --html a file.") from error
    return found


def require_usable(found: Fingerprint) -> None:
    """Raise UserError when not one scan is usable."""
    if found.counts["usable"]:
        return
    what = "trained on" if found.kind == "prepared" else "read"
    raise UserError(
        f"{found.source}: none of its scans can be {what}. The reasons are listed above; the first is: "
        f"{found.rejected[0].name}: {found.rejected[0].reason}"
    )


def with_config(options: CheckOptions, source: str) -> CheckOptions:
    """`options` with what the training config `source` says, a file or the name of a packaged one.

    Raises UserError when it cannot be read.
    """
    from brainldm.fingerprint.data_costs import DataSizes
    from brainldm.models.build import autoencoder_halvings
    from brainldm.training.config import covariates_of
    from brainldm.training.flags import load_config

    config = load_config(source)
    sizes = DataSizes(batch_size=config.batch_size, cache_gib=config.data.cache_gib)
    if config.stage == "autoencoder":
        factor = 2 ** autoencoder_halvings(config.model.to_dict())
        sizes = dataclasses.replace(sizes, latent_channels=config.model.latent_channels, downsampling=factor)
    latents = config.get("latents", None)
    if latents is not None and latents.get("variants", 0):
        sizes = dataclasses.replace(sizes, variants=latents.variants)
    return dataclasses.replace(
        options,
        covariates=covariates_of(config),
        spacing_mm=config.data.spacing_mm,
        scaling=config.data.scaling,
        sizes=sizes,
    )


def add(add_command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add this command; `add_command(name, run, help, example)` makes its parser."""
    parser = add_command(
        "check",
        run,
        "take the fingerprint of a dataset, with the list of what would be rejected",
        "brainldm check ./prepared --config paper_autoencoder --html check.html\n\n"
        "Rejected scans are part of the report: the exit code is 0 as long as one scan is usable, else 2.",
    )
    parser.add_argument("data", metavar="DATA", help="BIDS or prepared dataset, folder of images, text list, or table")
    parser.add_argument("--table", metavar="FILE", help="table with the conditions, where DATA holds none")
    parser.add_argument("--pattern", metavar="GLOB", help="which files of a folder are scans")
    parser.add_argument(
        "--config",
        metavar="CONFIG",
        help="training config, a file or a name, whose conditions are wanted",
    )
    parser.add_argument("--sample", type=int, metavar="N", help="scans read in full (default: all, at most 200)")
    parser.add_argument(
        "--full", action="store_true", help="read every scan, compare files with their sidecars' hashes"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="threads (default: all cores)")
    parser.add_argument("--html", metavar="FILE", help="write the report as a page")
    parser.add_argument("--json", action="store_true", help="print the fingerprint as JSON")
    parser.set_defaults(writes_files=("html",))


def run(options: argparse.Namespace) -> None:
    from brainldm.fingerprint.options import CheckOptions
    from brainldm.fingerprint.text import lines

    found = check(
        options.data,
        CheckOptions(sample=options.sample, full=options.full, workers=options.workers),
        table=options.table,
        pattern=options.pattern,
        config=options.config,
        page=options.html,
    )
    print(json.dumps(found.as_dict(), indent=1) if options.json else "\n".join(lines(found.as_dict())))
    require_usable(found)
