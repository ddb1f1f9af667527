"""Products and solves: batches against one matrix at a time, and NaN where a matrix is singular."""

from __future__ import annotations

import re

import numpy as np
import pytest
from support import Library, numpy_tree

from organics_core import linalg
from organics_core.implicit import solve_by_products


def matrices() -> np.ndarray:
    """A batch (2, 3) of 2 x 2 matrices, of which one is singular to the last bit."""
    found = np.random.default_rng(0).standard_normal((2, 3, 2, 2)) + 3 * np.eye(2)
    found[1, 0] = [[1.0, 2.0], [2.0, 4.0]]
    return found


def test_an_iteration_that_breaks_down_starts_again(xp64: Library) -> None:
    """In small integers a scalar product becomes 0 exactly, by which the next step would divide; beside one that is
    solved at once."""
    matrix = np.array([[-1.0, -2.0, 0.0], [2.0, -1.0, 2.0], [-1.0, 2.0, -1.0]])
    right = np.array([[0.0, -1.0, -1.0], [0.0, 0.0, 0.0]])
    product = xp64.array(matrix.T)
    found = linalg.bicgstab(
        xp64.namespace, lambda v: v @ product, xp64.array(right), xp64.array(0.0 * right), 1e-12, max_steps=30
    )
    xp64.assert_close(found, np.linalg.solve(matrix, right.T).T, rtol=1e-9, atol=1e-12)


def test_solutions_by_products_are_as_good_for_small_members(xp: Library) -> None:
    """The size of one member is no one else's tolerance; one without a solution is NaN."""
    matrix = np.array([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [1.0, 0.0, 4.0]])
    right = np.array([1e-10, 1.0, 1e10])[:, None] * np.array([1.0, -2.0, 0.5])
    product = xp.array(matrix.T)
    found = solve_by_products(xp.namespace, lambda v: v @ product, xp.array(right))
    want = np.linalg.solve(matrix, right.T).T
    xp.assert_close(found / xp.array(want), np.ones((3, 3)), rtol=1e-9, atol=0)
    singular = xp.array(np.diag([1.0, 0.0, 2.0]))
    lost = solve_by_products(xp.namespace, lambda v: v @ singular, xp.array([[1.0, 1.0, 1.0], [1.0, 0.0, 1.0]]))
    assert np.isnan(numpy_tree(lost)).all(axis=-1).tolist() == [True, False]


def test_solutions_and_inverses(xp: Library) -> None:
    """Of one matrix and of batches, broadcast both ways; a singular one is NaN, and the others are what they are."""
    ns, every = xp.namespace, matrices()
    rng = np.random.default_rng(1)
    right, few = rng.standard_normal((2, 3, 2, 4)), rng.standard_normal((3, 2, 4))
    for wide in (right, few):
        wide_everywhere = np.broadcast_to(wide, (2, 3, 2, 4))
        found = linalg.solve(ns, xp.array(every), xp.array(wide))
        inverse, vectors = (
            linalg.inverse(ns, xp.array(every)),
            linalg.solve_vector(ns, xp.array(every), xp.array(wide[..., 0])),
        )
        xp.assert_kind(found, (2, 3, 2, 4))
        xp.assert_kind(inverse, (2, 3, 2, 2))
        xp.assert_kind(vectors, (2, 3, 2))
        for index in np.ndindex(2, 3):
            one, want = every[index], wide_everywhere[index]
            if index == (1, 0):
                assert not np.isfinite(numpy_tree(found)[index]).any()
                assert not np.isfinite(numpy_tree(inverse)[index]).any()
                continue
            exact = np.linalg.inv(one)
            xp.assert_close(found[(*index, ...)], exact @ want, rtol=1e-12, atol=1e-12)
            xp.assert_close(vectors[(*index, ...)], exact @ want[:, 0], rtol=1e-12, atol=1e-12)
            xp.assert_close(inverse[(*index, ...)], exact, rtol=1e-12, atol=1e-12)
            single = linalg.solve(ns, xp.array(one), xp.array(wide))
            xp.assert_close(single, exact @ wide, rtol=1e-12, atol=1e-12)
    singular = xp.array(every[1, 0])
    for lost in (
        linalg.solve(ns, singular, xp.array(right[0, 0])),
        linalg.solve(ns, singular, xp.array(few)),
        linalg.inverse(ns, singular),
        linalg.solve_vector(ns, singular, xp.array([1.0, 2.0])),
    ):
        assert lost.dtype == xp.dtype
        assert not np.isfinite(numpy_tree(lost)).any()
    assert tuple(linalg.solve(ns, singular, xp.array(few)).shape) == (3, 2, 4)
    assert tuple(linalg.inverse(ns, singular).shape) == (2, 2)


def test_products(xp: Library) -> None:
    """Of matrices, of vectors along any axis, diagonals, transposes, and batch axes that are put in front."""
    ns, every = xp.namespace, matrices()
    other = np.random.default_rng(2).standard_normal((3, 2, 2))
    xp.assert_close(linalg.matmul(ns, xp.array(every), xp.array(other)), every @ other, rtol=1e-12, atol=1e-12)
    for axis in (-1, -2):
        want = np.sum(every * other, axis=axis)
        xp.assert_close(linalg.vecdot(ns, xp.array(every), xp.array(other), axis), want, rtol=1e-12, atol=1e-12)
    xp.assert_close(
        linalg.vecdot(ns, xp.array(every), xp.array(other)), np.sum(every * other, axis=-1), rtol=1e-12, atol=1e-12
    )
    xp.assert_close(linalg.transpose(ns, xp.array(other)), np.swapaxes(other, -1, -2))
    vectors = other[..., 0]
    xp.assert_close(linalg.diagonal_matrix(ns, xp.array(vectors)), np.stack([np.diag(vector) for vector in vectors]))
    wide = xp.array(every)
    assert linalg.widen(ns, wide, (2, 3)) is wide
    xp.assert_close(linalg.widen(ns, xp.array(other), (5, 3)), np.broadcast_to(other, (5, 3, 2, 2)))


def test_shapes_broadcast_as_in_numpy() -> None:
    """Or are refused, all of them named."""
    for shapes in (
        (),
        ((),),
        ((2, 3), ()),
        ((2, 1), (3,)),
        ((1, 3), (2, 1), (3,)),
        ((3,), (2, 1, 3)),
        ((0,), (1,)),
        ((1,), (0,)),
        ((4, 1, 1), (1, 2, 1), (3,)),
    ):
        assert linalg.broadcast_shapes(*shapes) == np.broadcast_shapes(*shapes)
    for wrong in (((2,), (3,)), ((2, 3), (2,)), ((0,), (2,)), ((2, 3), (3, 3, 3))):
        with pytest.raises(ValueError, match=re.escape(f"shapes {wrong} do not broadcast")):
            linalg.broadcast_shapes(*wrong)
