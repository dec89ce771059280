"""The block pool: counts, the prefix tree, eviction."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3.engine import blocks as blocks_module
from qwen3.engine.blocks import STALE, BlockPool, Node
from qwen3.errors import UsageError
from tests.engine.scheduler_world import check_pool


def ids(n: int) -> tuple[int, ...]:
    return tuple(range(16 * n, 16 * n + 16))


def fill(pool: BlockPool, *numbers: int, identity: str = "a", tenant: str = "") -> tuple[list[int], list[Node]]:
    """Blocks of a sequence with the given content, registered."""
    blocks, nodes = [], []
    parent = None
    for n in numbers:
        blocks.append(pool.take())
        parent = pool.register(parent or pool.root(identity, tenant), ids(n), blocks[-1], 1)
        nodes.append(parent)
    return blocks, nodes


def walk(pool: BlockPool, *numbers: int, identity: str = "a") -> list[int]:
    """The blocks that are found for a content."""
    node, found = pool.roots.get(identity), []
    for n in numbers:
        node = node and node.children.get(ids(n))
        if node is None:
            break
        found.append(node.block)
    return found


def test_block_zero_is_never_given_out_and_all_others_are() -> None:
    pool = BlockPool(5)
    assert sorted(pool.take() for _ in range(4)) == [1, 2, 3, 4]
    assert pool.take() == 0
    check_pool(pool, [[1, 2, 3, 4]])
    pool.release([1, 2, 3, 4])
    assert (pool.free, pool.used, pool.cached) == (4, 0, 0)


@pytest.mark.parametrize(("blocks", "size"), [(0, 16), (1, 16), (-3, 16), (8, 0)])
def test_a_pool_without_a_block_is_refused(blocks: int, size: int) -> None:
    with pytest.raises(UsageError, match="at least 2 blocks"):
        BlockPool(blocks, block_size=size)


def test_released_blocks_with_a_node_are_cached_and_found() -> None:
    pool = BlockPool(8)
    blocks, nodes = fill(pool, 1, 2, 3)
    private = pool.take()
    pool.release([*blocks, private])
    assert (pool.free, pool.used, pool.cached) == (4, 0, 3)
    assert walk(pool, 1, 2, 3) == blocks
    assert walk(pool, 1, 3) == blocks[:1]
    assert walk(pool, 2) == []
    assert pool.hold(nodes[0]) == blocks[0]
    check_pool(pool, [[blocks[0]]])


def test_identities_do_not_see_one_another() -> None:
    pool = BlockPool(8)
    a, _ = fill(pool, 1, 2)
    b, _ = fill(pool, 1, 2, identity="b")
    assert walk(pool, 1, 2) == a
    assert walk(pool, 1, 2, identity="b") == b
    assert walk(pool, 1, 2, identity="c") == []
    pool.forget("a")
    assert walk(pool, 1, 2) == []
    assert walk(pool, 1, 2, identity="b") == b
    check_pool(pool, [a, b])
    pool.release(a)
    pool.release(b)
    assert (pool.free, pool.cached) == (5, 2)
    pool.forget()
    assert (pool.free, pool.cached, pool.roots) == (7, 0, {})


def test_the_least_recently_used_leaf_goes_first() -> None:
    pool = BlockPool(6)
    old, nodes = fill(pool, 1, 2, 3)
    pool.release(old)
    young, _ = fill(pool, 4, 5)
    pool.release(young)
    pool.hold(nodes[0])  # used again: 1 is now the youngest
    pool.release(old[:1])
    gone = []
    for _ in range(5):
        gone.append(pool.take())
        assert (pool.free, pool.cached) == (0, 5 - len(gone)), "one at a time, nobody's children with it"
        check_pool(pool, [gone])
    assert gone == [old[2], old[1], young[1], young[0], old[0]]


def test_a_parent_never_leaves_a_child_behind() -> None:
    """Two rows computed the same block; the one whose copy has the node ends, the other one's child is still in use."""
    pool = BlockPool(6)
    first, (parent,) = fill(pool, 1)
    mine = pool.take()
    assert pool.register(pool.root("a"), ids(1), mine, 2) is parent
    assert parent.block == first[0]
    child_block = pool.take()
    child = pool.register(parent, ids(2), child_block, 2)
    pool.release(first)
    rest = [pool.take() for _ in range(3)]
    assert first[0] in rest, "it was evicted"
    assert not parent.alive
    assert not child.alive
    assert pool.register(child, ids(3), mine, 3) is child, "nothing is registered below a dead node"
    check_pool(pool, [[mine, child_block], rest])
    pool.release([mine, child_block])
    pool.release(rest)
    assert (pool.free, pool.cached) == (5, 0)


def test_an_idle_copy_is_freed_for_one_in_use() -> None:
    pool = BlockPool(4)
    blocks, (node,) = fill(pool, 1)
    pool.release(blocks)
    mine = pool.take()
    assert mine != blocks[0]
    assert pool.register(pool.root("a"), ids(1), mine, 7) is node
    assert (node.block, node.step) == (mine, 7)
    assert (pool.free, pool.cached, pool.used) == (2, 0, 1)
    check_pool(pool, [[mine]])


def test_forgotten_blocks_in_use_stay_in_use_until_released() -> None:
    pool = BlockPool(4)
    blocks, nodes = fill(pool, 1, 2)
    pool.forget("a")
    assert pool.used == 2
    check_pool(pool, [blocks])
    assert not nodes[1].alive
    pool.release(blocks)
    assert pool.free == 3


def test_a_flood_pushes_out_its_own() -> None:
    """What one tenant asks, under however many identities (salts), leaves the others their equal shares."""
    pool = BlockPool(101)
    mine, _ = fill(pool, *range(40), identity="mine", tenant="me")
    pool.release(mine)
    for n in range(50):
        flood, _ = fill(pool, *range(100, 130), identity=f"salt {n}", tenant="flood")
        pool.release(flood)
        check_pool(pool, [])
    assert walk(pool, *range(40), identity="mine") == mine
    third, _ = fill(pool, *range(200, 280), identity="third", tenant="third")
    pool.release(third)
    assert {name: tenant.nodes for name, tenant in pool.tenants.items()} == {"me": 10, "flood": 10, "third": 80}
    assert walk(pool, *range(40), identity="mine") == mine[:10]
    check_pool(pool, [])


def test_what_runs_may_still_need_everything() -> None:
    pool = BlockPool(11)
    for name in "abc":
        pool.release(fill(pool, 1, 2, 3, identity=name, tenant=name)[0])
    held, _ = fill(pool, *range(10, 20), identity="d", tenant="d")
    assert 0 not in held
    assert (pool.free, pool.cached, pool.used) == (0, 0, 10)
    assert pool.take() == 0
    assert list(pool.tenants) == ["d"]
    check_pool(pool, [held])


def test_stale_blocks_go_first_whoever_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(blocks_module, "monotonic", lambda: now)
    pool = BlockPool(21)
    pool.release(fill(pool, 1, 2, 3, identity="small", tenant="small")[0])
    now += STALE - 1
    fresh, _ = fill(pool, 4, identity="small", tenant="small")
    pool.release(fresh)
    large, _ = fill(pool, *range(10, 26), identity="large", tenant="large")
    pool.release(large)
    assert (pool.free, pool.cached) == (0, 20)
    now += 2
    taken = [pool.take() for _ in range(4)]
    assert walk(pool, 1, identity="small") == []
    assert walk(pool, 4, identity="small") == fresh, "what is fresh is not taken with it"
    assert walk(pool, *range(10, 26), identity="large") == large[:-1]
    check_pool(pool, [taken])


@settings(max_examples=200, deadline=None)
@given(
    st.integers(12, 60),
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(1, 9), st.booleans()), max_size=60),
)
def test_shares(size: int, work: list[tuple[int, int, int, bool]]) -> None:
    """However three tenants come and go: counts are exact, nothing leaks, and nobody loses cached blocks while he holds
    clearly less than an equal share."""
    pool, held = BlockPool(size), list[list[int]]()
    for who, what, count, keep in work:
        before = {name: tenant.nodes for name, tenant in pool.tenants.items()}
        table: list[int] = []
        node, tenant = None, f"t{who}"
        for n in range(count):
            node = node or pool.root(f"{tenant} {what}", tenant)
            child = node.children.get(ids(n))
            block = pool.hold(child) if child else pool.take()
            if not block:
                break
            table.append(block)
            node = child or pool.register(node, ids(n), block, 1)
        held.append(table)
        used = pool.used
        if not keep or pool.available < 9:
            for each in held:
                pool.release(each)
            held.clear()
        check_pool(pool, held)
        for name, nodes in before.items():
            if name != tenant and nodes <= size // 4 - 2:
                kept = pool.tenants[name].nodes if name in pool.tenants else 0
                assert kept == nodes or used > size // 2, "a small tenant's blocks went while there were others"
    for each in held:
        pool.release(each)
    pool.forget()
    assert (pool.free, pool.cached, pool.used, pool.tenants, pool.roots) == (size - 1, 0, 0, {}, {})
