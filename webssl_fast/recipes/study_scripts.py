"""The scripts that run a study's points: shell text, on one machine or for Slurm (docs/cluster.md has the reasons).

Each point has a script of its commands, `run` being what its caller defines: on this machine a process or torchrun, in
a job of Slurm srun with torchrun. A command whose result is there is skipped, so that any of them may be started again.
"""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath

from webssl_fast.config.study import LaunchConfig
from webssl_fast.report.study_files import MANIFEST, StudyPoint, final_checkpoint

LOCAL_RUN = """\
run() {{
  {command} "$@"
}}
"""

LOCAL = """\
#!/bin/bash
# Runs the points of {name} one after the other; what is done is skipped. Start it again after whatever ended it.
[ -f {manifest} ] || {{ echo "start this in the folder where 'webssl study' was called" >&2; exit 1; }}
trap 'echo "stopped" >&2; exit 75' INT TERM
{run}
failed=""
for point in {points}; do
  echo "== $point"
  if ! ( . {points_dir}/"$point".sh ); then failed="$failed $point"; fi
done
if [ -n "$failed" ]; then echo "failed:$failed" >&2; exit 1; fi
"""

SBATCH = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --array=0-{last}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node={gpus}
#SBATCH --cpus-per-task={cpus}
#SBATCH --time={time}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={logs}/%x-%A_%a.log
#SBATCH --signal=B:USR1@600
{options}
points=({points})
point="${{points[$SLURM_ARRAY_TASK_ID]}}"

warned=0
stop() {{ warned=1; scancel --signal=TERM "$SLURM_JOB_ID"; }}
trap stop USR1 TERM

export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# A warned job goes back into the queue whatever its command came to: what is done is skipped in its next life.
run() {{
  srun --kill-on-bad-exit=1 torchrun --nnodes="$SLURM_NNODES" --nproc-per-node={gpus} \\
    --rdzv-backend=c10d --rdzv-endpoint="$head_node:29500" --rdzv-id="$SLURM_JOB_ID" \\
    --max-restarts=3 --shutdown-timeout=480 -m webssl_fast "$@" &
  step=$!
  status=0
  while kill -0 "$step" 2>/dev/null; do wait "$step"; status=$?; done
  if [ "$warned" = 1 ]; then scontrol requeue "$SLURM_JOB_ID"; exit "$status"; fi
  return "$status"
}}

. {points_dir}/"$point".sh
"""

SUBMIT = """\
#!/bin/bash
# Submits the points of {name}: an array of jobs for each number of nodes.
set -e
[ -f {manifest} ] || {{ echo "start this in the folder where 'webssl study' was called" >&2; exit 1; }}
mkdir -p {logs}
"""


def point_script(study: PurePosixPath, point: StudyPoint) -> str:
    """Commands of one point, sourced; it ends with the status of the first that fails."""
    lines = [
        f"# Commands of {point.name}, for a script that defines `run`. What is done is skipped.",
        f"{_is_there([str(study / final_checkpoint(point))])} || run train {_quoted(study, point.config)} || return $?",
    ]
    for evaluation in point.evaluations:
        done = _is_there([str(study / result) for result in evaluation.results])
        lines.append(f"{done} || run {evaluation.command} {_quoted(study, evaluation.config)} || return $?")
    return "\n".join(lines) + "\n"


def launch_scripts(
    study: PurePosixPath, points: Sequence[StudyPoint], launch: LaunchConfig, nodes_of: dict[str, int]
) -> dict[str, str]:
    """Text by file name. `nodes_of`: for each size."""
    words = {"name": study.name, "manifest": _quoted(study, MANIFEST), "points_dir": _quoted(study, "points")}
    words["logs"] = shlex.quote(str(study / "logs"))
    if launch.kind == "local":
        return {"launch.sh": LOCAL.format(**words, run=_local_run(launch), points=_names(points))}
    by_nodes: dict[int, list[StudyPoint]] = defaultdict(list)
    for point in points:
        by_nodes[nodes_of[point.size]].append(point)
    scripts = {"launch.sh": SUBMIT.format(**words)}
    for nodes, together in sorted(by_nodes.items()):
        file = f"{nodes}_nodes.sbatch" if nodes > 1 else "1_node.sbatch"
        scripts["launch.sh"] += f"sbatch {_quoted(study, file)}\n"
        scripts[file] = SBATCH.format(
            **words,
            last=len(together) - 1,
            nodes=nodes,
            gpus=launch.gpus_per_node,
            cpus=launch.cpus_per_node,
            time=launch.time,
            options="".join(f"#SBATCH {option}\n" for option in launch.sbatch_options),
            points=_names(together),
        )
    return scripts


def _local_run(launch: LaunchConfig) -> str:
    command = "python -m webssl_fast"
    if launch.gpus_per_node:
        command = (
            f"torchrun --standalone --nproc-per-node={launch.gpus_per_node} --max-restarts=3 --shutdown-timeout=480 "
            "-m webssl_fast"
        )
    return LOCAL_RUN.format(command=command)


def _names(points: Sequence[StudyPoint]) -> str:
    return " ".join(shlex.quote(point.name) for point in points)


def _quoted(study: PurePosixPath, file: str) -> str:
    return shlex.quote(str(study / file))


def _is_there(files: Sequence[str]) -> str:
    tests = " && ".join(f"[ -e {shlex.quote(file)} ]" for file in files)
    return f"{{ {tests}; }}" if len(files) > 1 else tests
