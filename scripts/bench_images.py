"""Methods compared on a folder of images, as in CDS's Tables 1 and 3; PIE-Bench; the page of a user study.

    python scripts/bench_images.py cats --src "a cat" --tgt "a dog" guidance=sd14 \\
        --clip openai/clip-vit-large-patch14 --dino facebook/dino-vitb8 --lpips vgg16.pth
    python scripts/bench_images.py cats --src "a cat" --tgt "a dog" --methods cds,dds --baselines sdedit,pnp
    python scripts/bench_images.py --pie-bench PIE-Bench_v1 --limit 20 guidance=sd14 --clip ... --dino ... --lpips ...
    python scripts/bench_images.py cats --src "a cat" --tgt "a dog" --user-study study.html

Writes images.json, images.md and images.png into --output, and an ordinary run folder for each edit below it. The same
command goes on where it was stopped. docs/metrics.md tells what each figure means and which weights to bring.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cds3d  # noqa: E402, F401  (sets the thread policy before torch starts)
from cds3d.bench.image_bench import ImageBench, bench_images  # noqa: E402
from cds3d.bench.image_runs import baseline_names  # noqa: E402
from cds3d.cli import tell  # noqa: E402
from cds3d.options import groups  # noqa: E402
from tensorf.errors import UserError  # noqa: E402


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arguments", nargs="*", metavar="FOLDER or key=value", help="images; options of edit.py")
    parser.add_argument("--src", metavar="TEXT", help="what the images show")
    parser.add_argument("--tgt", metavar="TEXT", help="what they should become")
    objectives = ",".join(groups()["objective"])
    parser.add_argument("--methods", type=_names, default=("cds", "dds", "sds"), help=f"cds,dds,sds; of {objectives}")
    parser.add_argument("--baselines", type=_names, default=(), help=f"none; of {','.join(baseline_names())}")
    parser.add_argument("--clip", metavar="ID_OR_FOLDER", help="CLIP's weights, for the accuracy and CLIP scores")
    parser.add_argument("--dino", metavar="ID_OR_FOLDER", help="DINO's weights, for the structure distance")
    parser.add_argument("--lpips", metavar="FILE", help="VGG-16's, AlexNet's or SqueezeNet's weights, for LPIPS")
    parser.add_argument("--output", type=Path, default=Path("outputs/bench/images"), help="outputs/bench/images")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N images only")
    parser.add_argument("--sheet-rows", type=int, default=40, metavar="N", help="images in images.png (40)")
    parser.add_argument("--pie-bench", type=Path, metavar="FOLDER", help="PIE-Bench's images, prompts and masks")
    parser.add_argument("--published", action="store_true", help="PIE-Bench's figures as its authors' code counts them")
    parser.add_argument("--user-study", type=Path, metavar="OUT.html", help="write the page of a blind user study")
    parser.add_argument("--study-seed", type=int, metavar="N", help="of the methods' order in the page (a random one)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="edits at a time, each on one thread (1)")
    parser.add_argument("--engine", choices=("pool", "ray"), default="pool", help="processes here, or a Ray cluster")
    parser.add_argument("--address", metavar="HOST:PORT", help="of the Ray cluster, whose nodes share this folder")
    return parser


def main(argv=None) -> int:
    args = _parser().parse_intermixed_args(argv)
    options = tuple(a for a in args.arguments if "=" in a and not Path(a).exists())
    folders = [Path(a) for a in args.arguments if a not in options]
    if len(folders) > 1:
        raise UserError(f"one folder of images at a time, not {len(folders)}: {', '.join(map(str, folders))}")
    ask = ImageBench(
        folder=folders[0] if folders else None,
        pie_bench=args.pie_bench,
        src=args.src,
        tgt=args.tgt,
        methods=args.methods,
        baselines=args.baselines,
        options=options,
        clip=args.clip,
        dino=args.dino,
        lpips=args.lpips,
        output=args.output,
        limit=args.limit,
        published=args.published,
        sheet_rows=args.sheet_rows,
        study=args.user_study,
        study_seed=args.study_seed,
        jobs=args.jobs,
        engine=args.engine,
        address=args.address,
    )
    failures = bench_images(ask)
    if failures:
        print(f"{len(failures)} failed; they are listed in {args.output / 'images.md'}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    tell()
    try:
        sys.exit(main())
    except (UserError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt:
        print("\nstopped: the same command goes on from here", file=sys.stderr)
        sys.exit(130)
