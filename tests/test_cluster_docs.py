"""The scripts of docs/cluster.md: they parse, use options that exist, and requeue when they should.

Slurm's own commands are stood in for by small scripts; its options are held to the list that its manual pages give.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from webssl_fast.cli import build_parser
from webssl_fast.config.load import load_config
from webssl_fast.config.schema import RunConfig, WatchdogConfig

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "cluster.md").read_text()
SCRIPTS = re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
SBATCH_OPTIONS = {
    "job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "time", "requeue", "open-mode", "output",
    "signal",
}  # fmt: skip
both = pytest.mark.parametrize("script", SCRIPTS, ids=["one_node", "several_nodes"])


def words_of(script: str) -> list[str]:
    """The words of the srun command, with the variables as a job would have them."""
    (command,) = re.findall(r"^srun (.*?) &$", script.replace("\\\n", " "), re.MULTILINE)
    for name, value in {"SLURM_NNODES": "4", "SLURM_JOB_ID": "42", "head_node": "n1", "DATA": "x", "RUN": "r"}.items():
        command = command.replace(f"${name}", value)
    assert "$" not in command
    return shlex.split(command)


def test_there_is_a_script_for_one_node_and_one_for_several():
    assert len(SCRIPTS) == 2


@both
def test_script_parses(script):
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@both
def test_options_exist(script):
    assert set(re.findall(r"^#SBATCH --([a-z-]+)", script, re.MULTILINE)) == SBATCH_OPTIONS
    words = words_of(script)
    start = words.index("torchrun")
    assert set(words[:start]) <= {"--kill-on-bad-exit=1"}
    launch = get_args_parser().parse_args(words[start + 1 :])
    assert (launch.module, launch.training_script, launch.max_restarts) == (True, "webssl_fast", 3)
    warning_s = int(re.findall(r"--signal=B:USR1@(\d+)", script)[0])
    assert 30 < launch.shutdown_timeout < warning_s
    ours = build_parser().parse_args(launch.training_script_args)
    config = load_config(ROOT / ours.config, ours.overrides)
    assert (config.data.source, config.output_dir) == ("x", "r")


def test_settings_that_the_page_names_exist():
    for section, name in re.findall(r"`(train|data|optim|eval)\.([a-z_]+)", TEXT):
        assert name in type(getattr(RunConfig(), section)).model_fields, f"{section}.{name}"
    for name in re.findall(r"\(`([a-z_]+_s)`\)", TEXT):
        assert name in WatchdogConfig.model_fields


@pytest.fixture
def slurm(tmp_path):
    """A PATH on which srun waits to be told to end and then takes a while, and the others write down what they do."""
    stubs = {
        "srun": f"""echo $$ > {tmp_path}/srun.pid
trap 'kill $!; sleep 0.3; exit 1' TERM
sleep ${{SRUN_SECONDS:-30}} & wait""",
        "scancel": f"""echo scancel "$@" >> {tmp_path}/calls; kill -TERM $(cat {tmp_path}/srun.pid)""",
        "scontrol": f"""[ "$1" = show ] && echo n1 || echo scontrol "$@" >> {tmp_path}/calls""",
    }
    for name, text in stubs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    variables = {"SLURM_JOB_ID": "42", "SLURM_CPUS_PER_TASK": "4", "SLURM_NNODES": "4", "SLURM_JOB_NODELIST": "n[1-4]"}
    return tmp_path, os.environ | variables | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}


@both
@pytest.mark.parametrize("warning", [signal.SIGUSR1, signal.SIGTERM])
def test_warned_job_stops_its_ranks_and_goes_back_into_the_queue(slurm, script, warning):
    folder, environment = slurm
    job = subprocess.Popen(["bash", "-c", script], env=environment)
    while not (folder / "srun.pid").exists() or not (folder / "srun.pid").read_text():
        time.sleep(0.02)
    time.sleep(0.2)
    job.send_signal(warning)
    assert job.wait(20) == 1
    assert (folder / "calls").read_text().splitlines() == ["scancel --signal=TERM 42", "scontrol requeue 42"]


@both
def test_job_that_is_done_does_not_go_back(slurm, script):
    folder, environment = slurm
    assert subprocess.run(["bash", "-c", script], env=environment | {"SRUN_SECONDS": "0.1"}).returncode == 0
    assert not (folder / "calls").exists()
