"""The vector quantizer: nearest code, straight-through gradients, commitment loss, and replacement of dead codes.

Distances are always computed in fp32, because the nearest code is a discrete decision, and in chunks, to limit the size of the
distance matrix.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Rows of the distance matrix per chunk: 4096 x 8192 codes in fp32 are 128 MiB.
_ROWS_AT_ONCE = 4096


class Quantized(NamedTuple):
    """Quantised vectors.

    Attributes:
        vectors: (N, D) codes; gradients pass straight through to the vectors before quantisation.
        ids: (N,) int64 indices into the codebook.
        commitment: Scalar commitment loss.
    """

    vectors: Tensor
    ids: Tensor
    commitment: Tensor


class Quantizer(nn.Module):
    """A codebook of `codes` vectors of width `width`.

    Attributes:
        strength: Fraction of the way from vector to code in training, 0 to 1. Below 1 the decoder also sees part of the vector.
    """

    def __init__(self, codes: int, width: int) -> None:
        super().__init__()
        self.strength = 1.0
        self.embedding = nn.Embedding(codes, width)
        # Uniform in +-1/codes, the usual initialisation (van den Oord et al., arXiv 1711.00937, reference code).
        nn.init.uniform_(self.embedding.weight, -1.0 / codes, 1.0 / codes)

    @torch.no_grad()
    def nearest(self, vectors: Tensor) -> Tensor:
        """Ids (N,) int64 of the codes nearest (Euclidean) to `vectors` (N, D)."""
        with torch.autocast(vectors.device.type, enabled=False):
            codes = self.embedding.weight.float()
            squares = codes.square().sum(dim=1)
            chunks = vectors.float().split(_ROWS_AT_ONCE)
            # |z - e|^2 without |z|^2, which is the same for all codes.
            return torch.cat([torch.addmm(squares, chunk, codes.T, alpha=-2.0).argmin(dim=1) for chunk in chunks])

    def lookup(self, ids: Tensor) -> Tensor:
        """Codes (..., D) of `ids` (...)."""
        return self.embedding(ids)

    def forward(self, vectors: Tensor) -> Quantized:
        """Quantise `vectors` (N, D) for training.

        The commitment loss is mse(z, sg(e)) + beta mse(e, sg(z)) with sg the stopped gradient and beta = 1.0, as the
        published tokenizers were trained. The first term, which pulls vectors to their codes, is weighted by `strength`.
        """
        vectors = vectors.float()
        ids = self.nearest(vectors)
        codes = self.lookup(ids).float()
        commitment = self.strength * F.mse_loss(vectors, codes.detach()) + F.mse_loss(codes, vectors.detach())
        return Quantized(vectors + self.strength * (codes - vectors).detach(), ids, commitment)

    @torch.no_grad()
    def replace_codes(self, indices: Tensor, vectors: Tensor) -> None:
        """Replace the (dead) codes at `indices` (M,) by `vectors` (M, D)."""
        self.embedding.weight[indices] = vectors.to(self.embedding.weight)
