"""What the parsers of `webssl`'s commands share."""

from __future__ import annotations

import argparse
from pathlib import Path

OVERRIDES_HELP = "settings that beat the file's, e.g. train.num_steps=100 model.preset=vit_small_patch14"


class AnyOrder(argparse.ArgumentParser):
    """Takes key=value after options too: argparse itself looks for positional arguments in one place only."""

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[override]
        namespace, rest = super().parse_known_args(args, namespace)
        if hasattr(namespace, "overrides"):
            overrides = [word for word in rest if "=" in word and not word.startswith("-")]
            namespace.overrides = [*namespace.overrides, *overrides]
            rest = [word for word in rest if word not in overrides]
        return namespace, rest


def command(commands, name: str, summary: str, description: str) -> argparse.ArgumentParser:
    return commands.add_parser(
        name, help=summary, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def config_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config", type=Path, metavar="CONFIG", help="a YAML file; its keys are those of webssl_fast/config"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES_HELP)
