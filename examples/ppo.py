"""Proximal policy optimization on CartPole: the loop is plain numpy, the update is one `fit`.

    python examples/ppo.py [--seed N] [--steps N] [--threads N]

Needs gymnasium. `ppo_torch.py` runs the same loop with PyTorch.
"""

import argparse
import hashlib
import json
import time

import gymnasium
import numpy as np

import chainrule as cr

ENVS, LENGTH = 8, 128  # environments side by side; steps of each between two updates
EPOCHS, BATCH = 10, 64
GAMMA, LAMBDA, CLIP, LR, MAX_NORM = 0.99, 0.95, 0.2, 5e-4, 0.5


class ActorCritic(cr.nn.Module):
    """Two networks of two hidden layers: scores of the actions, and the value of the state."""

    def __init__(self, n_in, n_actions):
        self.pi = cr.nn.Sequential(
            cr.nn.Dense(n_in, 64, "tanh"), cr.nn.Dense(64, 64, "tanh"),
            cr.nn.Dense(64, n_actions, init=0.01),
        )  # fmt: skip
        self.v = cr.nn.Sequential(
            cr.nn.Dense(n_in, 64, "tanh"), cr.nn.Dense(64, 64, "tanh"), cr.nn.Dense(64, 1)
        )

    def forward(self, x):
        return {"scores": self.pi(x), "value": self.v(x)[:, 0]}


def ppo_loss(outputs, targets):
    """Clipped policy gain and squared error of the value (Schulman et al., 2017)."""
    log_pi = cr.log_softmax(outputs["scores"])
    log_p = cr.take_along_axis(log_pi, targets["action"].reshape(-1, 1), axis=1)[:, 0]
    ratio = cr.exp(log_p - targets["log_p"])
    clipped = cr.clip(ratio, 1.0 - CLIP, 1.0 + CLIP) * targets["gain"]
    error = cr.square(outputs["value"] - targets["return"])
    return 0.5 * error - cr.minimum(ratio * targets["gain"], clipped)


class Agent:
    """The part that a framework does."""

    def __init__(self, n_in, n_actions, seed, threads=1):
        optimizer = cr.optim.Adam(LR, eps=1e-5, clip_norm=MAX_NORM)
        model = ActorCritic(n_in, n_actions)
        self.trainer = cr.Trainer(model, ppo_loss, optimizer, seed=seed, threads=threads)

    def act(self, state):
        """Scores of the actions and values, for a row of each environment."""
        out = self.trainer.predict(state)
        return out["scores"], out["value"]

    def update(self, states, targets, lr):
        """Some epochs over what was played."""
        self.trainer.optimizer.lr = lr
        self.trainer.fit(states, targets, epochs=EPOCHS, batch_size=BATCH)

    def weights(self):
        """A hash of the weights."""
        digest = hashlib.sha256()
        for p in self.trainer.model.parameters().values():
            digest.update(p.data.tobytes())
        return digest.hexdigest()[:16]


def softmax(scores):
    """Probabilities of the actions."""
    e = np.exp(scores - scores.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def advantages(rewards, values, ends, last_value):
    """Generalized advantage estimates (Schulman et al., 2016), (LENGTH, ENVS)."""
    gains = np.zeros_like(rewards)
    running = np.zeros(rewards.shape[1])
    following = last_value
    for t in reversed(range(len(rewards))):
        alive = 1.0 - ends[t]
        delta = rewards[t] + GAMMA * following * alive - values[t]
        running = delta + GAMMA * LAMBDA * alive * running
        gains[t], following = running, values[t]
    return gains


def train(make_agent, seed, steps):
    """Play and learn; gives the returns of the episodes and where the time went."""
    rng = np.random.default_rng(seed)
    envs = gymnasium.make_vec("CartPole-v1", ENVS, vectorization_mode="vector_entry_point")
    agent = make_agent(4, 2, seed)
    state, _ = envs.reset(seed=seed)
    total, episodes, in_updates = np.zeros(ENVS), [], 0.0
    skip = np.zeros(ENVS, bool)  # the step after an end only resets the environment
    n_updates = steps // (ENVS * LENGTH)
    start = time.perf_counter()
    for update in range(n_updates):
        states, actions, log_p, values, rewards, ends, kept = ([] for _ in range(7))
        for step in range(LENGTH):
            scores, value = agent.act(state)
            p = softmax(scores)
            action = (rng.random((ENVS, 1)) > p.cumsum(axis=1)[:, :-1]).sum(axis=1)
            states.append(state)
            actions.append(action)
            log_p.append(np.log(p[np.arange(ENVS), action]))
            values.append(value)
            kept.append(~skip)
            state, reward, terminated, truncated, _ = envs.step(action)
            total += np.where(skip, 0.0, reward)
            end = terminated | truncated
            rewards.append(reward)
            ends.append(end | skip)
            if end.any():
                now = (update * LENGTH + step + 1) * ENVS
                episodes += [(now, time.perf_counter() - start, t) for t in total[end]]
                total[end] = 0.0
            skip = end
        values, ends = np.array(values), np.array(ends, float)
        gains = advantages(np.array(rewards), values, ends, agent.act(state)[1])
        keep = np.array(kept).ravel()
        flat = gains.ravel()[keep]
        targets = {
            "action": np.array(actions).ravel()[keep],
            "log_p": np.array(log_p).ravel()[keep].astype("float32"),
            "gain": ((flat - flat.mean()) / (flat.std() + 1e-8)).astype("float32"),
            "return": (flat + values.ravel()[keep]).astype("float32"),
        }
        before = time.perf_counter()
        rows = np.concatenate(states)[keep]
        agent.update(rows, targets, LR * (1.0 - update / n_updates))
        in_updates += time.perf_counter() - before
    seconds = time.perf_counter() - start
    envs.close()
    return agent, np.array(episodes), {"seconds": seconds, "updates": in_updates}


def report(agent, episodes, times, path=None):
    """One line about a run; the whole of it as JSON where a path is given."""
    if path:
        with open(path, "w") as file:
            weights = agent.weights()
            json.dump({"episodes": episodes.tolist(), **times, "weights": weights}, file)
    best = np.convolve(episodes[:, 2], np.ones(50) / 50, "valid")
    reached = np.argmax(best >= 475) if (best >= 475).any() else None
    at = "never" if reached is None else f"{int(episodes[reached + 49, 0])} steps"
    print(
        f"mean return of the last 50 episodes {episodes[-50:, 2].mean():.1f}, 475 reached at {at}; "
        f"{times['seconds']:.1f} s, of them {times['updates']:.2f} s in updates; "
        f"weights {agent.weights()}",
        flush=True,
    )


def main(agent):
    """The command line of both scripts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", help="a file for the episodes and times")
    o = parser.parse_args()
    report(*train(lambda *sizes: agent(*sizes, o.threads), o.seed, o.steps), o.json)


if __name__ == "__main__":
    main(Agent)
