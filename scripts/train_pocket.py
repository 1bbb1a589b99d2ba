"""Train pocket, the small diffusion model that ships with cds3d, from nothing to weights.

    python scripts/train_pocket.py                        # everything, into cds3d/pocket/weights
    python scripts/train_pocket.py --unet-steps 50000     # longer, as on a GPU
    python scripts/train_pocket.py --stage decoder        # one stage: render, decoder, unet, export, judge, samples
    python scripts/train_pocket.py --start OLD            # begin from an older pipeline's weights

Stopped and started again, it goes on from its work folder.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cds3d  # noqa: E402, F401  (sets the thread policy before torch starts)

# isort: split
import torch  # noqa: E402

from cds3d.pocket.model import judge, networks, samples, training  # noqa: E402
from cds3d.pocket.weights_path import WEIGHTS  # noqa: E402
from tensorf.errors import UserError  # noqa: E402
from tensorf.files import write_text  # noqa: E402

STAGES = ("render", "decoder", "unet", "export", "judge", "samples")
JUDGE_SEED = training.HELD_OUT_SEED + 100_000


def parse(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option in fields(training.Plan):
        if option.name != "channels":
            flag = "--" + option.name.replace("_", "-")
            parser.add_argument(flag, type=type(option.default), default=option.default, help=f"({option.default})")
    parser.add_argument("--channels", type=int, nargs="+", default=[32, 64, 128], help="U-Net widths (32 64 128)")
    parser.add_argument("--start", type=Path, help="a pipeline folder of this architecture whose weights to begin from")
    parser.add_argument("--work", type=Path, default=Path("outputs/pocket"), help="images, latents, checkpoints")
    parser.add_argument("--output", type=Path, default=WEIGHTS, help="the pipeline folder to write")
    parser.add_argument("--stage", choices=STAGES, help="only this one (default: all, in order)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    return parser.parse_args(argv)


def main(argv=None) -> None:
    args = parse(argv)
    values = {f.name: getattr(args, f.name) for f in fields(training.Plan)}
    plan = training.Plan(**{**values, "channels": tuple(args.channels)})
    stages = (args.stage,) if args.stage else STAGES
    torch.set_num_threads(args.threads)

    if args.start is not None and not (args.start / "training.json").exists():
        raise SystemExit(f"error: --start {args.start}: no pipeline folder with a training.json")
    if stages[0] in ("judge", "samples"):  # which need no images of the diffusion model's
        return train_judge(args, plan) if stages[0] == "judge" else draw_samples(args)
    if not 0 <= plan.blend <= 1 or (plan.blend != 1 and args.start is None):
        raise SystemExit(f"error: --blend {plan.blend} has to be from 0 to 1; below 1 it needs --start")
    if not 0 <= plan.noise_discount < 1:
        raise SystemExit(f"error: --noise-discount {plan.noise_discount} has to be from 0 to below 1")
    try:
        training.claim_work(args.work, args.start)
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
    images = training.render_images(args.work, plan.images, args.threads)
    if stages == ("render",):
        return
    codec = training.fit_codec(args.work, images, args.start)
    if "decoder" in stages or "export" in stages:
        vae, decoder_seconds = training.train_decoder(args.work, images, codec, plan, args.device, args.start)
    if "unet" in stages or "export" in stages:
        latents = training.encode_images(args.work, images, codec)
        unet, text_encoder, tokenizer, unet_seconds = training.train_unet(
            args.work, latents, plan, args.device, args.start
        )
    if "export" in stages:
        psnr = training.reconstruction_psnr(vae)
        if args.start is not None and plan.blend != 1:
            training.blend(args.start, unet, text_encoder, tokenizer, plan.blend)
        parts = dict(vae=vae, unet=unet, text_encoder=text_encoder, tokenizer=tokenizer)
        networks.save_pipeline(args.output, **parts)
        hardware = (
            torch.cuda.get_device_name(args.device) if args.device.startswith("cuda") else f"{platform.machine()} CPU"
        )
        report = dict(
            command="python scripts/train_pocket.py " + " ".join(argv if argv is not None else sys.argv[1:]),
            plan=asdict(plan),
            start=None if args.start is None else json.loads((args.start / "training.json").read_text()),
            unet_samples_seen=plan.unet_steps * plan.unet_batch,
            decoder_crops_seen=plan.decoder_steps * plan.decoder_batch,
            unet_seconds=round(unet_seconds),
            decoder_seconds=round(decoder_seconds),
            heldout_reconstruction_psnr_db=round(psnr, 2),
            hardware=f"{hardware}, {args.threads} thread(s)",
            torch=torch.__version__,
        )
        write_text(args.output / "training.json", json.dumps(report, indent=2) + "\n")
        print(json.dumps(report, indent=2))
    if args.stage is None:
        train_judge(args, plan)
        draw_samples(args)


def train_judge(args: argparse.Namespace, plan: training.Plan) -> None:
    with training.workers(args.threads) as pool:
        seeds = range(JUDGE_SEED, JUDGE_SEED + plan.judge_images)
        trained = judge.train_judge(seeds, steps=plan.judge_steps, pool=partial(pool.map, chunksize=32))
    args.output.mkdir(parents=True, exist_ok=True)
    judge.save_judge(trained, args.output / judge.FILE.name)


def draw_samples(args: argparse.Namespace) -> None:
    """Write samples.jpg, and into training.json how often the judge agrees."""
    path = args.output / "training.json"
    report = json.loads(path.read_text()) | samples.draw_samples(args.output, device=args.device)
    write_text(path, json.dumps(report, indent=2) + "\n")
    print(f"the judge agrees with {report['sample_judge_agreement']:.0%} of {report['sample_prompts']} prompts")


if __name__ == "__main__":
    main()
