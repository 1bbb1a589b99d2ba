"""What is edited: held-out scenes, a source and a target prompt each, and the attributes of the true edit."""

from __future__ import annotations

from dataclasses import dataclass

from cds3d.pocket.world.scenes import ANIMALS, COLORS, FLOWERS, OBJECTS, Attributes, Jitter, article

# Seeds that nothing was trained on. Settings are tuned on the first stretch and judged on the second.
TUNING_SEED, JUDGING_SEED = 3_000_000, 4_000_000
_LOOKS, _LOOKS_APART = 16, 10_000_000  # each scene has looks of its own


@dataclass(frozen=True)
class Case:
    """One scene and what it should become."""

    source: Attributes
    target: Attributes
    src: str
    tgt: str


def _prompt(words: str) -> str:
    return f"{article(words)} {words}"


def _animal(target: str):
    def case(source: Attributes, draw: Jitter) -> Case:
        cat = source.edited(species="cat")
        return Case(cat, cat.edited(species=target), "a cat", _prompt(target))

    return case


def _color(source: Attributes, draw: Jitter) -> Case:
    flower = source.edited(species=draw.choice("flower", FLOWERS))
    color = draw.choice("new color", tuple(c for c in COLORS if c != flower.color))
    return Case(flower, flower.edited(color=color), _prompt(f"{flower.color} flower"), _prompt(f"{color} flower"))


def _species(source: Attributes, draw: Jitter) -> Case:
    flower = source.edited(species=draw.choice("flower", FLOWERS))
    species = draw.choice("new flower", tuple(f for f in FLOWERS if f != flower.species))
    color = flower.color
    return Case(
        flower, flower.edited(species=species), _prompt(f"{color} {flower.species}"), _prompt(f"{color} {species}")
    )


def _material(source: Attributes, draw: Jitter) -> Case:
    thing = source.edited(species=draw.choice("object", OBJECTS), material="plastic")
    material = draw.choice("new material", ("wooden", "metal"))
    noun = thing.species
    return Case(thing, thing.edited(material=material), _prompt(f"{thing.color} {noun}"), _prompt(f"{material} {noun}"))


IMAGE_TASKS = {
    "color": _color,
    "species": _species,
    "material": _material,
    **{f"cat-{other}": _animal(other) for other in ANIMALS if other != "cat"},
}

# Shipped captures and the prompts that they are edited towards.
SHIPPED_FIELDS = {"flower": "a red flower", "mug": "a blue mug", "cat": "a dog"}


def cases(task: str, count: int, *, tuning: bool = False) -> list[Case]:
    """The first `count` cases of an image task; scenes of different tasks and of tuning and judging differ."""
    first = (TUNING_SEED if tuning else JUDGING_SEED) + 10_000 * list(IMAGE_TASKS).index(task)
    return [IMAGE_TASKS[task](Attributes.sample(seed), Jitter(seed)) for seed in range(first, first + count)]


def other_looks(target: Attributes) -> list[int]:
    """Seeds of other coats, or other pieces of wood or metal, than the true edit's (`build_scene`).

    Empty where the prompt names the colour: it leaves nothing open then.
    """
    return [] if target.painted else [target.seed + _LOOKS_APART * k for k in range(1, _LOOKS + 1)]
