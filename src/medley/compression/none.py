"""No compression: fp32 as it is. Exact, four bytes an element."""

from __future__ import annotations

from torch import Tensor, uint8

from medley.compression.codec import Payload, bytes_of, checked, output


class NoCompression:
    name = "none"

    def nbytes(self, n: int) -> int:
        return 4 * n

    def encode(self, x: Tensor) -> Tensor:
        return x.detach().contiguous().clone().view(uint8)

    def decode(self, payload: Payload, n: int, out: Tensor | None = None) -> Tensor:
        view = checked(payload, self.nbytes(n), self.name)
        x = output(n, out)
        bytes_of(x)[:] = view
        return x
