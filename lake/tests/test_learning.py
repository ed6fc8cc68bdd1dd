"""`fit_blocks`: what a model learns block by block is what it learns of the same blocks in memory."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clachan_lake.learning import fit_blocks
from clachan_lake.local import LocalLake
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import PCA, IncrementalPCA
from sklearn.linear_model import LinearRegression, SGDClassifier, SGDRegressor


class Seen:
    """A model that remembers what it was shown."""

    def __init__(self) -> None:
        self.blocks: list[Any] = []

    def partial_fit(self, block: Any, labels: Any = None) -> None:
        self.blocks.append((np.array(block), labels))


def numbers(lake: LocalLake, name: str, values: Any, order: str = "C") -> Any:
    with lake.transaction():
        lake.arrays.create(name, values.shape, values.dtype, order=order)[...] = values
    return lake.arrays[name]


@pytest.mark.parametrize("order", ["C", "F"])
def test_every_row_is_shown_once_a_pass_in_blocks_alike(lake: LocalLake, order: str) -> None:
    values = np.arange(1003 * 6, dtype=np.float32).reshape(1003, 2, 3)
    kept = numbers(lake, "a", values if order == "C" else np.moveaxis(values, 0, -1), order)
    model = fit_blocks(Seen(), kept, size=2400, passes=2)
    lengths = [len(block) for block, _labels in model.blocks]
    assert (sum(lengths), max(lengths) - min(lengths), max(lengths) <= 100) == (2006, 1, True)
    rows = np.concatenate([block for block, _labels in model.blocks])
    np.testing.assert_array_equal(rows, np.tile(values.reshape(1003, 6), (2, 1)))


def test_a_pca_of_blocks_is_the_pca_of_all(lake: LocalLake) -> None:
    random = np.random.default_rng(7)
    values = random.normal(size=(4000, 5)) * [9, 4, 1, 0.5, 0.1] + [1, 2, 3, 4, 5]
    model = fit_blocks(IncrementalPCA(2), numbers(lake, "a", values), size=20_000)
    whole = PCA(2).fit(values)
    np.testing.assert_allclose(model.mean_, values.mean(axis=0))
    np.testing.assert_allclose(model.explained_variance_, whole.explained_variance_, rtol=1e-3)
    assert abs(np.abs(np.sum(model.components_ * whole.components_, axis=1)) - 1).max() < 1e-4


def test_clusters_are_found(lake: LocalLake) -> None:
    random = np.random.default_rng(7)
    middles = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    values = middles[random.integers(0, 3, 9000)] + random.normal(scale=0.5, size=(9000, 2))
    model = fit_blocks(MiniBatchKMeans(3, random_state=0, n_init=3), numbers(lake, "a", values), size=16_000)
    found = model.cluster_centers_[np.lexsort(model.cluster_centers_.T)]
    np.testing.assert_allclose(found, middles[np.lexsort(middles.T)], atol=0.2)


def test_a_target_and_its_classes(lake: LocalLake) -> None:
    random = np.random.default_rng(7)
    values = random.normal(size=(6000, 2))
    # the last class comes only in the last block: a classifier must know it from the first
    labels = np.where(values[:, 0] > 0, 1, 0)
    labels[-30:] = 5
    rows, target = numbers(lake, "a", values), numbers(lake, "b", labels)
    model = fit_blocks(SGDClassifier(random_state=0), rows, target, size=8000, passes=2)
    assert model.classes_.tolist() == [0, 1, 5]
    assert model.score(values[:-30], labels[:-30]) > 0.9
    height = numbers(lake, "c", values @ [2.0, -1.0] + 3)
    line = fit_blocks(SGDRegressor(random_state=0, tol=None), rows, height, size=8000, passes=3)
    exact = LinearRegression().fit(values, values @ [2.0, -1.0] + 3)
    np.testing.assert_allclose(line.coef_, exact.coef_, atol=0.01)
    assert fit_blocks(SGDClassifier(), rows, target, classes=[0, 1, 5, 9]).classes_.tolist() == [0, 1, 5, 9]


def test_what_cannot_be_learned_is_refused(lake: LocalLake, tmp_path: Path) -> None:
    rows = numbers(lake, "a", np.zeros((4, 2)))
    few, none, bare = (numbers(lake, name, np.zeros(shape)) for name, shape in (("b", (3,)), ("c", (0, 2)), ("d", ())))
    with pytest.raises(TypeError, match=r"^model LinearRegression: no partial_fit, expected one that learns block"):
        fit_blocks(LinearRegression(), rows)
    with pytest.raises(ValueError, match=r"^target 'b', shape: \(3,\), expected 4 rows$"):
        fit_blocks(Seen(), rows, few)
    for empty in (none, bare):
        with pytest.raises(ValueError, match=rf"^array '{empty.name}', shape: \(.*\), expected rows$"):
            fit_blocks(Seen(), empty)
