"""Merkle trees against the published vectors and against the definition of RFC 6962, 2.1, written down naively."""

from __future__ import annotations

import hashlib

import pytest

from llmxai.evidence.verifier.proof import (
    Frontier,
    consistency_proof,
    inclusion_proof,
    is_consistent,
    is_included,
    leaf_hash,
    tree_hash,
)

# certificate-transparency's reference inputs and roots of the first 1, 2, ... 8 of them
# (google/certificate-transparency, cpp/merkletree/merkle_tree_test.cc; transparency-dev/merkle, testonly/constants.go)
LEAVES = [
    bytes.fromhex(text)
    for text in (
        *("", "00", "10", "2021", "3031", "40414243", "5051525354555657"),
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = (
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)
# the same sources: (leaf, tree size, path), leaves counted from 0
PATHS = (
    (0, 1, ()),
    (
        0,
        8,
        (
            "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
        ),
    ),
    (
        5,
        8,
        (
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ),
    ),
    (2, 3, ("fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",)),
)
GROWTH = (
    (1, 1, ()),
    (
        1,
        8,
        (
            "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
        ),
    ),
    (
        6,
        8,
        (
            "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ),
    ),
    (
        2,
        5,
        (
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        ),
    ),
)
HASHES = [leaf_hash(leaf) for leaf in LEAVES]


def naive_root(leaves: list[bytes]) -> bytes:
    """RFC 6962, 2.1, word for word."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return hashlib.sha256(b"\x01" + naive_root(leaves[:k]) + naive_root(leaves[k:])).digest()


@pytest.mark.parametrize("size", range(1, 9))
def test_published_roots(size: int) -> None:
    frontier = Frontier()
    for leaf in LEAVES[:size]:
        frontier.add(leaf)
    assert frontier.root().hex() == tree_hash(HASHES[:size]).hex() == ROOTS[size - 1]


def test_the_empty_tree() -> None:
    assert Frontier().root() == tree_hash([]) == hashlib.sha256(b"").digest()


@pytest.mark.parametrize(("index", "size", "path"), PATHS)
def test_published_inclusion_proofs(index: int, size: int, path: tuple[str, ...]) -> None:
    assert tuple(step.hex() for step in inclusion_proof(HASHES[:size], index)) == path
    steps = [bytes.fromhex(step) for step in path]
    assert is_included(LEAVES[index], index, size, steps, bytes.fromhex(ROOTS[size - 1]))


@pytest.mark.parametrize(("old", "new", "path"), GROWTH)
def test_published_consistency_proofs(old: int, new: int, path: tuple[str, ...]) -> None:
    assert tuple(step.hex() for step in consistency_proof(HASHES[:new], old)) == path
    steps = [bytes.fromhex(step) for step in path]
    assert is_consistent(old, new, steps, bytes.fromhex(ROOTS[old - 1]), bytes.fromhex(ROOTS[new - 1]))


def test_every_proof_up_to_20_leaves_and_none_of_the_wrong_ones() -> None:
    leaves = [bytes([i]) * (i % 5) for i in range(20)]
    hashes = [leaf_hash(leaf) for leaf in leaves]
    roots = [naive_root(leaves[:size]) for size in range(21)]
    frontier = Frontier()
    for size in range(1, 21):
        frontier.add(leaves[size - 1])
        assert frontier.root() == tree_hash(hashes[:size]) == roots[size]
        for index in range(size):
            path = inclusion_proof(hashes[:size], index)
            assert is_included(leaves[index], index, size, path, roots[size])
            assert not is_included(b"another", index, size, path, roots[size])
            assert not is_included(leaves[index], index, size, [*path, path[-1] if path else b""], roots[size])
            assert not any(is_included(leaves[index], index, size, path[:n], roots[size]) for n in range(len(path)))
        for old in range(1, size + 1):
            path = consistency_proof(hashes[:size], old)
            assert is_consistent(old, size, path, roots[old], roots[size])
            assert not is_consistent(old, size, path, roots[old - 1], roots[size])
            assert not is_consistent(old, size, path, roots[old], roots[size - 1])
            assert old == size or not is_consistent(old, size, path[:-1], roots[old], roots[size])


@pytest.mark.parametrize(("old", "new"), [(0, 3), (4, 3), (-1, 3)])
def test_sizes_that_prove_nothing(old: int, new: int) -> None:
    assert not is_consistent(old, new, [], b"", b"")
    assert not is_included(b"", new, old, [], b"")
