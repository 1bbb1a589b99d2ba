"""A program that computes in something else than float32."""

import contextlib

import torch


@contextlib.contextmanager
def default(kind):
    """Meanwhile torch makes tensors of this type."""
    torch.set_default_dtype(kind)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
