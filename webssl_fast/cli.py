"""`webssl`: from arguments to a recipe, nothing else. Recipes are imported when they run: `--help` is instant."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from webssl_fast.cli_data import add_data_commands, run_data
from webssl_fast.cli_parsers import AnyOrder, command, config_arguments

EPILOG = """examples:
  webssl train configs/quickstart.yaml
  webssl train configs/quickstart.yaml data.source=~/photos output_dir=runs/mine
  torchrun --nproc-per-node 8 -m webssl_fast train configs/pretrain/webdino_300m_mc2b.yaml data.source='x/{00..99}.tar'
  webssl plan configs/pretrain/webdino_7b_mc2b.yaml --gpus 256 --gpu h100
  webssl eval configs/quickstart.yaml
  webssl vqa configs/vqa/cambrian_llama3_8b.yaml encoder=runs/mine
  webssl convert webssl_dino1b_full2b_224.pth --to hf -o dino1b_hf
  webssl data index 's3://bucket/{00000..09999}.tar' -o web.index
  webssl data subset web.index --share 0.1 -o tenth.subset
  webssl filter configs/filter/text_ocr.yaml data.source=web.index output_dir=runs/text
  webssl report runs/quickstart
  webssl study configs/study/scaling_webssl.yaml
  webssl bench sinkhorn_knopp
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="webssl",
        description="Pre-train Web-SSL vision transformers and judge them frozen.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=AnyOrder)

    train = command(
        commands,
        "train",
        "pre-train a vision transformer by a config",
        """Pre-trains by CONFIG and writes into output_dir:
  config.yaml         the effective config, which can itself be run
  metrics.jsonl       one line a logged step: losses, samples_per_second, data_wait_share, ...
  checkpoints/        safetensors and JSON; the newest complete one is resumed from automatically
  bad_samples.jsonl   files that could not be decoded, and why

Start the same command again to go on after a kill or Ctrl-C: the run continues where it was, bit for bit. Ctrl-C and
SIGTERM save first and exit with status 75. Under torchrun it uses every rank. A process that hangs prints its stacks
and exits with status 76 (train.watchdog). docs/cluster.md has scripts for Slurm.""",
    )
    config_arguments(train)

    evaluate = command(
        commands,
        "eval",
        "evaluate a checkpoint's frozen encoder by a config",
        """Judges a frozen encoder by everything that CONFIG names data for under `eval:`, prints the scores and writes
into output_dir/eval:
  knn.json                  k-NN on labelled images; for a run of ours with an untrained encoder beside it
  linear_probe.json         52 linear heads, trained at once, the best on validation images
  logistic_regression.json  one linear head on features that are computed once
  zero_shot.json            classification by the classes' names, of a run by clip or siglip
  segmentation.json         a linear head on ADE20K, and pictures of what it predicts
  depth.json                a linear head on NYUd v2, and pictures of what it predicts
  alignment.json            agreement with language models on image-caption pairs

eval.checkpoint names the encoder: a run or one of its checkpoints (output_dir by default), a .pth file of the Web-SSL
authors, or a folder or id of the Hugging Face hub: Web-SSL, DINOv2, DINOv3, MAE, I-JEPA, CLIP, MetaCLIP, SigLIP.""",
    )
    config_arguments(evaluate)

    vqa = command(
        commands,
        "vqa",
        "judge a frozen encoder by visual question answering",
        """Gives a language model a frozen encoder's image tokens, in two stages of training, and has it answer the
16 benchmarks of Web-SSL. Writes into output_dir:
  stage1/          the adapter's training, in the form of `webssl train`, and adapter.safetensors
  stage2/          the same of adapter and language model
  model/           both in safetensors, with the tokenizer
  eval/vqa/        every answer, one JSON line each, before it is scored
  eval/vqa.json    the scores

What is done is not done again: start the same command again after a kill. Under torchrun both stages use every rank.
docs/vqa.md says what data to fetch, and where they must lie.""",
    )
    config_arguments(vqa)
    vqa.add_argument("--score-only", action="store_true", help="score the answers that are there again")

    convert = command(
        commands,
        "convert",
        "turn a network into another form, bit for bit",
        """Reads a run of ours (its teacher), a file of the Web-SSL authors (a backbone or a teacher; or two files, a
backbone and its heads) or a Hugging Face folder, and writes TARGET:
  --to webssl   a .pth file of the authors' layout, and TARGET's name with _ssl_heads.pth where there are heads
  --to hf       a folder for transformers' Dinov2Model: config, safetensors, preprocessor
  --to native   a run directory for eval.checkpoint and method.init_from
  --to hf_dual_encoder   a folder for transformers' VisionTextDualEncoderModel, of a run of clip or siglip""",
    )
    convert.add_argument("sources", nargs="+", metavar="SOURCE", help="a run, a folder, or one or two .pth files")
    convert.add_argument(
        "--to", choices=["native", "webssl", "hf", "hf_dual_encoder"], required=True, help="the form to write"
    )
    convert.add_argument("-o", "--output", type=Path, required=True, metavar="TARGET", help="must not exist yet")
    plan = command(
        commands,
        "plan",
        "say what a run would take on so many GPUs, before it is run",
        """Plans the run that CONFIG describes, without allocating it, on any machine:
  parameters          of student and heads, counted on the method itself
  memory of a GPU     by what holds it, by the mode of activation checkpointing, and whether it fits
  FLOPs               of an image, split by part; drop-path counts as executed
  time                of a step and of the whole run, at an MFU, and GPU-hours
Where a run does not fit it names the least change that would do: checkpointing, smaller passes, more GPUs, moments in
8 bits.

Memory is computed and leaves out what an allocator loses; a gigabyte of a GPU counts as 10^9 bytes. The MFU is an
assumption, 0.3 to 0.5 by the network's width after published runs of DINOv2 and DINOv3.""",
    )
    config_arguments(plan)
    plan.add_argument("--gpus", type=int, required=True, metavar="N", help="GPUs of the run, over all hosts")
    plan.add_argument("--gpu", default="h100", help="kind of GPU, a name of webssl_fast/gpus.py (default: %(default)s)")
    plan.add_argument("--mfu", type=float, help="share of the dense bf16 peak at which FLOPs run (default: by width)")
    plan.add_argument("--json", action="store_true", help="print JSON, in bytes, seconds and FLOPs")

    report = command(
        commands,
        "report",
        "write one self-contained HTML page about a run, or a study",
        """Writes RUN_DIR/report.html: losses, k-NN, throughput, schedules, data health, PCA pictures of the patch
features on sample photographs; and what `webssl eval` left in RUN_DIR/eval: the paper's tables with these scores beside
the published ones (also as report_tables.csv), predicted segmentation and depth beside the truth. The page needs no
network and no other file.

Of a study (`webssl study`): the paper's figures and tables with its rows, and CSV files beside the page. Of several
directories the tables have all results; curves and pictures are those of the first that has them.""",
    )
    report.add_argument(
        "run_dirs", type=Path, nargs="+", metavar="RUN_DIR", help="the output_dir of a run or an evaluation"
    )
    report.add_argument(
        "-o", "--output", type=Path, help="where to write the page (default: the first RUN_DIR/report.html)"
    )
    report.add_argument(
        "--images", type=Path, help="folder of photographs for the PCA pictures (default: the run's data)"
    )

    study = command(
        commands,
        "study",
        "write the runs of a scaling study, and say how far they are",
        """One of
  webssl study CONFIG      writes into the study's output_dir the config of every run and evaluation of its grid,
                           scripts that start them, what they will take (plan.csv) and study.json. Called again it
                           changes nothing, adds new points, or says what differs from runs that have begun.
  webssl study status DIR  which points are not started, running, trained, evaluated
  webssl study published   the VQA rows of the Web-SSL paper as CSV: the average as it is reported, and as it comes out

`webssl report DIR` draws the figures of a study.""",
    )
    study.add_argument("target", metavar="CONFIG", help="a study's YAML file, or `status`, or `published`")
    study.add_argument("rest", nargs="*", metavar="key=value | DIR", help="settings that beat the file's; or the study")

    bench = command(
        commands,
        "bench",
        "time the kernels against their rivals",
        """Times each op with a kernel of its own against its plain-torch reference and the best public alternative,
after checking that they agree. One JSON line a case: milliseconds, bandwidth or FLOP rate, share of this machine's
ceiling. Each is also a program with options of its own: `python -m benchmarks.ops.bench_OP --help`.""",
    )
    bench.add_argument("op", nargs="?", metavar="OP", help="one op, e.g. sinkhorn_knopp (default: all)")
    bench.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda where there is a GPU")
    bench.add_argument("--threads", type=int, help="of the CPU")
    bench.add_argument("--repeats", type=int, help="timed calls of each rival; medians are reported")
    bench.add_argument("--record", metavar="NAME", help="also append the lines to benchmarks/results/NAME.jsonl")

    add_data_commands(
        command(commands, "data", "index images, look into an index, make subsets", "What a run trains on.")
    )

    filter_images = command(
        commands,
        "filter",
        "find the images that contain text, as subsets to train on",
        """Asks a judge about every image of data.source whether it contains text, and writes into output_dir:
  scores.parquet   sample id, name, scores, answers, and why an image could not be judged
  light.subset     images with readable text, for data.subset of a training run
  heavy.subset     charts, tables and documents; with judge.name=ocr a proxy of them
  summary.json     counts, shares and settings
  source.index     the index that the subsets belong to, where data.source is none itself

Start the same command again after a kill: what is judged is kept. With other thresholds it judges nothing anew.""",
    )
    config_arguments(filter_images)

    command(
        commands,
        "info",
        "show versions, devices, and which kernels are built and verified",
        "Shows what this installation can do: versions, CPU and GPUs, decoders, and for each kernel whether it is "
        "built and whether it was verified on a real GPU.",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(arguments)
    # Before torch loads its OpenMP: threads that spin while they wait take the cores from the loader's threads and from
    # whatever else runs, and a step on two busy cores takes four times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from webssl_fast.errors import EXIT_INTERRUPTED, Interrupted, UserError

    try:
        _run(args)
    except Interrupted as interrupted:
        print(f"webssl: {interrupted}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except UserError as error:
        print(f"webssl: error: {error}", file=sys.stderr)
        return 1
    return 0


def _run(args: argparse.Namespace) -> None:
    if args.command == "train":
        from webssl_fast.recipes.pretrain import pretrain

        pretrain(args.config, args.overrides)
    elif args.command == "eval":
        from webssl_fast.recipes.evaluate import evaluate

        evaluate(args.config, args.overrides)
    elif args.command == "vqa":
        from webssl_fast.recipes.vqa import vqa

        vqa(args.config, args.overrides, args.score_only)
    elif args.command == "convert":
        from webssl_fast.recipes.convert import convert

        convert(args.sources, args.to, args.output)
    elif args.command == "plan":
        from webssl_fast.recipes.plan import plan

        plan(args.config, args.overrides, num_gpus=args.gpus, gpu_name=args.gpu, mfu=args.mfu, as_json=args.json)
    elif args.command == "report":
        from webssl_fast.recipes.report import report

        report(args.run_dirs, args.output, args.images)
    elif args.command == "study":
        _run_study(args)
    elif args.command == "data":
        run_data(args)
    elif args.command == "filter":
        from webssl_fast.recipes.filter import filter_by_config

        filter_by_config(args.config, args.overrides)
    elif args.command == "bench":
        from webssl_fast.recipes.bench import bench

        bench(args.op, device=args.device, threads=args.threads, repeats=args.repeats, record=args.record)
    else:
        from webssl_fast.recipes.info import info

        info()


def _run_study(args: argparse.Namespace) -> None:
    from webssl_fast.errors import UserError
    from webssl_fast.recipes import study

    if args.target == "published":
        study.published()
    elif args.target != "status":
        study.write(Path(args.target), args.rest)
    elif len(args.rest) == 1:
        study.status(Path(args.rest[0]))
    else:
        raise UserError(f"webssl study status takes the directory of one study, got {args.rest or 'none'}")
