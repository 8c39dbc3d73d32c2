"""Time and peak memory of a training step of any method; DINOv2's against plain eager PyTorch, interleaved in one run.

    python -m benchmarks.bench_step --preset vit_small_patch14 --batch 8 --threads 2 --precision bf16 --repeats 10
    python -m benchmarks.bench_step --device cuda --compile --preset vit_300m_patch14 --batch 64 --drop-path 0.3
    python -m benchmarks.bench_step --method ijepa --preset vit_mae_base_patch16 --batch 8 --threads 2

Prints one JSON line a case. Methods without a baseline (all but DINOv2) are timed by themselves: images a second, the
FLOP rate as torch counts what is executed, and the share of each part of a step (benchmarks/method_step.py). What MAE's
visible patches save is for bench_mae to say.

DINOv2: before timing, both sides compute the objective from the same weights with drop-path 0, and
every term and gradient norm must agree. Each side then lives in a process of its own and takes a step when told to, in
turn: in one process the two would share an allocator and a peak, and in two runs the machine may not be the same twice.
The waiting side sleeps on a pipe. `cpu_ms_per_step` is the processor time of all threads, which says more than the
clock where other programs run beside. Everything random is drawn from one seed. On a GPU both sides may compile their
blocks (`--compile`), the peak is that of the GPU's memory, and the line also says images per second and the FLOP rate
as a share of what a large matrix product reaches in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

from benchmarks.provenance import ROOT, provenance

# fp32: the two sum in different orders. bf16: logits are rounded to 8 bits, and a nearest neighbour (KoLeo) may change.
TOLERANCE = {"fp32": 1e-3, "bf16": 3e-2}


# ---------------------------------------------------------------- worker


def work(side_name: str, case_json: str, threads: int) -> None:
    """Takes commands from stdin, one a line: "step" and "quit". Answers each with a JSON line."""
    import torch

    from benchmarks.step_sides import SIDES, StepCase

    torch.set_num_threads(threads)
    case = StepCase(**json.loads(case_json))
    side = SIDES[side_name](case, case.batch())
    print(json.dumps({"ready": True}), flush=True)
    for command in sys.stdin:
        if command.strip() == "quit":
            if case.device == "cuda":
                peak_bytes = torch.cuda.max_memory_allocated()
            else:
                peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            print(json.dumps({"peak_mb": round(peak_bytes / 1e6)}), flush=True)
            return
        started, cpu_started = time.perf_counter(), time.process_time()
        loss = side.step()  # reads the loss, and so waits for the device
        if case.device == "cuda":
            torch.cuda.synchronize()
        answer = {
            "ms": (time.perf_counter() - started) * 1e3,
            "cpu_ms": (time.process_time() - cpu_started) * 1e3,
            "loss": loss,
        }
        print(json.dumps(answer), flush=True)


def compare(case_json: str, threads: int) -> None:
    """Prints the largest relative difference between the two sides' terms and gradient norms, and where it is."""
    from dataclasses import replace

    import torch

    from benchmarks.harness import gemm_tflop_per_s
    from benchmarks.step_sides import PlainSide, StepCase, WebsslSide

    torch.set_num_threads(threads)
    timed = StepCase(**json.loads(case_json))
    case = replace(timed, drop_path_rate=0.0)
    batch = case.batch()
    ours, plain = WebsslSide(case, batch), PlainSide(case, batch)
    plain.load_student_weights(ours.student_weights())
    our_terms, plain_terms = ours.terms(), plain.terms()
    if our_terms.keys() != plain_terms.keys():
        raise ValueError(f"the sides report different terms: {sorted(our_terms)} and {sorted(plain_terms)}")
    differences = {name: abs(our_terms[name] / plain_terms[name] - 1) for name in plain_terms}
    worst = max(differences, key=lambda name: differences[name])
    found = {"term": worst, "difference": differences[worst], "ours": our_terms, "plain": plain_terms}
    if case.device == "cuda":
        found |= {"gemm_tflop_per_s": gemm_tflop_per_s(), "tflop_per_image": timed.flops_per_image() / 1e12}
    print(json.dumps(found))


# ---------------------------------------------------------------- driver


class Worker:
    def __init__(self, side: str, case_json: str, threads: int) -> None:
        self.process = subprocess.Popen(
            _command("work", side, case_json, str(threads)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=_environment(threads),
            cwd=ROOT,
        )
        self.steps: list[dict[str, float]] = []
        self._answer()

    def step(self) -> None:
        self.steps.append(self._ask("step"))

    def quit(self) -> dict[str, float]:
        answer = self._ask("quit")
        self.process.wait()
        return answer

    def _ask(self, command: str) -> dict[str, float]:
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, float]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a side of the comparison died with exit status {self.process.wait()}; see above")
        return json.loads(line)


def run_case(case: dict[str, Any], threads: int, repeats: int) -> dict[str, Any]:
    """The result line of one case. Raises SystemExit where the two sides disagree."""
    case_json = json.dumps(case)
    compared = json.loads(
        subprocess.run(
            _command("compare", case_json, str(threads)),
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            env=_environment(threads),
            cwd=ROOT,
        ).stdout
    )
    tolerance = TOLERANCE[case["precision"]]
    if not compared["difference"] <= tolerance:
        raise SystemExit(
            f"the two sides disagree by more than {tolerance}, so nothing was timed: {json.dumps(compared)}"
        )

    workers = {side: Worker(side, case_json, threads) for side in ("webssl_fast", "plain_dinov2")}
    for _ in range(1 + repeats):  # the first step allocates, and does not count
        for worker in workers.values():
            worker.step()
    line: dict[str, Any] = {"case": "train_step", **case, "threads": threads, "repeats": repeats}
    medians: dict[tuple[str, str], float] = {}
    peaks: dict[str, float] = {}
    for side, worker in workers.items():
        peaks[side] = worker.quit()["peak_mb"]
        for key in ("ms", "cpu_ms"):
            medians[side, key] = statistics.median(step[key] for step in worker.steps[1:])
    memory = "peak_gpu" if case["device"] == "cuda" else "peak_rss"
    for side, prefix in (("webssl_fast", ""), ("plain_dinov2", "baseline_")):
        line |= {
            f"{prefix}ms_per_step": round(medians[side, "ms"], 1),
            f"{prefix}cpu_ms_per_step": round(medians[side, "cpu_ms"], 1),
            f"{prefix}{memory}_mb": peaks[side],
        }
    if case["device"] == "cuda":
        images_per_s = 1e3 * case["num_images"] / medians["webssl_fast", "ms"]
        tflop_per_s = images_per_s * compared["tflop_per_image"]
        line |= {
            "images_per_s": round(images_per_s, 1),
            "baseline_images_per_s": round(1e3 * case["num_images"] / medians["plain_dinov2", "ms"], 1),
            "tflop_per_image": round(compared["tflop_per_image"], 3),
            "gemm_tflop_per_s": round(compared["gemm_tflop_per_s"], 1),
            "share_of_gemm": round(tflop_per_s / compared["gemm_tflop_per_s"], 3),
        }
    pairs = zip(workers["webssl_fast"].steps[1:], workers["plain_dinov2"].steps[1:], strict=True)
    ratios = sorted(baseline["ms"] / ours["ms"] for ours, baseline in pairs)
    return line | {
        "speedup": round(medians["plain_dinov2", "ms"] / medians["webssl_fast", "ms"], 3),
        "speedup_least": round(ratios[0], 3),
        "speedup_most": round(ratios[-1], 3),
        "cpu_speedup": round(medians["plain_dinov2", "cpu_ms"] / medians["webssl_fast", "cpu_ms"], 3),
        f"{memory}_ratio": round(peaks["webssl_fast"] / peaks["plain_dinov2"], 3),
        "largest_difference": {"term": compared["term"], "relative": float(f"{compared['difference']:.2g}")},
        **provenance(case["device"]),
    }


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.bench_step", *arguments]


def _environment(threads: int) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


def main() -> None:
    if len(sys.argv) > 1 and sys.argv[1] == "work":
        return work(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    if len(sys.argv) > 1 and sys.argv[1] == "compare":
        return compare(sys.argv[2], int(sys.argv[3]))
    from benchmarks.method_step import measure
    from webssl_fast.methods import METHODS

    description, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_step",
        description=description,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--method", choices=list(METHODS), default="dinov2")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--compile", action="store_true", help="compile the blocks (of both sides)")
    parser.add_argument("--preset", help="default: vit_small_patch14 for dinov2, else a ViT-B of the method's kind")
    parser.add_argument("--batch", type=int, default=8, help="images of a step")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--precision", choices=["bf16", "fp32"], action="append", help="give twice for both; default bf16"
    )
    parser.add_argument("--repeats", type=int, default=10, help="timed steps of each side")
    of_dinov2 = parser.add_argument_group("dinov2")
    of_dinov2.add_argument("--drop-path", type=float, help="default: 0.4")
    of_dinov2.add_argument("--prototypes", type=int, help="default: 131072")
    of_others = parser.add_argument_group("all other methods")
    of_others.add_argument("--image-size", type=int, help="pixels of a side (default: 224)")
    of_others.add_argument("--text-preset", help="of clip and siglip (default: text_small)")
    of_others.add_argument("--record", metavar="NAME", help="also append the lines to benchmarks/results/NAME.jsonl")
    arguments = parser.parse_args()
    alone = arguments.method != "dinov2"
    for name in ("drop_path", "prototypes") if alone else ("image_size", "text_preset", "record"):
        if getattr(arguments, name) is not None:
            parser.error(f"--{name.replace('_', '-')} says nothing about --method {arguments.method}; leave it out")
    for precision in arguments.precision or ["bf16"]:
        if alone:
            measure(arguments, precision)
            continue
        case = {
            "preset": arguments.preset or "vit_small_patch14",
            "num_images": arguments.batch,
            "precision": precision,
            "drop_path_rate": 0.4 if arguments.drop_path is None else arguments.drop_path,
            "num_prototypes": arguments.prototypes or 131072,
            "device": arguments.device,
            "compile_blocks": arguments.compile,
        }
        print(json.dumps(run_case(case, arguments.threads, arguments.repeats)), flush=True)


if __name__ == "__main__":
    main()
