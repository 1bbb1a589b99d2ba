"""CLIP figures: does a picture fit a text, and does it change as the text does?

Formulas: CLIP score of Hessel et al. (2021), without its factor; directional similarity of Gal et al., StyleGAN-NADA
(2021); consistency along a path of Haque et al., Instruct-NeRF2NeRF (2023). All work on embeddings of unit length.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from cds3d.guidance.text import BYTES
from cds3d.metrics.pretrained import load_network, located, pixels, told, unreadable
from cds3d.quiet import quiet
from tensorf.errors import UserError

EXAMPLE = "openai/clip-vit-large-patch14"
# Of OpenAI's CLIP; OpenCLIP's models in transformers' format have the same.
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Clip:
    """A CLIP model, loaded once and asked many times."""

    def __init__(
        self, path: str, device: torch.device, fit: Literal["crop", "squash"] = "crop", option: str = "--clip"
    ):
        """path: a hub id such as "openai/clip-vit-large-patch14", or a local folder of the same files.

        fit: how a picture that is not square becomes one. "crop" is CLIP's own way: the shorter side is resized to the
        model's size, bicubic with antialiasing, and the middle is cut out. "squash" is that of Instruct-NeRF2NeRF's
        scores: the whole picture is resized to a square, bicubic without antialiasing.
        option: what the user set, for messages. Raises UserError if the model or its tokenizer cannot be loaded.
        """
        if fit not in ("crop", "squash"):
            raise ValueError(f"fit is crop or squash, not {fit!r}")
        self.device, self.fit = device, fit
        self._model = load_network(CLIPModel, path, option=option, example=EXAMPLE, device=device)
        self._size = self._model.config.vision_config.image_size
        self._longest = self._model.config.text_config.max_position_embeddings
        try:
            with quiet():
                self._tokenizer = CLIPTokenizer.from_pretrained(**located(path))
        except Exception as error:  # the tokenizers library raises plain Exception
            raise unreadable(path, option, EXAMPLE, error) from error
        # Without its files transformers makes a tokenizer of two words and says nothing.
        if not BYTES < len(self._tokenizer) <= self._model.config.text_config.vocab_size:
            raise UserError(
                f"{told(option, path)} has no tokenizer of its own: vocab.json and merges.txt have to be there"
            )
        self._texts: dict[str, Tensor] = {}

    @torch.no_grad()
    def image(self, image: Tensor) -> Tensor:
        """(H, W, 3) in [0, 1], any size -> its embedding (D,), of unit length, on the CPU."""
        x = self._square(pixels(image, self.device))
        mean, std = (torch.tensor(v, device=self.device).view(1, 3, 1, 1) for v in (_MEAN, _STD))
        return self._unit(self._model.get_image_features(pixel_values=(x - mean) / std))

    @torch.no_grad()
    def text(self, text: str) -> Tensor:
        """The embedding (D,) of `text`, of unit length, on the CPU. What is longer than the model takes is cut off."""
        if text not in self._texts:
            tokens = self._tokenizer([text], truncation=True, max_length=self._longest, return_tensors="pt")
            tokens = {k: tokens[k].to(self.device) for k in ("input_ids", "attention_mask")}
            self._texts[text] = self._unit(self._model.get_text_features(**tokens))
        return self._texts[text]

    def _square(self, x: Tensor) -> Tensor:
        """(1, 3, H, W) -> (1, 3, S, S). "squash" leaves what bicubic overshoots [0, 1] by, as its source does."""
        size = self._size
        if self.fit == "squash":
            return F.interpolate(x, (size, size), mode="bicubic", align_corners=False)
        height, width = x.shape[2:]
        short = min(height, width)
        resized = (max(size, size * height // short), max(size, size * width // short))
        x = F.interpolate(x, resized, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
        top, left = (resized[0] - size) // 2, (resized[1] - size) // 2
        return x[:, :, top : top + size, left : left + size]

    @staticmethod
    def _unit(output) -> Tensor:
        # transformers 4 gives the features themselves, transformers 5 an object that holds them.
        features = output if isinstance(output, Tensor) else output.pooler_output
        return F.normalize(features[0].float(), dim=0).cpu()


def clip_score(image: Tensor, text: Tensor) -> float:
    """Cosine in [-1, 1] of an image's and a text's embeddings (D,)."""
    return float(F.cosine_similarity(image, text, dim=0))


def is_nearer_to_target(image: Tensor, source: Tensor, target: Tensor) -> bool:
    """Is the image (D,) nearer to the target prompt (D,) than to the source prompt (D,)? Ties count as no.

    The share of edits for which it is is the CLIP accuracy of CDS's Tables 1 and 3. The paper gives neither its model
    nor its wording. Here the prompts are embedded as they are given to the edit ("a cat", "a dog"), without a template.
    """
    return clip_score(image, target) > clip_score(image, source)


def clip_direction(before: Tensor, after: Tensor, source: Tensor, target: Tensor) -> float:
    """Directional similarity in [-1, 1]: the cosine of (after - before) and (target - source).

    before, after: embeddings (D,) of the unedited and the edited picture; source, target: of the prompts. An edit that
    changes nothing has no direction: 0.
    """
    return float(F.cosine_similarity(after - before, target - source, dim=0))


def view_direction(before: Tensor, after: Tensor, source: Tensor, target: Tensor) -> float:
    """Mean `clip_direction` over views.

    before, after: embeddings (views, D) of the source's and the edit's renders from the same cameras, in one order;
    source, target: embeddings (D,) of the prompts. No view gives nan. ValueError if the counts differ.
    """
    _same(before, after)
    return float(F.cosine_similarity(after - before, (target - source)[None], dim=1).mean())


def path_consistency(before: Tensor, after: Tensor) -> float:
    """CLIP direction consistency along a path, in [-1, 1]: is the edit's direction the same from frame to frame?

    The mean over frames i of the cosine of (after[i] - before[i]) and (after[i + 1] - before[i + 1]), where before and
    after are embeddings (frames, D) of the source's and the edit's renders along the path, in order. Instruct-NeRF2NeRF
    introduced the figure. Papers that followed print it with two formulas: this one, and `motion_consistency`.
    Fewer than two frames give nan. ValueError if the counts differ.
    """
    _same(before, after)
    change = after - before
    return float(F.cosine_similarity(change[:-1], change[1:], dim=1).mean())


def motion_consistency(before: Tensor, after: Tensor) -> float:
    """The other formula of CLIP direction consistency, in [-1, 1]: do the edit's frames change as the source's do?

    The mean over frames i of the cosine of (before[i + 1] - before[i]) and (after[i + 1] - after[i]). Arguments and
    errors are those of `path_consistency`.
    """
    _same(before, after)
    return float(F.cosine_similarity(before.diff(dim=0), after.diff(dim=0), dim=1).mean())


def _same(before: Tensor, after: Tensor) -> None:
    if before.shape != after.shape or before.ndim != 2:
        raise ValueError(f"two lists of embeddings of one shape are needed, not {before.shape} and {after.shape}")
