"""Logic: circuits of true and false, and reachability in directed graphs."""

from __future__ import annotations

import random

from qwen3.tasks.base import Problem, Task, after_last_colon_or_is, paragraphs


def _listed(names: list[str]) -> str:
    return ", ".join(names) if names else "none"


def same_list(answer: str, text: str) -> bool:
    given = after_last_colon_or_is(text).replace(" and ", ", ")
    return sorted(n.strip() for n in given.split(",") if n.strip()) == sorted(n.strip() for n in answer.split(","))


class Boolean(Task):
    """A circuit: inputs are given, each further line combines earlier ones; which of them are true?"""

    name = "boolean"
    levels = 4
    phrasings = (
        "{c} Which of {q} are true?",
        "Let {c} Which of {q} are true?",
        "Given: {c} Which of {q} are true?",
        "{c} Tell me which of {q} are true.",
        "Evaluate: {c} Which of {q} hold?",
        "Here is a circuit: {c} Which of {q} are true?",
        "Suppose {c} List the true ones among {q}.",
        "Consider {c} Name those of {q} that are true.",
        "If {c} which of {q} are true?",
        "Work this out: {c} Which of {q} are true?",
        "{c} Among {q}, which are true?",
    )
    _GATES = ((2, 3), (4, 5), (6, 7), (8, 9))

    def make(self, rng: random.Random, level: int) -> Problem:
        names = list("abcdefghijkl")
        if rng.random() < 0.3:
            rng.shuffle(names)
        inputs = rng.randint(2, 3)
        count = rng.randint(*self._GATES[level - 1])
        value: dict[str, bool] = {}
        lines, steps = [], []
        for name in names[:inputs]:
            value[name] = rng.random() < 0.5
            lines.append(f"{name} = {str(value[name]).lower()}")
        asked = names[inputs : inputs + count]
        for name in asked:
            known = list(value)
            # Later lines mostly use the latest ones, so that the circuit is deep and not wide.
            x = known[-1] if rng.random() < 0.6 else rng.choice(known)
            y = rng.choice([k for k in known if k != x])
            op = rng.choice(("and", "or", "xor", "not"))
            vx, vy = str(value[x]).lower(), str(value[y]).lower()
            if op == "not":
                value[name] = not value[x]
                lines.append(f"{name} = not {x}")
                steps.append(f"{name} = not {x} = not {vx} = {str(value[name]).lower()}")
                continue
            p, q = value[x], value[y]
            value[name] = (p and q) if op == "and" else (p or q) if op == "or" else p != q
            lines.append(f"{name} = {x} {op} {y}")
            steps.append(f"{name} = {x} {op} {y} = {vx} {op} {vy} = {str(value[name]).lower()}")
        answer = _listed([name for name in asked if value[name]])
        circuit = ", ".join(lines) + "."
        prompt = self.ask(rng, c=circuit, q=", ".join(asked))
        return Problem(self.name, level, f"boolean {circuit}", prompt, paragraphs(*steps), answer, f"True: {answer}.")

    def check(self, problem: Problem, text: str) -> bool:
        return same_list(problem.answer, text)


class Reach(Task):
    """Which nodes of a directed graph can be reached, by breadth-first search with a written queue."""

    name = "reach"
    levels = 4
    phrasings = (
        "Edges: {e}. Which nodes can be reached from {s}?",
        "Graph: {e}. What can you reach from {s}?",
        "Given the edges {e}, which nodes are reachable from {s}?",
        "Directed edges {e}. Start at {s}. Where can you go?",
        "The arrows are {e}. Which nodes can {s} reach?",
        "Here is a graph: {e}. List the nodes reachable from {s}.",
        "From {s}, which nodes can you reach? Edges: {e}.",
        "Find all nodes reachable from {s} in the graph {e}.",
        "With the edges {e}, where can you get from {s}?",
        "List everything reachable from {s}: {e}.",
        "You stand at {s}. The one-way roads are {e}. Which places can you reach?",
    )
    _NODES = (5, 6, 8, 10)

    def make(self, rng: random.Random, level: int) -> Problem:
        size = self._NODES[level - 1]
        letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
        nodes = rng.sample(letters[: size + 4], size)
        while True:
            edges: dict[str, list[str]] = {node: [] for node in nodes}
            pairs = [(a, b) for a in nodes for b in nodes if a != b]
            chosen = rng.sample(pairs, rng.randint(size - 1, size + 3))
            for a, b in chosen:
                edges[a].append(b)
            start = rng.choice(nodes)
            queue, steps = [start], []
            at = 0
            while at < len(queue):
                node = queue[at]
                targets = edges[node]
                new = [t for t in targets if t not in queue]
                queue += new
                goes = ", ".join(targets) if targets else "nothing"
                steps.append(f"{node} goes to {goes}. New: {_listed(new)}. List: {' '.join(queue)}.")
                at += 1
            if 2 <= len(queue) < size or (len(queue) == size and rng.random() < 0.1):
                break
        answer = ", ".join(sorted(queue))
        text = ", ".join(f"{a}->{b}" for a, b in chosen)
        key = f"reach {start} {' '.join(sorted(f'{a}{b}' for a, b in chosen))}"
        prompt = self.ask(rng, e=text, s=start)
        trace = paragraphs(f"Start at {start}. List: {start}.", *steps, f"Sorted: {answer}.")
        return Problem(self.name, level, key, prompt, trace, answer, f"Reachable: {answer}.")

    def check(self, problem: Problem, text: str) -> bool:
        given = set(after_last_colon_or_is(text).replace(",", " ").split()) - {"and"}
        wanted = set(problem.answer.split(", "))
        start = problem.key.split()[1]
        return given | {start} == wanted  # whether the start counts as reached is a matter of taste
