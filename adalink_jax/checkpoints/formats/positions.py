"""Position embeddings of a square grid, for a grid of another size."""

import numpy as np

_A = -0.75  # The cubic's parameter in PyTorch.


def interpolated(positions: np.ndarray, first: int, stored: int, wanted: int) -> np.ndarray:
    """Interpolates position embeddings bicubically, as DINOv2 does.

    Args:
      positions: float32 [first + stored², D]; the grid's rows follow each other.
      first: number of leading embeddings that belong to no patch and are kept.
      stored: positions along a side.
      wanted: positions along a side of the result.

    Returns:
      float32 [first + wanted², D].

    Raises:
      ValueError: there are not so many embeddings.
    """
    grid = positions[first:].reshape(stored, stored, -1).astype(np.float64)
    weights = _weights(stored, wanted)
    grid = np.einsum("ij,kl,jld->ikd", weights, weights, grid)
    grid = grid.reshape(wanted**2, -1).astype(np.float32)
    return np.concatenate([positions[:first], grid])


def _weights(stored: int, wanted: int) -> np.ndarray:
    """Returns the weights [wanted, stored] along one side; the outermost positions repeat."""
    places = (np.arange(wanted) + 0.5) * stored / wanted - 0.5
    weights = np.zeros((wanted, stored))
    for row, place in enumerate(places):
        for near in range(int(np.floor(place)) - 1, int(np.floor(place)) + 3):
            weights[row, np.clip(near, 0, stored - 1)] += _cubic(abs(place - near))
    return weights


def _cubic(distance: float) -> float:
    if distance <= 1:
        return ((_A + 2) * distance - (_A + 3)) * distance**2 + 1
    return ((_A * distance - 5 * _A) * distance + 8 * _A) * distance - 4 * _A
