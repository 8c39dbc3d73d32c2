"""`webssl data`: indices, subsets and curation, from arguments to a recipe."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from webssl_fast.cli_parsers import command

if TYPE_CHECKING:
    from webssl_fast.config.schema import ExecutorConfig


def add_data_commands(data: argparse.ArgumentParser) -> None:
    commands = data.add_subparsers(dest="data_command", required=True, metavar="COMMAND")
    index = command(
        commands,
        "index",
        "write an index, which opens at once whatever its size",
        """Reads the headers of SOURCE once and writes INDEX, for data.source and the sources of evaluations. SOURCE is
a folder, shards or Parquet files as data.source has them; shards may lie on an object store.

Start the same command again after a kill: what is done is kept in INDEX.parts, and the result is the same, byte for
byte. Damaged shards give the samples before the damage; `webssl data inspect` lists them.""",
    )
    index.add_argument("source", metavar="SOURCE")
    index.add_argument("-o", "--output", type=Path, required=True, metavar="INDEX")
    _executor_arguments(index)
    index.add_argument(
        "--find-duplicates", action="store_true", help="also list keys that come twice in any shards, on disk"
    )
    index.add_argument(
        "--skip-unreadable", action="store_true", help="leave out shards that cannot be read at all, for good"
    )

    inspect = command(
        commands,
        "inspect",
        "show what an index holds",
        "Shows counts, sizes of images, what is wrong with the shards, and writes sample pictures as a contact sheet.",
    )
    inspect.add_argument("index", metavar="INDEX", help="an index, or any data source")
    inspect.add_argument("-o", "--output", type=Path, help="the contact sheet (default: INDEX.png)")
    inspect.add_argument("--pictures", type=int, default=48, help="so many, 0: none (default: %(default)s)")

    subset = command(
        commands,
        "subset",
        "combine subsets of an index, or sample from one",
        """Starts from START, applies the options in the order in which they stand, and writes SUBSET, for data.subset:
  webssl data subset web.index --share 0.1 -o tenth.subset
  webssl data subset light.subset --not heavy.subset --or kept.subset --index web.index -o both.subset""",
    )
    subset.add_argument("start", metavar="START", help="a subset, or an index: all of it")
    subset.add_argument("-o", "--output", type=Path, required=True, metavar="SUBSET")
    subset.add_argument("--index", help="the index that START is a subset of (default: where it was made)")
    for name, words in (
        ("and", "keep what is in this subset too"),
        ("or", "add this subset"),
        ("not", "take this subset away"),
        ("ids", "keep the sample ids of this text file, one a line"),
        ("share", "keep this share, drawn by --seed"),
    ):
        subset.add_argument(f"--{name}", action=_InOrder, dest="operations", metavar=name[0].upper(), help=words)
    subset.add_argument("--seed", type=int, default=0, help="of --share (default: %(default)s)")

    curate = command(
        commands,
        "curate",
        "balance an index by its captions, as MetaCLIP does",
        """Matches the captions of INDEX with the entries of a metadata list, and writes SUBSET, for data.subset: of
each entry about CAP captions at the most, and no caption that matches none. Counts of each entry before and after are
written into SUBSET.entries.tsv. Start the same command again after a kill: what is done is kept in SUBSET.parts.
  webssl data curate web.index --metadata metadata.json --cap 20000 -o balanced.subset""",
    )
    curate.add_argument("index", metavar="INDEX", help="of `webssl data index`, with captions")
    curate.add_argument(
        "--metadata", type=Path, required=True, metavar="FILE", help="a text file, one entry a line, or a .json list"
    )
    curate.add_argument(
        "--cap",
        type=int,
        required=True,
        help="captions of an entry from which on they are drawn (20000 for 400M pairs)",
    )
    curate.add_argument("--seed", type=int, default=0, help="of the draws (default: %(default)s)")
    curate.add_argument("-o", "--output", type=Path, required=True, metavar="SUBSET")
    _executor_arguments(curate)


def run_data(args: argparse.Namespace) -> None:
    from webssl_fast.recipes import prepare_data

    if args.data_command == "index":
        prepare_data.index(args.source, args.output, _executor(args), args.find_duplicates, args.skip_unreadable)
    elif args.data_command == "inspect":
        prepare_data.inspect(args.index, args.output, args.pictures)
    elif args.data_command == "curate":
        prepare_data.curate(args.index, args.metadata, args.output, _executor(args), args.cap, args.seed)
    else:
        prepare_data.subset(args.start, args.output, args.index, args.operations or [], args.seed)


class _InOrder(argparse.Action):
    """Collects (option, value) in the order of the command line."""

    def __call__(self, parser, namespace, values, option_string=None):
        operations = getattr(namespace, self.dest) or []
        setattr(namespace, self.dest, [*operations, (str(option_string).lstrip("-"), values)])


def _executor_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--executor",
        choices=["local", "ray"],
        default="local",
        help="this machine's processes, or actors of a Ray cluster, whose machines must all see the output's folder "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes or actors (default: %(default)s)"
    )
    parser.add_argument(
        "--ray-address", default="", metavar="ADDRESS", help="of the cluster (default: RAY_ADDRESS, or one of its own)"
    )


def _executor(args: argparse.Namespace) -> ExecutorConfig:
    from webssl_fast.config.schema import ExecutorConfig
    from webssl_fast.errors import UserError

    if args.ray_address and args.executor != "ray":
        raise UserError(f"--ray-address {args.ray_address} goes with --executor ray, got --executor {args.executor}")
    return ExecutorConfig(kind=args.executor, num_workers=max(1, args.workers), address=args.ray_address)
