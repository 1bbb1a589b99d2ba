"""Prompts as a U-Net takes them: the text encoders of Stable Diffusion 1.x, 2.x and XL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer


@dataclass(frozen=True)
class Prompt:
    """An embedded prompt: tokens (1, n, width); pooled (1, width), of XL only, is the embedding of the whole text."""

    tokens: Tensor
    pooled: Tensor | None = None


BYTES = 256  # every CLIP tokenizer has more words than there are bytes


class ClipText:
    """One CLIP text encoder, of which the last hidden state is used (SD 1.x and 2.x). A long text is cut."""

    def __init__(self, tokenizer: CLIPTokenizer, encoder: CLIPTextModel):
        self.tokenizers, self.encoders = [tokenizer], [encoder]

    def embed(self, text: str) -> Prompt:
        encoder = self.encoders[0]
        return Prompt(encoder(_ids(self.tokenizers[0], encoder, text)).last_hidden_state)


class XLText:
    """Two CLIP text encoders, of which the states before the last layer are used, side by side (SDXL). A text that is
    too long is cut.

    The second one's projected embedding is the pooled one. zero_empty: the empty prompt is all zeros, as SDXL base was
    trained (`force_zeros_for_empty_prompt` of its pipeline).
    """

    def __init__(
        self,
        tokenizers: Sequence[CLIPTokenizer],
        encoders: tuple[CLIPTextModel, CLIPTextModelWithProjection],
        zero_empty: bool,
    ):
        self.tokenizers, self.encoders, self.zero_empty = list(tokenizers), list(encoders), zero_empty

    def embed(self, text: str) -> Prompt:
        outputs = [
            encoder(_ids(tokenizer, encoder, text), output_hidden_states=True)
            for tokenizer, encoder in zip(self.tokenizers, self.encoders, strict=True)
        ]
        tokens, pooled = torch.cat([o.hidden_states[-2] for o in outputs], -1), outputs[1].text_embeds
        if self.zero_empty and not text:
            return Prompt(torch.zeros_like(tokens), torch.zeros_like(pooled))
        return Prompt(tokens, pooled)


def words_cut(text: str, tokenizer: CLIPTokenizer, encoder) -> str:
    """The end of a text that the encoder does not see, from a word's beginning on; "" if it sees all."""
    seen = _limit(tokenizer, encoder) - 2  # beginning and end have a token each
    tokens = tokenizer.tokenize(text)
    if len(tokens) <= seen:
        return ""
    while seen and not tokens[seen - 1].endswith("</w>"):
        seen -= 1
    return tokenizer.decode(tokenizer.convert_tokens_to_ids(tokens[seen:])).strip()


def _limit(tokenizer: CLIPTokenizer, encoder) -> int:
    """Tokens that the encoder takes, the first and the last with them."""
    return min(tokenizer.model_max_length, encoder.config.max_position_embeddings)


def _ids(tokenizer: CLIPTokenizer, encoder, text: str) -> Tensor:
    length = _limit(tokenizer, encoder)
    ids = tokenizer(text, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return ids.input_ids.to(encoder.device)
