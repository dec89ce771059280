"""The paged KV memory as numbers: which blocks are free, in use, or idle but worth keeping (the prefix cache).

A block holds keys and values of `block_size` consecutive tokens, in all layers. Full blocks whose tokens are known
form a tree: under a root for each KV identity (all that changes keys and values: tenant salt, weights version, adapter,
…), a child for each tuple of ids that follows. A path is the whole prefix, compared exactly: no hash collisions, and
each block is hashed once. Every operation costs O(1) a block (choosing whose blocks go: O(tenants), now and then).

A block that is wanted is taken from whoever holds most, so that one tenant's flood of prompts pushes out its own and
leaves every other an equal share; what nobody used for `STALE` seconds goes first. Blocks in use count as held, and may
be all there are. Two invariants carry the rest:

* free + used + cached == blocks - 1 (block 0 is scratch, for padding). Used: somebody refers to it; cached: only nodes.
* A live node's ancestors are alive: a node leaves with all below it. Sequences let go of their last block first, so in
  the order of last use leaves come before their parents, and rarely is anything below.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from time import monotonic

from qwen3.errors import UsageError

STALE = 600.0  # seconds


class Tenant:
    """Whose blocks are counted together: how many nodes, and which of these are idle since when, oldest first."""

    __slots__ = ("idle", "name", "nodes")

    def __init__(self, name: Hashable) -> None:
        self.name, self.nodes = name, 0
        self.idle: OrderedDict[int, float] = OrderedDict()


class Node:
    """A full block in the prefix tree, computed by plan `step` (later plans may read it).

    A root has block 0, no parent and the identity as key. Nothing is found or registered below a dead node (evicted,
    forgotten): it has neither parent nor children."""

    __slots__ = ("alive", "block", "children", "key", "parent", "step", "tenant")

    def __init__(self, parent: Node | None, key: Hashable, block: int, step: int, tenant: Tenant) -> None:
        self.parent = parent
        self.tenant = tenant
        self.key = key
        self.block = block
        self.step = step
        self.children: dict[Hashable, Node] = {}
        self.alive = True


class BlockPool:
    """`blocks` blocks of `block_size` tokens; block 0 is never given out. Raises UsageError if there is no other."""

    def __init__(self, blocks: int, *, block_size: int = 16) -> None:
        if blocks < 2 or block_size < 1:
            raise UsageError(f"blocks={blocks}, block_size={block_size}: a KV cache needs at least 2 blocks of 1 token")
        self.blocks = blocks
        self.block_size = block_size
        self.references = [0] * blocks
        self._nodes: list[Node | None] = [None] * blocks
        self._free = list(range(blocks - 1, 0, -1))
        self.cached = 0  # idle ones that are worth keeping
        self.tenants: dict[Hashable, Tenant] = {}  # those that hold anything
        self._giver: Tenant | None = None
        self._gives = 0  # blocks more before others are looked at
        self.roots: dict[Hashable, Node] = {}  # by identity, of those under which anything is cached

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def used(self) -> int:
        return self.blocks - 1 - len(self._free) - self.cached

    @property
    def available(self) -> int:
        """How many blocks `take` can give."""
        return len(self._free) + self.cached

    def take(self) -> int:
        """A block of one's own: a free one, else the least recently used cached one of a tenant that holds much.
        0: there is none."""
        if not self._free:
            if not self.cached:
                return 0
            node = self._nodes[next(iter(self._who_gives().idle))]
            assert node is not None
            self.drop(node)
        block = self._free.pop()
        self.references[block] = 1
        return block

    def hold(self, node: Node) -> int:
        """One more reference to the block of a live node: read, never write."""
        block = node.block
        if not self.references[block]:
            self._wake(node)
        self.references[block] += 1
        return block

    def release(self, blocks: list[int]) -> None:
        """One reference less to each block of a sequence, or of its tail: without any it is cached or free."""
        references, nodes, now = self.references, self._nodes, monotonic()
        for block in reversed(blocks):  # the leaf first: it will be evicted before its parent
            references[block] -= 1
            if not references[block]:
                node = nodes[block]
                if node is None:
                    self._free.append(block)
                else:
                    node.tenant.idle[block] = now
                    self.cached += 1

    def root(self, identity: Hashable, tenant: Hashable = "") -> Node:
        """The root of an identity, to register below at once (it does not outlive its last child). tenant: who answers
        for what is below, if it is new."""
        if identity not in self.roots:
            owner = self.tenants.setdefault(tenant, Tenant(tenant))
            self.roots[identity] = Node(None, identity, 0, 0, owner)
        return self.roots[identity]

    def register(self, parent: Node, ids: tuple[int, ...], block: int, step: int) -> Node:
        """`block`, in use by the caller, holds the tokens `ids` after `parent` once plan `step` has run. -> their node.

        If another block holds the same, it stays the node's while it is in use; an idle one is freed for ours."""
        if not parent.alive:
            return parent
        node = parent.children.get(ids)
        if node is None:
            node = parent.children[ids] = Node(parent, ids, block, step, parent.tenant)
            node.tenant.nodes += 1
            self._nodes[block] = node
        elif not self.references[node.block]:
            self._wake(node)
            self._nodes[node.block] = None
            self._free.append(node.block)
            node.block, node.step = block, step
            self._nodes[block] = node
        return node

    def forget(self, identity: Hashable | None = None) -> None:
        """Nothing computed so far under `identity` (None: under any) will be found again. Blocks in use stay in use."""
        roots = [root for root in self.roots.values() if identity is None or root.key == identity]
        for node in [child for root in roots for child in root.children.values()]:
            self.drop(node)

    def drop(self, node: Node) -> None:
        """Takes a node and all below it out of the tree; idle blocks become free, those in use become private. A dead
        node, or a root: nothing happens."""
        parent = node.parent
        if parent is None:
            return
        del parent.children[node.key]
        if parent.parent is None and not parent.children:
            del self.roots[parent.key]
        below = [node]
        while below:
            node = below.pop()
            below.extend(node.children.values())
            node.children = {}
            node.parent = None
            node.alive = False
            self._nodes[node.block] = None
            node.tenant.nodes -= 1
            if not self.references[node.block]:
                self._wake(node)
                self._free.append(node.block)
        if not node.tenant.nodes:
            del self.tenants[node.tenant.name]

    def _wake(self, node: Node) -> None:
        """Its block is no longer idle."""
        del node.tenant.idle[node.block]
        self.cached -= 1

    def _who_gives(self) -> Tenant:
        """The tenant whose oldest cached block goes next: one with stale ones, until they are gone, else the one that
        holds most, for an eighth of its cached blocks."""
        giver = self._giver
        if giver is None or not giver.idle or not self._gives:
            idle, now = [tenant for tenant in self.tenants.values() if tenant.idle], monotonic()
            stale = [tenant for tenant in idle if now - next(iter(tenant.idle.values())) > STALE]
            giver = self._giver = max(stale or idle, key=lambda tenant: tenant.nodes)
            self._gives = sum(now - since > STALE for since in giver.idle.values()) or 1 + len(giver.idle) // 8
        self._gives -= 1
        return giver
