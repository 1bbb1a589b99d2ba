"""The command line: `cds3d COMMAND` (see COMMANDS), and the scripts that stand for them.

Everything that a user can put right comes out as one line on stderr and exit code 1; Ctrl-C gives 130, and so do
`kill` and a terminal that is closed.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import io
import logging
import os
import re
import sys
from collections.abc import Callable
from concurrent.futures import BrokenExecutor
from pathlib import Path

import cds3d  # noqa: F401  (thread policy before torch)
from cds3d.interrupts import gentle_ends
from cds3d.jobs import LOG_FORMAT
from tensorf import locks
from tensorf.errors import UserError, is_out_of_memory

COMMANDS = ("train", "import", "edit", "render", "view", "export", "sweep", "bench", "list")

_FLAGS = {
    "train": {"capture": "PATH|a capture, a folder of photos or a video from anywhere, in place of scene=NAME"},
    "import": {},
    "edit": {
        "tgt": "TEXT|what the scene or image should become",
        "src": "TEXT|what it shows now (default: the scene's own prompt)",
        "where": "TEXT|what the edit may change, in words; all else stays as it is",
        "run": "FOLDER|start from the field of this finished run instead of a scene's source",
        "image": "FILE|edit this image instead of a scene",
        "views": "FOLDER|refit the scene's field to these edited pictures, named as its photos",
        "capture": "PATH|a capture, a folder of photos or a video from anywhere, in place of scene=NAME",
    },
    "render": {},
    "view": {
        "scene": "NAME|a scene that ships: its source field, trained if need be",
        "capture": "PATH|a capture, a folder of photos or a video from anywhere: its source field",
    },
    "export": {},
    "sweep": {},
    "bench": {},
    "list": {},
}
_WHAT_TO_WORK_ON = {"run", "image", "views", "capture"}  # flags that exclude each other, or decide on other options
_PLACES = {
    "import": ("model", "capture"),
    "render": ("run",),
    "view": ("run",),
    "sweep": ("file",),
    "export": ("run", "format"),
    "list": ("what",),
}  # arguments without a name
_SWITCHES = {
    "bench": {"quick": "size=quick|minutes", "full": "size=full|hours on two cores"},
}
_SUMMARY = {
    "train": "Train a radiance field from a capture: the source that edits start from.",
    "import": "Turn a model of TensoRF's authors into a source field that edits start from.",
    "edit": "Edit a radiance field, or an image, towards a prompt.",
    "render": "Render a video of a run's field.",
    "view": "Look at a field in the browser, and edit it from there.",
    "export": "Write a run's field as a dataset of views, as splats or as points, for other programs.",
    "sweep": "Do many edits: scenes x prompts x objectives x options x seeds, in one table.",
    "list": "List scenes, presets, finished runs, and the words that pocket knows.",
    "bench": "Compare objectives and baselines on edits whose true result is known.",
}


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(f"usage: cds3d {{{','.join(COMMANDS)}}} [options]\n")
        for name in COMMANDS:
            print(f"  {name:8}{_SUMMARY[name]}")
        print("\ncds3d COMMAND --help lists a command's options.")
        return 0
    if argv[0] in ("--version", "version"):
        print(f"cds3d {cds3d.__version__}")
        return 0
    if argv[0] not in COMMANDS:
        print(f"error: {argv[0]!r} is no command; use one of: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    return run_command(argv[0], argv[1:])


def tell() -> None:
    """Send the project's messages to stderr, and only the warnings of others.

    Where a terminal's encoding lacks a letter of a name, its code is printed; stderr does so by itself.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    logging.basicConfig(format=os.environ.get(LOG_FORMAT, "%(message)s"), level=logging.WARNING)
    logging.getLogger("tensorf").setLevel(logging.INFO)
    logging.getLogger("cds3d").setLevel(logging.INFO)


def run_command(command: str, argv: list[str]) -> int:
    """Parse and run, turning exceptions into messages."""
    with gentle_ends():
        return _run_command(command, argv)


def _run_command(command: str, argv: list[str]) -> int:
    tell()
    parser = _parser(command, argv)
    args, config = parser.parse_intermixed_args(argv), None  # flags and key=value in any order
    try:
        config = _configuration(command, args)
        from cds3d.commands.early import check_words

        check_words(command, config)
        from cds3d.threads import set_threads  # torch comes with it

        set_threads(config)
        _import_command(command)(config)
        sys.stdout.flush()
        return 0
    except UserError as error:
        _end_bars()
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(f"\nstopped{f': {stop}' if str(stop) else ''}", file=sys.stderr)
        return 130
    except BrokenExecutor:
        _end_bars()
        print("error: a worker was killed, most likely for lack of memory: lower jobs", file=sys.stderr)
        return 1
    except BrokenPipeError:  # of "cds3d list | head"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at its end
        return 141  # as a shell tells the signal
    except OSError as error:
        _end_bars()
        if error.errno == errno.ENOSPC:
            print(f"error: the disk is full ({_one_line(error)}): make room, then {_onward(command)}", file=sys.stderr)
        else:
            print(f"error: {_one_line(error)}", file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        _end_bars()
        print(f"error: out of memory: {_less_memory(command, config)}", file=sys.stderr)
        return 1
    finally:
        locks.release_all()


def _end_bars() -> None:
    """End the lines of the progress bars that an error has left open, so that its message gets its own."""
    if "tqdm" in sys.modules:
        from tqdm import tqdm

        for bar in list(getattr(tqdm, "_instances", ())):
            bar.close()


def _one_line(error: Exception) -> str:
    """Its message: values that it tells may hold line breaks, and what a terminal would obey."""
    text = " ".join(part.strip() for part in str(error).splitlines())
    return "".join(c if c.isprintable() else "?" for c in text)


# What takes less memory, of each command's own options.
_SMALLER = {
    "train": "lower scene.width or field.resolution, with overwrite=true",
    "edit": "lower edit.width, scene.width or field.resolution, of images guidance.image_width, with overwrite=true",
    "render": "lower width=",
    "view": "lower width=",
    "export": "lower width= or points=",
    "sweep": "lower jobs=",
    "bench": "lower jobs=",
}


def _less_memory(command: str, config) -> str:
    """What to do when a command has run out of memory. config: None before it is known."""
    # The type may change on the way; sizes may not.
    is_half = config is not None and command == "edit" and config.guidance.dtype != "fp32"
    dtype = f"use guidance.dtype={_half_precision(config)}, or " if command == "edit" and not is_half else ""
    smaller = f"; or {_SMALLER[command]}" if command in _SMALLER else ""
    return f"{dtype}free memory elsewhere, and {_onward(command)}{smaller}"


def _half_precision(config) -> str:
    """fp16 for a GPU without bf16, else bf16. config: of the command; None before it is known."""
    import torch

    name = "auto" if config is None else config.get("device", "auto")
    if name == "cpu" or not torch.cuda.is_available():
        return "bf16"
    from cds3d.guidance.loading import gpu_has_bf16

    return "bf16" if gpu_has_bf16(torch.device("cuda" if name == "auto" else name)) else "fp16"


def _onward(command: str) -> str:
    resumed = command in ("train", "edit")
    return "go on from the last state with resume=true" if resumed else "give the same command again"


def _parser(command: str, argv: list[str]) -> argparse.ArgumentParser:
    scripts = {
        "train": "train_source.py",
        "edit": "edit.py",
        "render": "render.py",
        "view": "view.py",
        "bench": "bench_edits.py",
    }
    script = scripts.get(command)
    parser = _Parser(
        prog=script if script and Path(sys.argv[0]).name == script else f"cds3d {command}",
        description=_SUMMARY[command],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    parser.command = command
    parser.add_argument("-h", "--help", action=_Help, command=command, argv=argv)
    parser.add_argument("--version", action="version", version=f"cds3d {cds3d.__version__}")
    for place in _PLACES.get(command, ()):
        parser.add_argument(place, nargs="?", help=f"{place}, or key=value")
    for name, text in _FLAGS[command].items():
        metavar, help_ = text.split("|")
        parser.add_argument(f"--{name}", metavar=metavar, help=help_)
    if command in _SWITCHES:  # argparse cannot print an empty group
        switches = parser.add_mutually_exclusive_group()
        for name, text in _SWITCHES[command].items():
            option, help_ = text.split("|")
            help_ = f"{option}: {help_}"
            switches.add_argument(f"--{name}", dest="switch", action="store_const", const=option, help=help_)
    parser.add_argument("options", nargs="*", metavar="key=value", help="see below")
    return parser


_MEANT = {  # flags of other programs, and what they are here, in the commands that have it
    "--prompt": ("--tgt",),
    "--target": ("--tgt",),
    "--source": ("--src",),
    "--negative": ("objective=nfsd objective.negative_prompt=TEXT",),
    "--negative-prompt": ("objective=nfsd objective.negative_prompt=TEXT",),
    "--iterations": ("edit.iterations=VALUE", "field.iterations=VALUE"),
    "--steps": ("edit.iterations=VALUE", "field.iterations=VALUE"),
    "--lr": ("edit.lr=VALUE", "field.lr_grid=VALUE"),
    "-m": ("cds3d sweep",),
    "--multirun": ("cds3d sweep",),
}


class _Parser(argparse.ArgumentParser):
    """Tells what is meant where a flag is another program's, or an option without its "="."""

    command = ""

    def error(self, message: str):
        flags = [word.split("=")[0] for word in message.split() if word.startswith("-")]
        if "unrecognized arguments" in message and flags:
            from cds3d.options import dotted_keys, groups, load_config

            key = flags[0].lstrip("-").replace("-", "_")
            known = [*dotted_keys(load_config(self.command, [])), "cds3d sweep", *groups()]
            known += [f"--{name}" for name in _FLAGS[self.command]]
            names = [*_MEANT.get(flags[0], ()), f"{key}=VALUE"]
            meant = next((name for name in names if name.split("=")[0] in known), None)
            message += f" (here it is {meant})" if meant else ""
        super().error(" ".join(message.splitlines()))  # what was typed may have several lines


class _Help(argparse.Action):
    """--help: the flags, then the configuration files, whose comments explain every option.

    argv: all of the command line: of a group that it chooses, as edit=shape does, that choice is shown.
    """

    def __init__(self, *args, command: str, argv: list[str], **kwargs):
        super().__init__(*args, nargs=0, help="show this and stop", **kwargs)
        self.command, self.chosen = command, dict(a.split("=", 1) for a in argv if "=" in a and a[0] != "-")
        given = {a.split("=")[0].removeprefix("--") for a in argv}
        if "image" in given:
            self.chosen.setdefault("edit", "latent")
        if "capture" in given:
            self.chosen.setdefault("scene", "capture")

    def __call__(self, parser, namespace, values, option_string=None):
        from cds3d.options import data_folder, groups

        folder = data_folder("configs")
        text = (folder / f"{self.command}.yaml").read_text()
        plain = re.sub(r"^defaults:\n(  - .*\n)+\n?", "", text, flags=re.MULTILINE)  # the groups follow
        parser.epilog = f"options (key=value) and their defaults:\n\n{plain}"
        used = [g for g in groups() if f"- {g}:" in text]
        if used:
            usual = {g: re.search(rf"- {g}: *(\w+)", text)[1] for g in used}
            others = {g: ", ".join(n for n in groups()[g] if n != usual[g]) for g in used}
            lines = [f"  {f'{g}={usual[g]}':17} {f'or {others[g]}' if others[g] else ''}".rstrip() for g in used]
            parser.epilog += "\ngroups (group=name), with their defaults:\n" + "\n".join(lines) + "\n"
            for group in used:
                default = usual[group]
                default = self.chosen[group] if self.chosen.get(group) in groups()[group] else default
                body = _inlined(folder / group / f"{default}.yaml")
                indented = "\n".join("  " + line for line in body.splitlines())
                parser.epilog += f"\n{group}.KEY=VALUE, as in {group}={default}:\n{indented}\n"
        parser.print_help()
        parser.exit()


def _inlined(path) -> str:
    """A configuration file's text, with the files that it is based on in place of its list of defaults.

    Of these, the values that the file sets itself are left out.
    """
    head, found, rest = path.read_text().partition("defaults:\n")
    if not found:
        return head
    names, _, own = rest.partition("\n\n")
    bases = [line.removeprefix("  - ") for line in names.splitlines()]
    text = "".join(_inlined(path.with_name(f"{b}.yaml")) for b in bases if b != "_self_")
    for key in re.findall(r"^(\w+):", own, re.MULTILINE):
        text = re.sub(rf"^{key}: +[^#\s].*\n( +#.*\n)*", "", text, flags=re.MULTILINE)
    for block in re.finditer(r"^(\w+): *(#.*)?\n(  .*\n?)+", own, re.MULTILINE):
        if base := re.search(rf"^{block[1]}: *(#.*)?\n(  .*\n)+", text, re.MULTILINE):
            text = text.replace(base[0], _with_lines(base[0], block[0].splitlines()[1:]))
            own = own.replace(block[0], "")
    return head + text + own


def _with_lines(block: str, lines: list[str]) -> str:
    """A block of a configuration file with these lines in place of those that have the same keys."""
    for line in lines:
        key = line.split(":")[0]
        block, found = re.subn(rf"^{key}:.*$", lambda _: line, block, flags=re.MULTILINE)  # noqa: B023
        block += "" if found else f"{line}\n"
    return block


def _unquoted(text: str) -> str:
    """What a quoted value of an option is to Hydra: quotes of one kind around all of it are left out."""
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def configured(command: str, argv: list[str]):
    """The configuration that a command gets from its flags and options. UserError for what is wrong with them."""
    return _configuration(command, _parser(command, argv).parse_intermixed_args(argv))


def _configuration(command: str, args: argparse.Namespace):
    from cds3d.options import load_config, set_text

    options = [*args.options, *([switch] if (switch := getattr(args, "switch", None)) else [])]
    for place in _PLACES.get(command, ()):
        value = getattr(args, place)
        if value and re.match(r"[\w.]+=", value) and not Path(value).exists():
            options.insert(0, value)
            setattr(args, place, None)
    flags = {k: v for k in _FLAGS[command] if (v := getattr(args, k)) is not None}
    for name in _WHAT_TO_WORK_ON & _FLAGS[command].keys():  # as key=value they mean the same
        given = [o.split("=", 1)[1] for o in options if o.startswith(f"{name}=")]
        if given and given[-1] and given[-1][0] not in "[{":  # which is told as of the wrong type
            options = [o for o in options if not o.startswith(f"{name}=")]
            if given[-1] != "null":
                flags.setdefault(name, _unquoted(given[-1]))
    if "scene" in flags:
        options.insert(0, f"scene={flags.pop('scene')}")
    if flags.get("capture") is not None:
        if any(o.startswith("scene=") and o != "scene=capture" for o in options):
            raise UserError("give either --capture or scene=, not both")
        options.insert(0, "scene=capture")
    if flags.get("run") is not None:
        for other, given in (
            ("--capture", flags.get("capture")),
            ("--image", flags.get("image")),
            ("--views", flags.get("views")),
            ("scene=", any(o.startswith(("scene=", "scene.")) and o != "scene=capture" for o in options)),
        ):
            if given:
                raise UserError(f"--run brings its scene along: give either --run or {other}, not both")
    if flags.get("image") is not None and not any(o.startswith("edit=") for o in options):
        options.insert(0, "edit=latent")
    config = load_config(command, options)
    for name, value in flags.items():
        set_text(config, name, value, f"--{name}")
    for place in _PLACES.get(command, ()):
        if value := getattr(args, place):
            set_text(config, place, value, place)
    return config


def _import_command(command: str) -> Callable:
    """The function that does the command; only then is what it needs imported."""
    apart = {"bench": "bench.run", "list": "commands.listing", "import": "commands.importing"}
    module = f"cds3d.{apart.get(command, f'commands.{command}')}"
    return getattr(importlib.import_module(module), f"{command}_command")


if __name__ == "__main__":
    raise SystemExit(main())
