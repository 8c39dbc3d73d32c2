"""`webssl study`: from a grid to the configs and scripts of its runs; how far they are; and the published rows."""

from __future__ import annotations

import csv
import fnmatch
import io
import itertools
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from webssl_fast.config.load import changed_keys, config_text, load_config, load_config_of
from webssl_fast.config.resolve import resolve
from webssl_fast.config.schema import RunConfig
from webssl_fast.config.study import ALL_DATA, VQA, DerivedConfig, StudyConfig
from webssl_fast.config.vqa import VqaConfig
from webssl_fast.errors import ConfigError
from webssl_fast.recipes.evaluate import wanted_evaluations
from webssl_fast.recipes.plan import planned_run
from webssl_fast.recipes.setup import describe_method, num_parameters
from webssl_fast.recipes.study_scripts import launch_scripts, point_script
from webssl_fast.report.published_vqa import published_csv
from webssl_fast.report.scales import big_count
from webssl_fast.report.study_files import (
    MANIFEST,
    StudyEvaluation,
    StudyManifest,
    StudyPoint,
    has_begun,
    is_study,
    read_study,
    state_of,
)

ROOTS: dict[str, type[RunConfig | VqaConfig]] = {"eval": RunConfig, "vqa": VqaConfig}  # of an evaluation's config

PLAN_COLUMNS = (
    *("point", "preset", "parameters", "samples_seen", "num_steps", "global_batch_size", "subset"),
    *("nodes", "gpus", "gpu_hours", "days", "note"),
)


def published() -> None:
    """Prints the published VQA rows as CSV."""
    sys.stdout.write(published_csv())


def status(directory: Path) -> None:
    """Prints a line a point, and how many points are in which state."""
    study = read_study(directory)
    states = {point.name: state_of(directory, point) for point in study.points}
    width = max(map(len, states), default=0)
    for name, (state, words) in states.items():
        print(f"{name:{width}}  {state:11}  {words}".rstrip())
    print(", ".join(f"{count} {state}" for state, count in Counter(s for s, _ in states.values()).items()))


def write(config_path: Path, overrides: Sequence[str]) -> None:
    """Writes the study, or what a changed config adds to it. Prints its plan and what was done.

    Raises ConfigError where a point cannot run, and where a point that has begun would change: nothing is written then.
    """
    config = load_config_of(StudyConfig, config_path, overrides)
    study = Path(config.output_dir)
    files, points, plan = _contents(config, config_path.parent, PurePosixPath(study))
    manifest = StudyManifest(name=study.name, points=tuple(points), files=tuple(sorted([*files, MANIFEST])))
    files[MANIFEST] = json.dumps(manifest.model_dump(mode="json"), indent=1) + "\n"

    before = read_study(study) if is_study(study) else None
    if before is not None:
        _refuse_changes_of_begun_points(study, before, files)
    changed = [name for name, text in files.items() if not _holds(study / name, text)]
    obsolete = [name for name in before.files if name not in files] if before is not None else []
    for name in changed:
        (study / name).parent.mkdir(parents=True, exist_ok=True)
        (study / name).write_text(files[name], encoding="utf-8")
    for name in obsolete:
        (study / name).unlink(missing_ok=True)
    print(_table(plan))
    print(_what_was_done(study, points, before, changed, obsolete))


# ---------------------------------------------------------------- contents


def _contents(
    config: StudyConfig, folder: Path, study: PurePosixPath
) -> tuple[dict[str, str], list[StudyPoint], list[dict[str, Any]]]:
    """Text by file name relative to the study, its points, and the lines of its plan."""
    files: dict[str, str] = {}
    points: list[StudyPoint] = []
    plan: list[dict[str, Any]] = []
    for method, size, samples_seen, subset in _combinations(config):
        name = point_name(method, size, samples_seen, subset)
        try:
            run = _run_config(config, folder, study, method, size, samples_seen, subset)
            point = _point(config, run, name, method, size, samples_seen, subset)
            evaluations = _evaluation_configs(config, folder, study, point)
            point = point.model_copy(update={"evaluations": _evaluations(point, evaluations)})
            plan.append(_plan_line(config, run, point))
        except ConfigError as error:
            raise ConfigError(f"point {name}: {error}") from None
        points.append(point)
        files[point.config] = f"# webssl train {study / point.config}\n{config_text(run)}"
        for evaluation in point.evaluations:
            header = f"# webssl {evaluation.command} {study / evaluation.config}\n"
            files[evaluation.config] = header + config_text(evaluations[evaluation.name])
        files[f"points/{name}.sh"] = point_script(study, point)
    if not points:
        raise ConfigError(f"exclude {list(config.exclude)} leaves no point of the grids")
    nodes_of = {point.size: _num_nodes(config, point.size) for point in points}
    files |= launch_scripts(study, points, config.launch, nodes_of)
    files["plan.csv"] = _csv(plan)
    return files, points, plan


def _combinations(config: StudyConfig) -> Iterator[tuple[str, str, float, str]]:
    """(method, size, samples seen, subset) of every point, each once, in the order of the grids."""
    products = (itertools.product(g.methods, g.sizes, g.samples_seen, g.subsets) for g in config.grids)
    for combination in dict.fromkeys(itertools.chain.from_iterable(products)):
        if not any(fnmatch.fnmatchcase(point_name(*combination), pattern) for pattern in config.exclude):
            yield combination


def point_name(method: str, size: str, samples_seen: float, subset: str) -> str:
    """E.g. webdino_1b_2b_samples_light."""
    count = big_count(samples_seen).replace("\N{NO-BREAK SPACE}", "").replace(",", "").lower()
    return f"{method}_{size}_{count}_samples" + ("" if subset == ALL_DATA else f"_{subset}")


def _run_config(
    config: StudyConfig,
    folder: Path,
    study: PurePosixPath,
    method: str,
    size: str,
    samples_seen: float,
    subset: str,
) -> RunConfig:
    derived, name = config.methods[method], point_name(method, size, samples_seen, subset)
    own = [f"output_dir={json.dumps(str(study / 'runs' / name))}"]
    if subset != ALL_DATA:
        own.append(f"data.subset={json.dumps(config.subsets[subset])}")
    run = _derived(derived, folder, size, own, common=config.settings)
    batch = run.train.global_batch_size
    if abs(run.train.num_steps * batch - samples_seen) >= batch:  # else the config has these samples, rounded its way
        own.append(f"train.num_steps={-(-int(samples_seen) // batch)}")
        run = _derived(derived, folder, size, own, common=config.settings)
    if run.optim.warmup_steps >= run.train.num_steps:
        raise ConfigError(
            f"{big_count(samples_seen)} samples are {run.train.num_steps:,} steps of {batch:,}, and optim.warmup_steps "
            f"is {run.optim.warmup_steps:,}: the run would end on its way up; see more samples, or set fewer warm-up "
            f"steps in methods.{method}.settings"
        )
    return run


def _evaluation_configs(
    config: StudyConfig, folder: Path, study: PurePosixPath, point: StudyPoint
) -> dict[str, RunConfig | VqaConfig]:
    """By name: of the run that the point is, each with a folder in that run's."""
    run_dir = str(study / point.run_dir)

    def own(encoder_key: str, name: str) -> list[str]:
        return [f"{encoder_key}={json.dumps(run_dir)}", f"output_dir={json.dumps(f'{run_dir}/{name}')}"]

    found: dict[str, RunConfig | VqaConfig] = {
        name: _derived(derived, folder, point.size, own("eval.checkpoint", name))
        for name, derived in config.evaluations.items()
    }
    if config.vqa:
        found[VQA] = load_config_of(VqaConfig, folder / config.vqa, own("encoder", VQA))
    return found


def _derived(
    derived: DerivedConfig, folder: Path, size: str, own: Sequence[str], common: dict[str, Any] | None = None
) -> RunConfig:
    """A config file under the settings `common` to all points, those of its method, and the point's `own`."""
    path = folder / derived.config.replace("{size}", size)
    return load_config(path, [*_overrides(common or {}, size), *_overrides(derived.settings, size), *own])


def _overrides(settings: dict[str, Any], size: str) -> list[str]:
    return [f"{key}={json.dumps(value).replace('{size}', size)}" for key, value in settings.items()]


def _point(
    config: StudyConfig, run: RunConfig, name: str, method: str, size: str, samples_seen: float, subset: str
) -> StudyPoint:
    num_gpus = _num_gpus(config, size)
    resolved = resolve(run, world_size=max(num_gpus, 1), device="cuda" if num_gpus else "cpu")
    return StudyPoint(
        name=name,
        method=method,
        objective=run.method.name,
        size=size,
        preset=run.model.preset,
        parameters=num_parameters(describe_method(resolved).encoder()),
        image_size_px=run.model.image_size_px,
        samples_seen=samples_seen,
        subset=subset,
        num_steps=run.train.num_steps,
        global_batch_size=run.train.global_batch_size,
        config=f"configs/{name}.yaml",
        run_dir=f"runs/{name}",
        evaluations=(),
    )


def _evaluations(point: StudyPoint, configs: dict[str, RunConfig | VqaConfig]) -> tuple[StudyEvaluation, ...]:
    found = []
    for name, config in configs.items():
        written = [VQA] if isinstance(config, VqaConfig) else wanted_evaluations(config)
        found.append(
            StudyEvaluation(
                name=name,
                config=f"configs/{point.name}.{name}.yaml",
                results=tuple(f"{point.run_dir}/{name}/eval/{each}.json" for each in written),
                command="vqa" if isinstance(config, VqaConfig) else "eval",
            )
        )
    return tuple(found)


# ---------------------------------------------------------------- the plan


def _num_nodes(config: StudyConfig, size: str) -> int:
    nodes = config.launch.nodes
    return nodes[size] if isinstance(nodes, dict) else nodes


def _num_gpus(config: StudyConfig, size: str) -> int:
    return _num_nodes(config, size) * config.launch.gpus_per_node


def _plan_line(config: StudyConfig, run: RunConfig, point: StudyPoint) -> dict[str, Any]:
    num_gpus = _num_gpus(config, point.size)
    line: dict[str, Any] = {name: getattr(point, name) for name in PLAN_COLUMNS[1:7]}
    line |= {"point": point.name, "samples_seen": int(point.samples_seen), "nodes": _num_nodes(config, point.size)}
    line |= {"gpus": num_gpus, "gpu_hours": "", "days": "", "note": ""}
    if not num_gpus:
        return line | {"note": "on a CPU"}
    try:
        planned = planned_run(run, config.launch.gpu, num_gpus)
    except ConfigError as error:
        return line | {"note": f"no plan: {error}"}
    note = "" if planned.fits else f"DOES NOT FIT on {config.launch.gpu}: ask `webssl plan` for ways out"
    return line | {"gpu_hours": round(planned.gpu_hours), "days": round(planned.days, 1), "note": note}


def _csv(plan: list[dict[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, PLAN_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(plan)
    return out.getvalue()


def _table(plan: list[dict[str, Any]]) -> str:
    """For a person: what does not stand in the points' names."""
    columns = ("point", "parameters", "num_steps", "gpus", "gpu_hours", "days", "note")
    rows = [[name.replace("_", " ") for name in columns]]
    rows += [[f"{v:,}" if isinstance(v, int) else str(v) for v in (line[c] for c in columns)] for line in plan]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:-1], widths[1:-1], strict=True)), row[-1]]
        lines.append("  ".join(cells).rstrip())
    if hours := [line["gpu_hours"] for line in plan if line["gpu_hours"] != ""]:
        lines.append(f"{sum(hours):,} GPU-hours of the {len(hours)} of {len(plan)} points that have a plan")
    return "\n".join(lines)


# ---------------------------------------------------------------- a second call


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


def _refuse_changes_of_begun_points(study: Path, before: StudyManifest, files: dict[str, str]) -> None:
    found = []
    for point in before.points:
        if not has_begun(study, point):
            continue
        judged = [e for e in point.evaluations if any((study / result).is_file() for result in e.results)]
        begun = {point.config: RunConfig, **{e.config: ROOTS[e.command] for e in judged}}
        for name, root in begun.items():
            path = study / name
            if name not in files:
                found.append(f"{path}: its point is no longer in the study")
            elif path.is_file() and not _holds(path, files[name]):
                found.append(f"{path}: {_difference(root, path, files[name])}")
    if found:
        raise ConfigError(
            f"{study} has runs that another config began, and nothing was written:\n  "
            + "\n  ".join(found)
            + "\nset another output_dir, or move these runs away"
        )


def _difference(root: type[RunConfig | VqaConfig], path: Path, text: str) -> str:
    beside = path.with_suffix(".compared")
    try:
        beside.write_text(text, encoding="utf-8")
        changes = changed_keys(load_config_of(root, path), load_config_of(root, beside))
        return "; ".join(changes) or "another header or order of keys"
    except ConfigError:
        return "it cannot be read by this version"
    finally:
        beside.unlink(missing_ok=True)


def _what_was_done(
    study: Path, points: list[StudyPoint], before: StudyManifest | None, changed: list[str], obsolete: list[str]
) -> str:
    start = f"start it with: bash {study / 'launch.sh'}"
    if before is None:
        return f"wrote {study}: {len(points)} points; {start}"
    if not changed and not obsolete:
        return f"{study} is as this config says: nothing changed"
    known = {point.name for point in before.points}
    new = [point.name for point in points if point.name not in known]
    lines = [f"changed {study}: {len(points)} points, {len(new)} of them new; {start}"]
    lines += [f"  new: {name}" for name in new]
    lines += [f"  rewritten: {name}" for name in changed if name in before.files]
    lines += [f"  removed: {name}" for name in obsolete]
    return "\n".join(lines)
