"""Which tokens of the target prompt take over the cross-attention map of which source token (Prompt-to-Prompt)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import CLIPTokenizer


def token_mapping(tokenizer: CLIPTokenizer, src: str, tgt: str, n: int) -> tuple[Tensor, Tensor]:
    """mapping (n, n), source tokens to target tokens, and taken (n,): 1 where a target token takes a map, else 0.

    n: tokens of an embedded prompt, start, end and padding included; what is longer is cut. Prompts with equally many
    words are mapped word by word, others by aligning their tokens (Hertz et al., ICLR 2023, section 3; the authors'
    AttentionReplace and AttentionRefine).
    """
    words_src, words_tgt = src.split(), tgt.split()
    if len(words_src) == len(words_tgt):
        counts = ([len(_ids(tokenizer, word)) for word in words] for words in (words_src, words_tgt))
        return by_words(*counts, n), torch.ones(n)
    return by_alignment(*(_with_ends(tokenizer, text) for text in (src, tgt)), n)


def by_words(source: Sequence[int], target: Sequence[int], n: int) -> Tensor:
    """Mapping (n, n) from two prompts' tokens a word; position 0 is the start token.

    Words with equally many tokens are mapped token by token. Otherwise each of the target word's k tokens gets 1/k of
    the sum of the source word's maps. What follows the last word (end and padding) stays at its position.

    The authors' code also keeps the words after the last changed one at their position, which misses them where the
    numbers of tokens differ. Here they follow their word. Words that are cut stay at their position.
    """
    mapping = torch.eye(n)
    i = j = 1
    for k_src, k_tgt in zip(source, target, strict=True):
        if max(i + k_src, j + k_tgt) >= n:  # cut: the last position is the end token's
            break
        mapping[:, j : j + k_tgt] = 0
        mapping[i : i + k_src, j : j + k_tgt] = torch.eye(k_src) if k_src == k_tgt else 1 / k_tgt
        i, j = i + k_src, j + k_tgt
    return mapping


def by_alignment(source: Sequence[int], target: Sequence[int], n: int) -> tuple[Tensor, Tensor]:
    """Mapping (n, n) and taken (n,) from two prompts' token ids, start and end included.

    The alignment is the best global one with gap 0, match 1, mismatch -1. A target token without a partner keeps its
    own map. Padding stays at its position.
    """
    mapping, taken = torch.eye(n), torch.ones(n)
    for j, i in enumerate(_aligned(source, target)[:n]):
        mapping[:, j] = 0
        if i is None or i >= n:
            taken[j] = 0
        else:
            mapping[i, j] = 1
    return mapping, taken


def _aligned(x: Sequence[int], y: Sequence[int]) -> list[int | None]:
    """For each element of y the index of its partner in x, or None (Needleman and Wunsch)."""
    score = [[0] * (len(y) + 1) for _ in range(len(x) + 1)]
    for i, a in enumerate(x):
        for j, b in enumerate(y):
            paired = score[i][j] + (1 if a == b else -1)
            score[i + 1][j + 1] = max(score[i + 1][j], score[i][j + 1], paired)
    partners: list[int | None] = [None] * len(y)
    i, j = len(x), len(y)
    while i > 0 and j > 0:
        if score[i][j] == score[i][j - 1]:
            j -= 1
        elif score[i][j] == score[i - 1][j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            partners[j] = i
    return partners


def _ids(tokenizer: CLIPTokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids


def _with_ends(tokenizer: CLIPTokenizer, text: str) -> list[int]:
    return [tokenizer.bos_token_id, *_ids(tokenizer, text), tokenizer.eos_token_id]
