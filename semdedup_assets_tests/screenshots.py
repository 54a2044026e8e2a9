"""Make the pictures of Dagster's UI in `docs/images` again, from the demo: `make demo` first, then this module."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import dagster as dg
from PIL import Image

from semdedup_assets_tests.browser import DagsterUI, browsing
from semdedup_assets_tests.dagster_process import ROOT, RunningDagster, running_dagster, wait_for

IMAGES = ROOT / "docs" / "images"
DEMO = ["emoji", "tiny-clip"]
GROUP = "emoji__tiny_clip"
EVALUATED = "0.05|auto"
LOCATION = "semdedup_assets"
# The repository travels: lines, letters and flat drawings look the same in few colours.
_LARGEST = 110_000
_COLOURS = (None, 256, 128, 64)
# All of them, or so many: the first that make a picture small enough are taken.


def asset_graph(ui: DagsterUI) -> None:
    hide_navigation(ui)
    ui.open_graph(LOCATION, GROUP)
    ui.page.get_by_text("manifests", exact=True).first.wait_for()
    # The numbers of each asset come one by one.
    ui.page.get_by_text("Loading").first.wait_for(state="hidden")


def partition(ui: DagsterUI) -> None:
    ui.open_partition([*DEMO, "keep_masks"], "0.05|auto")
    ui.metadata("kept").wait_for()


def figures(ui: DagsterUI) -> None:
    ui.open_partition([*DEMO, "figures"], "auto")
    ui.show_picture("kept_by_epsilon")


def training(ui: DagsterUI) -> None:
    hide_navigation(ui)
    ui.open_graph(LOCATION, f"{GROUP}__training")
    ui.page.get_by_text("evaluation_curves", exact=True).first.wait_for()
    ui.page.get_by_text("Loading").first.wait_for(state="hidden")


def evaluations(ui: DagsterUI) -> None:
    hide_navigation(ui)
    ui.open_partition([*DEMO, "evaluations"], EVALUATED)
    ui.show_picture("evaluations")


def analysis(ui: DagsterUI) -> None:
    ui.open_partition([*DEMO, "detection_efficiency"], "auto")
    ui.metadata("by_epsilon").wait_for()


def gallery(ui: DagsterUI) -> None:
    (page,) = (ROOT / ".demo/store/emoji/tiny-clip/k=auto/hard/epsilon=0.05").glob("gallery.*.index.html")
    ui.page.goto(page.as_uri())
    ui.page.wait_for_load_state("networkidle")


def checks(ui: DagsterUI) -> None:
    ui.open_asset([*DEMO, "keep_masks"], "checks")
    ui.page.get_by_text("masks_are_monotone", exact=True).first.click()
    ui.page.get_by_text("Passed", exact=True).first.wait_for()


def estimate(ui: DagsterUI) -> None:
    hide_navigation(ui)
    ui.open_asset([*DEMO, "estimate"], "events")
    ui.metadata("stages").wait_for()


_PICTURES: dict[str, tuple[Callable[[DagsterUI], None], int, int]] = {
    "asset_graph": (asset_graph, 1800, 1000),
    "partition": (partition, 1400, 1000),
    "figures": (figures, 1400, 800),
    "analysis": (analysis, 1400, 900),
    "training": (training, 1300, 980),
    "evaluations": (evaluations, 820, 960),
    "gallery": (gallery, 900, 915),
    "checks": (checks, 1400, 610),
    "estimate": (estimate, 1600, 1370),
}
"""What is opened for each picture, and how wide and high its window is, in pixels."""


def hide_navigation(ui: DagsterUI) -> None:
    ui.page.get_by_text("Hide navigation").click()
    ui.page.get_by_text("Hide navigation").wait_for(state="hidden")


def make_estimate(dagster: RunningDagster, ui: DagsterUI) -> None:
    """Materialise the demo's estimate by its button, where it has none yet."""
    key = dg.AssetKey([*DEMO, "estimate"])
    if dagster.instance.get_latest_materialization_event(key) is None:
        ui.open_asset(list(key.path), "overview")
        ui.page.get_by_role("button", name="Materialize").first.click()
        made = dagster.instance.get_latest_materialization_event
        wait_for(lambda: made(key), what="the demo's estimate", log=dagster.log)


def make_evaluations(dagster: RunningDagster) -> None:
    """Train and measure the demo's models of one kept set and of its baselines, where there are none yet; some minutes."""
    chosen = dg.AssetRecordsFilter(asset_key=dg.AssetKey([*DEMO, "evaluations"]), asset_partitions=[EVALUATED])
    if dagster.instance.fetch_materializations(chosen, limit=1).records:
        return
    everything = [f"everything_{name}" for name in ("masks", "manifests", "trained_models")]
    own = ["random_masks", "random_manifests", "random_trained_models", "trained_models", "evaluations"]
    for names, partition in ((everything, []), (own, ["--partition", EVALUATED])):
        assets = " or ".join(f'key:"{"/".join([*DEMO, name])}"' for name in names)
        command = [Path(sys.executable).with_name("dg"), "launch", "--assets", assets, *partition]
        subprocess.run(command, cwd=ROOT, env={**os.environ, "DAGSTER_HOME": str(ROOT)}, check=True)


def save(png: bytes, path: Path) -> None:
    """Write a picture with as many colours as keep it small.

    Raises:
        ValueError: it is too large even so.
    """
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    for colours in _COLOURS:
        content = io.BytesIO()
        fewer = picture.quantize(colours) if colours else picture
        fewer.save(content, "PNG", optimize=True)
        if content.tell() < _LARGEST:
            path.write_bytes(content.getvalue())
            return
    message = f"{path.name} takes {content.tell():,} bytes with {colours} colours: make its window smaller"
    raise ValueError(message)


def main() -> None:
    """Make all pictures, or those that are named."""
    names = sys.argv[1:] or list(_PICTURES)
    with running_dagster(ROOT) as dagster:
        for name in names:
            show, width, height = _PICTURES[name]
            # A window of its own: each would change how the next looks.
            with browsing(dagster.url, width=width, height=height) as ui:
                ui.open("/assets")
                if name == "estimate":
                    make_estimate(dagster, ui)
                if name in ("training", "evaluations"):
                    make_evaluations(dagster)
                show(ui)
                ui.page.wait_for_timeout(1000)  # Dialogs fade in.
                save(ui.page.screenshot(), IMAGES / f"{name}.png")
            sys.stdout.write(f"{IMAGES / name}.png\n")
    dagster.log.unlink()


if __name__ == "__main__":
    main()
