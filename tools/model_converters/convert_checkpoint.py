r"""Convert an official OverLoCK checkpoint to one for the configs of this package.

python tools/model_converters/convert_checkpoint.py \
    upernet_overlock_tiny_ade20k.pth weights/upernet_t.pth

It recognises the task (classification, detection, segmentation), the variant and the form
(training, reparameterized) by the tensors, runs no code from the file, and writes
``weights/upernet_t-<first 8 digits of the file's SHA-256>.pth``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from overlock_mm.checkpoint import convert_file, read_checkpoint
from overlock_mm.cli.arguments import readable_errors
from overlock_mm.cli.preflight import check_output_file
from overlock_mm.engine.checkpoint_hook import write_with_hash


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Convert an official checkpoint.')
    parser.add_argument('source', metavar='IN', help='official file, or its http(s) address')
    parser.add_argument('target', metavar='OUT.pth', help='a hash is put before its suffix')
    parser.add_argument(
        '--deploy',
        action='store_true',
        help='fuse the backbone, for the *_deploy configs',
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> Path:
    """Convert as the command line says; return the path of the new file."""
    args = parse_args(argv)
    with readable_errors():
        check_output_file(args.target, ('.pth',))
        content, official, report = convert_file(
            read_checkpoint(args.source), args.source, args.deploy
        )
        path = write_with_hash(content, Path(args.target))
    for sentence in report:
        print(sentence)
    print(f'Wrote {path}: {len(content["state_dict"])} tensors.')
    if official.config is not None:
        print(f'Test it with: python tools/test.py {official.config} {path}')
    return path


if __name__ == '__main__':
    main()
