"""The paged KV memory as numbers: which blocks are free, in use, or idle but worth keeping (the prefix cache).

A block holds the keys and values of `block_size` consecutive tokens, in all layers. Full blocks whose tokens are known
form a tree: below a root for every KV identity (everything that changes keys and values: tenant salt, weights version,
adapter, …), a child for each tuple of token ids that follows. A path from the root therefore is the whole prefix, compared
exactly: there are no hash collisions, and each block is hashed once. Every operation costs O(1) a block.

Two invariants carry the rest:
* free + used + cached == blocks - 1 (block 0 is scratch for padding). Used: somebody refers to it. Cached: nobody does,
  but a node does.
* A live node's ancestors are alive: a node leaves together with everything below it. Sequences let go of their last block
  first, so in the order of last use leaves come before their parents and rarely anything is below.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterable

from qwen3.errors import UsageError


class Node:
    """A full block in the prefix tree. `step`: the plan that computes it; later plans may read it.

    A root has block 0, no parent and the identity as its key. A dead node (evicted, forgotten) has neither parent nor
    children: nothing can be found below it, and nothing can be registered there.
    """

    __slots__ = ("alive", "block", "children", "key", "parent", "step")

    def __init__(self, parent: Node | None, key: Hashable, block: int, step: int) -> None:
        self.parent = parent
        self.key = key
        self.block = block
        self.step = step
        self.children: dict[Hashable, Node] = {}
        self.alive = True


class BlockPool:
    """`blocks` blocks of `block_size` tokens, numbered from 0; block 0 is never given out.

    Raises UsageError when there is not at least one block to give.
    """

    def __init__(self, blocks: int, *, block_size: int = 16) -> None:
        if blocks < 2 or block_size < 1:
            raise UsageError(f"blocks={blocks}, block_size={block_size}: a KV cache needs at least 2 blocks of 1 token")
        self.blocks = blocks
        self.block_size = block_size
        self.references = [0] * blocks
        self._nodes: list[Node | None] = [None] * blocks
        self._free = list(range(blocks - 1, 0, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()  # cached blocks, least recently used first
        self._roots: dict[Hashable, Node] = {}

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def cached(self) -> int:
        return len(self._idle)

    @property
    def used(self) -> int:
        return self.blocks - 1 - len(self._free) - len(self._idle)

    @property
    def available(self) -> int:
        """How many blocks `take` can give: free ones and cached ones."""
        return len(self._free) + len(self._idle)

    @property
    def identities(self) -> tuple[Hashable, ...]:
        """The KV identities that something is cached under."""
        return tuple(self._roots)

    def take(self) -> int:
        """A block of one's own: a free one, else the least recently used cached one. 0: there is none."""
        if not self._free:
            if not self._idle:
                return 0
            node = self._nodes[next(iter(self._idle))]
            assert node is not None
            self._unlink(node)
        block = self._free.pop()
        self.references[block] = 1
        return block

    def hold(self, node: Node) -> int:
        """One more reference to the block of a live node: read, never write."""
        block = node.block
        if not self.references[block]:
            del self._idle[block]
        self.references[block] += 1
        return block

    def release(self, blocks: list[int]) -> None:
        """One reference less to each block of a sequence (or of its tail): it becomes cached if a node has it, else free."""
        references, nodes = self.references, self._nodes
        for block in reversed(blocks):  # the leaf first: it will be evicted before its parent
            references[block] -= 1
            if not references[block]:
                if nodes[block] is None:
                    self._free.append(block)
                else:
                    self._idle[block] = None

    def find(self, identity: Hashable) -> Node | None:
        """The root of an identity, if anything is cached under it."""
        return self._roots.get(identity)

    def root(self, identity: Hashable) -> Node:
        """The root of an identity, to register below at once (an empty root does not outlive its last child)."""
        return self._roots.setdefault(identity, Node(None, identity, 0, 0))

    def register(self, parent: Node, ids: tuple[int, ...], block: int, step: int) -> Node:
        """`block`, in use by the caller, holds (after plan `step`) the tokens `ids` that follow `parent`. -> their node.

        If another block holds the same, that one stays the node's when it is in use; an idle one is freed for ours.
        """
        if not parent.alive:
            return parent
        node = parent.children.get(ids)
        if node is None:
            node = parent.children[ids] = Node(parent, ids, block, step)
            self._nodes[block] = node
        elif not self.references[node.block]:
            del self._idle[node.block]
            self._nodes[node.block] = None
            self._free.append(node.block)
            node.block, node.step = block, step
            self._nodes[block] = node
        return node

    def forget(self, identity: Hashable | None = None) -> None:
        """Nothing computed so far under `identity` (None: under any) will be found again. Blocks in use stay in use."""
        roots = [root for root in self._roots.values() if identity is None or root.key == identity]
        for node in [child for root in roots for child in root.children.values()]:
            self._unlink(node)

    def _unlink(self, node: Node) -> None:
        """Takes a node and all below it out of the tree; idle blocks become free, those in use become private."""
        parent = node.parent
        assert parent is not None
        del parent.children[node.key]
        if parent.parent is None and not parent.children:
            del self._roots[parent.key]
        below = [node]
        while below:
            node = below.pop()
            below.extend(node.children.values())
            node.children = {}
            node.parent = None
            node.alive = False
            self._nodes[node.block] = None
            if not self.references[node.block]:
                del self._idle[node.block]
                self._free.append(node.block)

    def check(self, tables: Iterable[list[int]]) -> None:
        """Raises AssertionError unless everything fits together; `tables`: the block lists of all holders. For tests."""
        held = Counter(block for table in tables for block in table)
        assert held == Counter({b: n for b, n in enumerate(self.references) if n}), "references differ from the tables"
        free, idle = set(self._free), set(self._idle)
        assert len(free) == self.free
        assert not (free & idle or free & held.keys() or idle & held.keys() or 0 in free | idle | held.keys())
        assert self.free + len(held) + self.cached == self.blocks - 1
        assert self.used == len(held)
        seen: dict[int, Node] = {}
        for identity, root in self._roots.items():
            assert root.alive
            assert root.key == identity
            assert root.children
            below = [root]
            while below:
                node = below.pop()
                for key, child in node.children.items():
                    assert child.alive
                    assert child.parent is node
                    assert child.key == key
                    assert len(key) == self.block_size  # type: ignore[arg-type]
                    assert child.block not in seen
                    seen[child.block] = child
                    below.append(child)
        assert seen == {block: node for block, node in enumerate(self._nodes) if node is not None}
        assert idle <= seen.keys(), "a cached block that cannot be found"
        assert not free & seen.keys()
